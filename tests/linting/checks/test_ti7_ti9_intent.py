"""TI7: recipes that miss their model, and values that are not those that a recipe or a report names."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils import parametrizations

import torchinit
from tests.linting.models import Net, only
from torchinit import Constant, Kaiming, Layer, Leaf, Name, Normal, Rule, lint, plan
from torchinit.initializers import Prior


def test_init_twice_undoes_the_special_case() -> None:
    model = Net()
    rules = [Rule(Layer("Linear") & Leaf("weight"), Kaiming()), Rule(Name("head.weight"), Normal(std=0.001))]
    report = torchinit.initialize(model, rules, seed=0)

    def init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)

    model.apply(init_weights)
    assert {one.site for one in lint(model, report=report) if one.code == "TI706"} == {
        "blocks.0.1.weight", "blocks.0.2.weight", "blocks.1.1.weight", "blocks.1.2.weight", "head.weight"
    }  # fmt: skip


def test_weight_norm_of_today_untouched_by_init() -> None:
    layer = parametrizations.weight_norm(nn.Linear(8, 8))
    rule = Rule(Leaf("weight"), Normal(std=1.0))
    with torch.no_grad():
        nn.init.normal_(layer.weight, std=1.0)  # a temporary
    assert only(lint(layer, recipe=rule), "TI704").site == "weight"


def test_prior_lost() -> None:
    model = Net()
    model.head = nn.Linear(32, 50)
    nn.init.zeros_(model.head.bias)
    found = only(lint(model, recipe=Rule(Name("head.bias"), Prior(0.01)), ignore=["TI106"]), "TI704")
    assert (found.site, "mean is 0, planned -4.59512" in found.message) == ("head.bias", True)


def test_transposed_convolution_by_torch_s_fan() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(16, 32, 3))
    rules = [Rule(Layer("ConvTranspose2d") & Leaf("weight"), Kaiming(mode="fan_in")), Rule(Leaf("bias"), Constant(0))]
    torchinit.initialize(model, rules, seed=0)
    found = only(lint(model, recipe=rules), "TI703")
    assert found.message == "fans by torch's count 288 in, 144 out; true 144 in, 288 out; used: torch"


def test_rule_misspelt() -> None:
    found = only(lint(Net(), recipe=Rule(Layer("Liner"), Normal())), "TI701")
    assert "did you mean 'Linear'" in found.message


def test_general_rule_after_the_special_one() -> None:
    model = Net()
    rules = [Rule(Name("head.weight"), Constant(0)), Rule(Layer("Linear") & Leaf("weight"), Normal(std=0.02))]
    torchinit.initialize(model, rules, seed=0)
    found = only(lint(model, recipe=rules), "TI702")
    assert "rules[0]" in found.message
    assert "matches 1 site, and all go to rules[1]" in found.message


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
