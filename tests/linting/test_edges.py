"""Edges of single checks: each branch that decides how severe a finding is, or that there is none."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations

import torchinit
from torchinit import Layer, Leaf, Name, Normal, Rule, lint, plan


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def found(model: nn.Module, code: str) -> list[tuple[str, str, str]]:
    return [(one.severity, one.site, one.message) for one in lint(model, select=[code])]


# --- filling ---------------------------------------------------------------------------------------------------------


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


# --- sameness --------------------------------------------------------------------------------------------------------


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


# --- scales ---------------------------------------------------------------------------------------------------------


def test_constants_that_are_no_mistake() -> None:
    blur = nn.Conv2d(8, 8, 3, groups=8)
    nn.init.constant_(blur.weight, 1 / 9)
    assert found(blur, "TI401") == []
    fixed = nn.Linear(8, 8)
    nn.init.constant_(fixed.weight, 1 / 8)
    assert [severity for severity, *_ in found(fixed, "TI401")] == ["error"]
    fixed.weight.requires_grad_(False)
    assert [severity for severity, *_ in found(fixed, "TI401")] == ["note"]


def test_what_is_a_norm_by_name() -> None:
    class NormalHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(64))

    class RMSNormalization(NormalHead):
        pass

    assert found(NormalHead(), "TI402") == []
    assert [severity for severity, *_ in found(RMSNormalization(), "TI402")] == ["warning"]


# --- formats ---------------------------------------------------------------------------------------------------------


def test_a_module_on_two_devices() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with FakeTensorMode():  # a device that need not be there
        model[0].bias = nn.Parameter(torch.empty(4, device="cuda"))
    assert found(model, "TI504") == [("error", "0", "weight cpu but bias cuda:0")]


def test_float16_that_overflows_when_squared() -> None:
    model = nn.Linear(4, 4).half()
    with torch.no_grad():
        model.weight[0, 0] = 300
    assert found(model, "TI502") == [("warning", "weight", "holds 300, and float16 ends at 65504")]
    assert found(model.to(torch.bfloat16), "TI502") == []


def test_state_spaces_and_scales_may_have_dtypes_of_their_own() -> None:
    model = nn.Linear(4, 4).to(torch.bfloat16)
    model.register_parameter("A_log", nn.Parameter(torch.zeros(4)))
    model.weight = nn.Parameter(model.weight.to(torch.float8_e4m3fn), requires_grad=False)
    assert found(model, "TI503") == []


# --- ties ------------------------------------------------------------------------------------------------------------


class Declared(nn.Module):
    """What a transformers model tells of its ties, in the way of version 5 or of those before."""

    def __init__(self, keys: object, tie: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20)
        self.config = SimpleNamespace(tie_word_embeddings=tie)
        self._tied_weights_keys = keys

    def get_input_embeddings(self) -> nn.Module:
        return self.embed


@pytest.mark.parametrize(
    ("keys", "site", "other"),
    [
        ({"head.weight": "embed.weight"}, "head.weight", "embed.weight"),
        (["head.weight", "head.bias"], "head.weight", "embed.weight"),
    ],
)
def test_ties_that_are_declared(keys: object, site: str, other: str) -> None:
    model = Declared(keys)
    text = f"should be one tensor with {other}, and is not"
    assert found(model, "TI601") == [("error", site, text)]
    assert found(nn.Sequential(model), "TI601") == [
        ("error", f"0.{site}", text.replace(other, f"0.{other}"))
    ]  # fmt: skip
    model.head.weight = model.embed.weight
    assert found(model, "TI601") == []
    assert found(Declared(keys, tie=False), "TI601") == []
    assert found(Declared({"gone.weight": "embed.weight"}), "TI601") == []


def test_weight_norm_that_was_not_touched() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = torch.nn.utils.weight_norm(nn.Linear(8, 8))
    assert found(layer, "TI603") == []


# --- intents ---------------------------------------------------------------------------------------------------------


def test_a_plan_of_another_model() -> None:
    rule = Rule(Leaf("weight"), Normal(std=0.02))
    other = plan(nn.Linear(4, 8), rule)
    (seen,) = lint(nn.Linear(8, 8), recipe=other, select=["TI704"])
    assert seen.message == "has shape (8, 8), planned (8, 4): rules[0] Normal(std=0.02)"


def test_complex_values_are_compared_by_their_parts() -> None:
    model = nn.ParameterDict({"z": nn.Parameter(torch.zeros(40, 40, dtype=torch.complex64))})
    rule = Rule(Name("z"), Normal(std=0.02))
    torchinit.initialize(model, rule, seed=0)
    assert tuple(lint(model, recipe=rule)) == ()
    (seen,) = lint(model, recipe=Rule(Name("z"), Normal(std=0.03)))
    assert seen.code == "TI704"


def test_a_report_that_still_holds() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))
    report = torchinit.initialize(model, Rule(Layer("Linear"), Normal(std=0.02)), seed=0)
    assert tuple(lint(model, report=report)) == ()
    assert tuple(lint(copy.deepcopy(model).to(torch.bfloat16), report=report)) == ()
    model[0].register_parameter("weight", nn.Parameter(torch.zeros(64, 64)))
    assert [one.site for one in lint(model, report=report, select=["TI706"])] == ["0.weight"]
    short = torchinit.initialize(model, Rule(Layer("Linear"), Normal(std=0.02)), seed=0, stats=False)
    assert tuple(lint(model, report=short)) == ()
