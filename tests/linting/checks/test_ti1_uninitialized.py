"""TI1: memory that nobody filled, and what looks like it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.linting.models import Branched, Net, apply, draw, found, only, traced
from torchinit import BaseModule, lint
from torchinit.linting import ConstructionRecorder, Findings
from torchinit.model.sandbox import poisoned_memory


def test_buffer_forgotten_after_to_empty() -> None:
    with torch.device("meta"):
        model = Net()
    model.to_empty(device="cpu")
    state = Net().state_dict()
    model.load_state_dict(state)
    with torch.no_grad():
        model.rotary.inv_freq.zero_()  # what fresh memory holds on most systems
    found = only(lint(model), "TI105")
    assert (found.severity, found.site) == ("error", "rotary.inv_freq")
    assert "all are zero" in found.message


def test_buffer_forgotten_in_poisoned_memory() -> None:
    with torch.device("meta"):
        model = Net()
    with poisoned_memory():
        model.to_empty(device="cpu")
    model.load_state_dict(Net().state_dict())
    found = only(lint(model), "TI103")
    assert (found.site, found.message) == ("rotary.inv_freq", "all 8 values are NaN")


def test_statistics_forgotten_after_to_empty() -> None:
    model = Net()
    assert isinstance(model.norm.running_var, Tensor)
    model.norm.running_var.zero_()
    found = only(lint(model), "TI105")
    assert found.site == "norm.running_var"


def test_memory_that_held_something_else() -> None:
    model = Net()
    addresses = torch.arange(32 * 64, dtype=torch.int64) * 64 + 0x7F3A00000000
    model.blocks[1].get_submodule("1").weight.data = addresses.view(torch.float32)[: 64 * 32].reshape(64, 32)
    found = only(lint(model), "TI104")
    assert found.site == "blocks.1.1.weight"
    assert "below 1.18e-38" in found.message


def test_parameter_never_filled() -> None:
    class Prompt(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Parameter(torch.empty(4, 8))
            self.out = nn.Linear(8, 8)

    found = lint(Prompt())
    assert [(one.code, one.site) for one in found if one.code == "TI101"] == [("TI101", "tokens")]


def test_submodule_left_on_meta() -> None:
    model = Net()
    model.head.to("meta")
    found = only(lint(model), "TI102")
    assert found.site == "head.weight"


def test_nan_in_two_rows() -> None:
    model = Net()
    with torch.no_grad():
        model.embed.weight[7:9] = float("nan")
    assert only(lint(model), "TI103").message == "64 of 1600 values are NaN"


def test_a_few_subnormal_numbers_are_a_warning() -> None:
    model = nn.Linear(100, 100)
    with torch.no_grad():
        model.weight[0, :3] = 1e-40
        model.bias[:2] = 1e-40
    assert found(model, "TI104") == [
        ("error", "bias", "2 of 100 values are below 1.18e-38"),
        ("warning", "weight", "3 of 10000 values are below 1.18e-38"),
    ]


def test_a_huge_number_counts_in_a_parameter_alone() -> None:
    model = nn.BatchNorm1d(3)
    assert model.running_mean is not None
    with torch.no_grad():
        model.running_mean[0] = 1e38
        model.bias[0] = -1e38
    assert found(model, "TI104") == [("error", "bias", "holds 1e+38")]


class Buffers(nn.Module):
    def __init__(self, **buffers: torch.Tensor) -> None:
        super().__init__()
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("running_var", [1.0, -0.5], "is a variance, and its smallest value is -0.5"),
        ("inv_freq", [1.0, -0.5], "holds frequencies, and one is -0.5"),
        ("inv_freq", [0.0, 0.0], "holds frequencies, and all are zero"),
        ("position_ids", [0, 0, 0], "holds positions, and all 3 are 0"),
        ("num_batches_tracked", -1, "is a count, and holds -1"),
        ("index", [1 << 50, 0], "holds whole numbers up to 1.13e+15"),
        ("running_var", [1.0, 0.5], None),
        ("inv_freq", [1.0, 0.5, 0.0], None),
        ("position_ids", [0, 1, 2], None),
        ("position_ids", [0], None),
        ("index", [1 << 30, 0], None),
    ],
)
def test_buffers(name: str, values: list[float], text: str | None) -> None:
    assert found(Buffers(**{name: torch.tensor(values)}), "TI105") == ([("error", name, text)] if text else [])


def test_buffer_that_to_empty_left_behind() -> None:
    with torch.device("meta"):
        model = Branched()
    # TI103 and TI104 look at values, and unfilled memory holds any.
    findings = traced(model, lambda one: one.to_empty(device="cpu"), apply(draw), ignore=["TI103", "TI104", "TI107"])
    (found,) = findings
    assert (found.code, found.severity, found.site) == ("TI101", "error", "freqs")
    assert found.message == "8 values of memory that was never filled"


def test_layer_that_was_forgotten() -> None:
    def but_the_head(model: nn.Module) -> None:
        model.get_submodule("branches").apply(draw)

    findings = traced(Branched(), but_the_head)
    assert [(one.code, one.severity, one.site) for one in findings] == [
        ("TI107", "warning", "head.weight"), ("TI107", "warning", "head.bias")
    ]  # fmt: skip
    assert findings[0].message == "nothing wrote to it, unlike the weight of other Linear layers"
    model = Branched()
    kept = {name: value for name, value in model.state_dict().items() if name.startswith("head")}
    assert tuple(traced(model, but_the_head, loaded=kept, ignore=["TI202"])) == ()


def test_kinds_that_nothing_wrote_to_are_one_note() -> None:
    model = nn.Sequential(Branched(), nn.LayerNorm(16))
    (found,) = traced(model, apply(draw))
    assert (found.code, found.severity) == ("TI107", "note")
    assert found.message == "nothing wrote to 2 parameters: 1.weight, 1.bias"
    assert tuple(traced(model)) == ()


def test_parametrized_weight_that_was_not_written() -> None:
    model = nn.Sequential(nn.Linear(8, 8), parametrizations.weight_norm(nn.Linear(8, 8)))
    findings = traced(model, lambda one: nn.init.normal_(one.get_parameter("0.weight")))
    assert [(one.code, one.severity, one.site) for one in findings.at_least("warning")] == [
        ("TI107", "warning", "1.weight")
    ]
    assert "a parametrization computes it from" in findings[0].message


class Holder(nn.Module):
    """Holds what a constructor made."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.register_buffer("held", make())


