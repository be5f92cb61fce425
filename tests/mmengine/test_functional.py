"""A write of torchinit's own functions is told to those who watch, and what they then know is what they would see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import torchinit
from torchinit.mmengine import BaseModule, functional
from torchinit.plans.report import Report

FUNCTIONS: dict[str, Callable[[nn.Module], None]] = {
    "constant": lambda layer: functional.constant_init(layer, 3, bias=0.25),
    "normal": lambda layer: functional.normal_init(layer, 1, 0.02, bias=-1),
    "uniform": lambda layer: functional.uniform_init(layer, -1, 2),
    "truncated": lambda layer: functional.trunc_normal_init(layer, 0.5, 0.02, -1, 1.5),
    "xavier": lambda layer: functional.xavier_init(layer, 2, distribution="uniform"),
    "kaiming": lambda layer: functional.kaiming_init(layer, distribution="normal"),
    "caffe2": functional.caffe2_xavier_init,
}


class Net(BaseModule):
    """A layer for each function, one that is written twice, and one that is a slice of another's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(6, 5) for name in FUNCTIONS})
        self.twice = nn.Linear(3, 3)
        self.part = nn.Linear(3, 3)
        lent: Any = self.layers["normal"].weight
        self.part.weight = nn.Parameter(lent.detach().view(-1)[:9].view(3, 3))

    def init_weights(self) -> None:  # type: ignore[override]
        super().init_weights()
        for name, layer in self.layers.items():
            FUNCTIONS[name](layer)
        functional.normal_init(self.twice)
        functional.constant_init(self.twice, 2)
        functional.uniform_init(self.part)


def outcome(dtype: torch.dtype = torch.float32, seed: int | None = None) -> tuple[Any, ...]:
    torch.manual_seed(3)
    model: Any = Net()
    for layer in (*model.layers.values(), model.twice):  # torch draws no 8-bit floats, as constructors would
        layer.to(dtype)
    report: Any = model.init_weights(seed=seed)
    assert isinstance(report, Report)
    state = {name: tensor.float().tolist() for name, tensor in model.state_dict().items()}
    return state, torch.get_rng_state().tolist(), list(report), report.untouched, report.unfilled


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float8_e5m2])
@pytest.mark.parametrize("seed", [None, 5])
def test_reports_values_and_generator_are_those_of_a_write_that_is_seen(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, seed: int | None
) -> None:
    told = outcome(dtype, seed)
    monkeypatch.setattr(functional, "watchers_of", lambda tensor: ())
    assert told == outcome(dtype, seed)
    assert all(record.operation and "test_functional.py" in record.line for record in told[2])


def test_a_write_is_told_where_nobody_else_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    operation = torchinit.tracing.observer.Observer._operation

    def counted(self: Any, func: Any, *call: Any) -> Any:
        seen.append(str(func))
        return operation(self, func, *call)

    monkeypatch.setattr(torchinit.tracing.observer.Observer, "_operation", counted)
    outcome()
    assert not [name for name in seen if "normal_" in name or "clamp_" in name]


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [_Operations, _Functions])
@pytest.mark.parametrize("inside", [False, True])
def test_modes_of_users_see_each_operation(mode: Any, inside: bool) -> None:
    watching = mode()

    class One(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def init_weights(self) -> None:  # type: ignore[override]
            with watching if inside else nullcontext():
                functional.trunc_normal_init(self.fc, std=0.5)

    model: Any = One()
    with nullcontext() if inside else watching:
        report: Any = model.init_weights()
    assert {"uniform_", "erfinv_", "clamp_"} <= set(watching.names)
    assert report["fc.weight"].operation == "clamp_(min=-2, max=2)"


def test_a_trace_of_users_sees_each_operation() -> None:
    layer = nn.Linear(2, 2)
    with torchinit.tracing.trace(layer) as seen:
        functional.trunc_normal_init(layer, std=0.5)
    assert next(write.operation for write in seen.writes if write.site == "weight") == "uniform_"


def test_memory_that_a_function_fills_while_a_constructor_is_watched_counts_as_filled() -> None:
    class Built(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4, bias=False)
            self.fc.weight = nn.Parameter(torch.empty(4, 4))
            self.left = nn.Parameter(torch.empty(4, 4))
            functional.normal_init(self.fc)

    report: Any = Built().init_weights()
    assert report.unfilled == ("left",)


class _Tagged(Tensor):
    """A subclass that sees its own operations."""

    names: list[str] = []  # noqa: RUF012 - of all, on purpose

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.names.append(getattr(func, "__name__", ""))
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


def test_subclasses_see_their_own_operations() -> None:
    class One(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2, bias=False)
            self.fc.weight = nn.Parameter(torch.zeros(2, 2).as_subclass(_Tagged))

        def init_weights(self) -> None:  # type: ignore[override]
            functional.normal_init(self.fc)

    One().init_weights()
    assert "normal_" in _Tagged.names


@contextmanager
def default_device(device: str) -> Iterator[None]:
    with torch.device(device):
        yield


def test_under_a_default_device_the_record_is_the_same() -> None:
    plain = outcome()
    with default_device("cpu"):
        assert outcome() == plain
