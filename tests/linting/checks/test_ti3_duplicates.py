"""TI3: layers, blocks and rows that hold the same drawn values."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.linting.models import Net, found, only
from torchinit import lint


def test_transformer_encoder_clones_its_layer() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32)
    found = only(lint(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)), "TI301")
    assert (found.severity, found.site) == ("error", "layers.0")
    assert "layers.1, layers.2: self_attn.out_proj.weight, self_attn.in_proj_weight, linear1.weight" in found.message


def test_one_seed_for_every_layer() -> None:
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            torch.manual_seed(42)
            module.reset_parameters()
    found = only(lint(model), "TI301")
    assert found.site == "blocks.0"


def test_one_seed_on_every_rank() -> None:
    model = Net()
    shards = []
    for _ in range(4):
        torch.manual_seed(1)
        shards.append(torch.randn(8, 64) * 0.02)
    model.get_parameter("blocks.0.2.weight").data = torch.cat(shards)
    found = only(lint(model), "TI302")
    assert found.message == "the 32 rows are 4 equal blocks of 8"


def test_queries_and_keys_start_equal() -> None:
    attention = nn.MultiheadAttention(16, 4)
    with torch.no_grad():
        weight = attention.get_parameter("in_proj_weight")
        weight.copy_(weight[:16].repeat(3, 1))
    assert only(lint(attention), "TI302").message == "the 48 rows are 3 equal blocks of 16"


def test_ranks_split_along_the_input_axis() -> None:
    model = nn.Sequential(nn.Linear(32, 24))
    with torch.no_grad():
        weight = model.get_parameter("0.weight")
        weight[:, 16:] = weight[:, :16]
    assert only(lint(model), "TI302").message == "the 32 columns are 2 equal blocks of 16"


def test_units_that_are_zero() -> None:
    model = Net()
    with torch.no_grad():
        model.head.weight[[3, 9]] = 0
    assert only(lint(model), "TI303").message == "2 of 50 units are zero throughout: 3, 9"


def test_copies_on_purpose_are_no_error() -> None:
    class Distilled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
            self.teacher = copy.deepcopy(self.student)

    findings = lint(Distilled())
    assert [(one.code, one.severity, one.site) for one in findings] == [("TI301", "warning", "student")]


def test_some_equal_rows_are_a_warning() -> None:
    model = nn.Linear(32, 24)
    with torch.no_grad():
        model.weight[20] = model.weight[3]
        model.weight[21] = model.weight[4]
    assert found(model, "TI302") == [("warning", "weight", "2 rows of 24 repeat others: 20 is 3")]


def test_copies_of_a_parametrized_layer() -> None:
    layer = parametrizations.weight_norm(nn.Linear(8, 8))
    copies = nn.Sequential(layer, copy.deepcopy(layer))
    assert [(severity, site) for severity, site, _ in found(copies, "TI301")] == [("error", "0")]


def test_equal_rows_of_few_digits_are_chance() -> None:
    model = nn.Embedding(4000, 2).to(torch.bfloat16)
    assert len(model.weight.unique(dim=0)) < 4000
    assert found(model, "TI302") == []


def test_kernels_that_are_equal_by_a_formula_are_no_finding() -> None:
    model = nn.ConvTranspose2d(8, 8, 4, groups=8)
    ramp = torch.tensor([0.25, 0.75, 0.75, 0.25])
    model.weight.data = ramp.outer(ramp).expand(8, 1, 4, 4).contiguous()
    assert tuple(lint(model)) == ()


def test_dead_units_along_the_second_dimension() -> None:
    model = nn.ConvTranspose2d(8, 6, 3)
    with torch.no_grad():
        model.weight[:, 4] = 0
    assert found(model, "TI303") == [("warning", "weight", "1 of 6 units are zero throughout: 4")]


@pytest.mark.parametrize(
    ("layer", "groups", "dead"),
    [
        (nn.Conv2d(8, 8, 3, groups=8, bias=False), 1, "7 of 8 units are zero throughout: 1, 2, 3, 4, 5 and 2 more"),
        (nn.Conv1d(6, 12, 3, groups=3, bias=False), 1, "10 of 12 units are zero throughout: 2, 3, 4, 5, 6 and 5 more"),
        (nn.Conv2d(8, 16, 3, groups=4, bias=False), 2, "12 of 16 units are zero throughout: 2, 3, 4, 5, 6 and 7 more"),
    ],
)
def test_a_dirac_kernel_of_other_groups(layer: nn.Module, groups: int, dead: str) -> None:
    weight = layer.get_parameter("weight")
    nn.init.dirac_(weight, groups)
    assert only(lint(layer), "TI303").message == dead
    nn.init.dirac_(weight, layer.groups)  # type: ignore[arg-type]
    assert tuple(lint(layer)) == ()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3, bias=False),
        nn.Conv2d(8, 4, 3, bias=False),
        nn.ConvTranspose2d(8, 16, 3, groups=4, bias=False),
    ],
)
def test_outputs_that_have_no_input_of_their_own(layer: nn.Module) -> None:
    nn.init.dirac_(layer.get_parameter("weight"), layer.groups)  # type: ignore[arg-type]
    assert tuple(lint(layer)) == ()


def repeated(shape: tuple[int, ...], step: int, axis: int = 0, **options: Any) -> Tensor:
    """Drawn blocks of so many rows, or columns, until the shape is full."""
    block = torch.randn([step if at == axis else size for at, size in enumerate(shape)], **options)
    return torch.cat([block] * (shape[axis] // step), dim=axis)


@pytest.mark.parametrize(
    ("layer", "step", "axis", "severity", "message"),
    [
        (nn.Linear(64, 64), 1, 0, "error", "the 64 rows are all equal"),
        (nn.Linear(64, 64), 2, 0, "error", "the 64 rows are 32 equal blocks of 2"),
        (nn.Linear(64, 64), 1, 1, "error", "the 64 columns are all equal"),
        (nn.Linear(3, 5), 1, 0, "error", "the 5 rows are all equal"),
        (nn.Linear(3, 8), 2, 0, "warning", "the 8 rows are 4 equal blocks of 2"),
        (nn.Linear(5, 4), 1, 1, "warning", "the 5 columns are all equal"),
        *((nn.Conv2d(3, n, 3), 1, 0, "error", f"the {n} rows are all equal") for n in (4, 16, 64)),
        (nn.Conv2d(1, 6, 2), 1, 0, "error", "the 6 rows are all equal"),
        (nn.Conv2d(8, 8, 3, groups=8), 1, 0, "warning", "the 8 rows are all equal"),
        (nn.ConvTranspose2d(8, 6, 3), 1, 1, "error", "the 6 columns are all equal"),
        (nn.Linear(64, 48, dtype=torch.bfloat16), 2, 0, "error", "the 48 rows are 24 equal blocks of 2"),
        (nn.Linear(64, 48, dtype=torch.complex64), 1, 0, "error", "the 48 rows are all equal"),
        (nn.Embedding(64, 48), 1, 0, "error", "the 64 rows are all equal"),
    ],
)
def test_units_that_are_all_equal(layer: nn.Module, step: int, axis: int, severity: str, message: str) -> None:
    weight = layer.get_parameter("weight")
    weight.data = repeated(tuple(weight.shape), step, axis, dtype=weight.dtype) / 8
    assert found(layer, "TI302") == [(severity, "weight", message)]


def test_equal_filters_that_a_formula_made_are_no_finding() -> None:
    blur, identities, fixed = nn.Conv2d(4, 4, 3, groups=4), nn.Linear(8, 24), nn.Conv2d(1, 4, 3)
    blur.weight.data = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])).expand(4, 1, 3, 3) / 16
    identities.weight.data = torch.eye(8).repeat(3, 1)
    fixed.weight.data = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]).expand(4, 1, 3, 3).clone()
    fixed.weight.requires_grad_(False)
    assert found(nn.ModuleList([blur, identities, fixed]), "TI302") == []
    fixed.weight.requires_grad_(True)
    assert [severity for severity, *_ in found(fixed, "TI302")] == ["error"]  # its units learn alike


def change_pair(change: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32) -> nn.Module:
    first = nn.Linear(32, 24, dtype=dtype)
    weight = change(first.weight.detach().clone()).contiguous()
    second = nn.Linear(weight.shape[1], weight.shape[0], dtype=dtype)
    second.weight.data = weight
    return nn.ModuleDict({"first": first, "second": second})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: -w, {"times -1"}),
        (lambda w: w * 2, {"times 2", "times 0.5"}),
        (lambda w: w * math.pi, {"times 3.142", "times 0.3183"}),
        (lambda w: w.t(), {"in another order"}),
        (lambda w: -w.t(), {"times -1, in another order"}),
        (lambda w: w.flip(0), {"in another order"}),
        (lambda w: w[torch.randperm(24)], {"in another order"}),
        (lambda w: w[:12], {"one is the beginning of the other"}),
        (lambda w: w[:, :24], {"one is the beginning of the other"}),
        (lambda w: -w[:12, :30] / 4, {"times -4, one is the beginning of the other",
                                      "times -0.25, one is the beginning of the other"}),
    ],
)  # fmt: skip
def test_values_that_are_equal_but_for_a_change(change: Callable[[Tensor], Tensor], words: set[str]) -> None:
    ((severity, _, message),) = found(change_pair(change), "TI304")
    assert severity == "warning"
    assert message.partition(" (")[2].removesuffix(")") in words


def test_one_seed_for_layers_of_several_shapes() -> None:
    layers: list[Any] = [nn.Linear(64, 64), nn.Linear(64, 32), nn.Linear(32, 100), nn.Conv2d(3, 8, 3)]
    for layer in layers:
        torch.manual_seed(3)
        layer.reset_parameters()
    ((_, _, message),) = [one for one in found(nn.ModuleList(layers), "TI304") if one[1].endswith("weight")]
    assert message.count("one is the beginning of the other") == 3


def test_the_axes_of_a_kernel_that_were_exchanged() -> None:
    first, second = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
    second.weight.data = first.weight.data.permute(1, 0, 3, 2) * 0.5
    ((_, _, message),) = found(nn.Sequential(first, second), "TI304")
    assert "in another order" in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_a_change_that_rounds_nothing_is_seen_in_any_dtype(dtype: torch.dtype) -> None:
    assert len(found(change_pair(lambda w: w.neg(), dtype), "TI304")) == 1
    assert found(change_pair(lambda w: torch.randn(24, 32).to(dtype) / 8, dtype), "TI304") == []


def test_formulas_and_constants_are_no_copies_of_each_other() -> None:
    ramps = nn.ParameterList(nn.Parameter(torch.arange(32.0) * factor) for factor in (1, 2, -1))
    ramps.extend([nn.Parameter(torch.eye(8)), nn.Parameter(-torch.eye(8)), nn.Parameter(torch.ones(64))])
    assert tuple(lint(ramps)) == ()


def test_thousand_layers_of_their_own_are_no_copies() -> None:
    assert found(nn.ModuleList(nn.Linear(7, 5) for _ in range(1000)), "TI304") == []