def built(make: Callable[[], nn.Module]) -> tuple[nn.Module, Findings]:
    recorder = ConstructionRecorder()
    with poisoned_memory(), recorder:
        model = make()
    return model, lint(model, trace=recorder.of(model))


WHOLE = (torch.bool, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
DTYPES = (*WHOLE, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_of_any_dtype_that_a_constructor_left_empty(dtype: torch.dtype) -> None:
    _, findings = built(lambda: Holder(lambda: torch.empty(40, 40, dtype=dtype)))
    (one,) = findings
    shows = {torch.int64: "TI105"}.get(dtype, "TI101" if dtype in WHOLE else "TI103")
    assert (one.code, one.severity, one.site) == (shows, "error", "held")
    for values in (torch.zeros(3, dtype=dtype), torch.empty(3, dtype=dtype).fill_(1)):
        assert built(partial(Holder, values.clone))[1].codes == ()


@pytest.mark.parametrize(
    "make",
    [
        partial(torch.empty, 3, dtype=torch.bool),
        lambda: torch.empty(4, 4, dtype=torch.int8)[1:],
        lambda: torch.empty(4, 4, dtype=torch.int32).clone(),
        lambda: torch.empty_like(torch.zeros(5, dtype=torch.int16)),
        lambda: torch.zeros(2, dtype=torch.int8).new_empty(7),
        lambda: torch.empty_strided((3, 3), (3, 1), dtype=torch.uint8),
    ],
)
def test_ways_to_get_empty_memory(make: Callable[[], Tensor]) -> None:
    assert [one.code for one in built(lambda: Holder(make))[1]] == ["TI101"]


def test_memory_that_other_libraries_fill() -> None:
    def make() -> Tensor:
        values = torch.empty(64, dtype=torch.int32)
        values.numpy()[:] = np.arange(64)
        return values

    model, findings = built(lambda: Holder(make))
    assert findings.codes == ()
    assert torch.equal(model.get_buffer("held"), torch.arange(64))


def test_lazy_layers_have_no_values() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Linear(4, 4))
    found = [(one.code, one.severity, one.site) for one in lint(model)]
    names = ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")
    assert found == [("TI109", "warning", name) for name in names]
    model[:2](torch.randn(2, 3, 8, 8))
    assert lint(model).codes == ()
    with torch.device("meta"):
        assert lint(nn.Sequential(nn.LazyLinear(3))).codes == ("TI102", "TI109")


def test_memory_that_was_written_in_part_holds_what_it_would() -> None:
    def make() -> Tensor:
        values = torch.empty(64, dtype=torch.bool)
        values[40:] = False
        return values

    model, findings = built(lambda: Holder(make))
    assert findings.codes == ()
    assert model.get_buffer("held").view(torch.uint8).tolist() == [1] * 40 + [0] * 24  # the poison of truth values
