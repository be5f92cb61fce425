"""Own code: buffers by their modules' own methods and constructors, and nothing else touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchinit import Name, Normal, Report, Rule, RunError, materialize

ALL = Rule(Name("**"), Normal(), optional=True)


class Rotary(nn.Module):
    """A table that is computed in the constructor, from arguments that are kept."""

    def __init__(self, width: int, base: float = 100.0, device: Any = None) -> None:
        super().__init__()
        self.width = width
        self.base = base
        self.register_buffer("angles", base ** -torch.arange(0, width, 2, device=device), persistent=False)


class Deep(nn.Module):
    """The same table within a model that forgets what it was made with."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rotary = Rotary(width)
        self.layer = nn.Linear(width, 1000)


class Above(nn.Module):
    """A root that knows how to set up what is below it."""

    def __init__(self) -> None:
        super().__init__()
        self.below = Forgetful(2)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Forgetful):
            module.ids.copy_(torch.arange(2))
            nn.init.normal_(module.weight)


class Forgetful(nn.Module):
    ids: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.register_buffer("ids", torch.empty(size, dtype=torch.int64))


class Titan(nn.Module):
    """A root whose init_weights assigns a new buffer, keeps count, and writes to parameters of layers below."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("table", self.compute(), persistent=False)
        self.calls = 0

    def compute(self) -> Tensor:
        return torch.ones(3).cumsum(0)

    def init_weights(self, buffer_device: Any = None) -> None:
        self.calls += 1
        with torch.device(buffer_device or self.table.device):
            self.table = self.compute()
        self.layer.reset_parameters()


class Random(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("features", torch.randn(size))


class Partly(nn.Module):
    """Sets up one half of a buffer, counts up another, and one of its methods needs what is not there."""

    part: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("part", torch.empty(4))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def reset_parameters(self) -> None:
        self.part[:2] = 0
        self.count += 1

    def reset_buffers(self) -> None:
        raise OSError("no such file")


class Variadic(nn.Module):
    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.register_buffer("made", torch.ones(sizes))


class Changed(Rotary):
    """Keeps an argument under its name that is not what it was made with."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.width = 2 * width


def made(make: Callable[[], nn.Module], seed: int = 0) -> tuple[nn.Module, Report]:
    with torch.device("meta"):
        model = make()
    return model, materialize(model, ALL, seed=seed)


@pytest.mark.parametrize(
    ("make", "buffer", "by"),
    [
        (lambda: Rotary(8), "angles", "Rotary(...)"),
        (lambda: Deep(8), "rotary.angles", "Rotary(...)"),
        (Above, "below.ids", "Above._init_weights(Forgetful)"),
        (Titan, "table", "Titan.init_weights()"),
        (lambda: nn.Sequential(nn.BatchNorm1d(3)), "0.num_batches_tracked", "BatchNorm1d.reset_running_stats()"),
    ],
)
def test_the_values_of_a_model_that_was_built_with_memory(make: Callable[[], nn.Module], buffer: str, by: str) -> None:
    expected = make()
    if isinstance(expected, Above):
        expected._init_weights(expected.below)
    model, report = made(make)
    assert torch.equal(model.get_buffer(buffer), expected.get_buffer(buffer))
    assert model.get_buffer(buffer).dtype == expected.get_buffer(buffer).dtype
    assert report[buffer].fill == by
    assert model.state_dict().keys() == expected.state_dict().keys()


def test_only_buffers_are_made() -> None:
    """The code writes to parameters and attributes, too; the recipe's values and the model's own state stay."""
    model, report = made(Titan)
    report.assert_ok(complete=True)
    assert model.calls == 0
    assert report["layer.weight"].fill == "Normal()"
    assert "init_weights" not in model.__dict__


def test_what_is_drawn_belongs_to_seed_and_name() -> None:
    before = torch.get_rng_state()
    one, _ = made(lambda: nn.ModuleDict({"a": Random(3), "b": Random(3)}))
    other, _ = made(lambda: nn.ModuleDict({"b": Random(3)}))
    third, _ = made(lambda: nn.ModuleDict({"b": Random(3)}), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.get_buffer("b.features"), other.get_buffer("b.features"))
    assert not torch.equal(one.get_buffer("b.features"), one.get_buffer("a.features"))
    assert not torch.equal(other.get_buffer("b.features"), third.get_buffer("b.features"))


def test_a_buffer_that_is_not_wholly_written_is_named_with_what_was_tried() -> None:
    tried = (
        r"Partly\.reset_buffers\(\) raised OSError: no such file; Partly\.reset_parameters\(\) does not write all of"
        r" it; Partly\(\.\.\.\) does not write all of it"
    )
    with pytest.raises(RunError, match=rf"^1 tensor left unwritten\n  part: .*\({tried}\)"):
        made(Partly)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Variadic(2, 3), r"made: .*\(there is none\)"),
        (lambda: Changed(4), r"angles: .*\(Changed\(\.\.\.\) raised ValueError: it builds another module than this"),
        (lambda: Forgetful(3), r"ids: .*\(there is none\)"),
    ],
)
def test_a_constructor_is_called_only_with_what_it_was_called_with(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(RunError, match=message):
        made(make)


class Counting(nn.Module):
    """Many layers whose buffers nobody makes, under a method that is told when it is called."""

    calls: list[int] = []  # noqa: RUF012  # shared on purpose: attributes of a stand-in are put back

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Forgetful(2) for _ in range(5))

    def init_weights(self) -> None:
        self.calls.append(1)


def test_code_of_a_module_above_runs_once_for_all_below() -> None:
    Counting.calls.clear()
    with pytest.raises(
        RunError, match=r"5 tensors left unwritten(.|\n)*layers\.4\.ids: .*Counting\.init_weights\(\) does not"
    ):
        made(Counting)
    assert len(Counting.calls) == 2  # from either poison
