"""TI3: layers, blocks and rows that hold the same drawn values."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
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
