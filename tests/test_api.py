"""The two main functions: what they take, what they leave alone, what they say."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchinit import (
    ConfigError,
    Constant,
    Kaiming,
    Layer,
    Leaf,
    Name,
    Normal,
    Orthogonal,
    PlanError,
    Rule,
    RunError,
    TruncNormal,
    Uniform,
    initialize,
    plan,
)

WEIGHTS = Rule(Layer("Linear") & Leaf("weight"), Normal(std=0.02))


def net() -> Any:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    "recipe",
    [
        WEIGHTS,
        [WEIGHTS],
        (WEIGHTS,),
        {"rules": [{"type": "Normal", "std": 0.02, "layer": "Linear", "bias": "keep"}]},
        {"type": "Normal", "std": 0.02, "name": "*.weight"},
    ],
)
def test_every_form_of_a_recipe_gives_the_same_values(recipe: Any) -> None:
    one, other = net(), net()
    initialize(one, WEIGHTS, seed=3)
    initialize(other, recipe, seed=3)
    assert torch.equal(one[0].weight, other[0].weight)
    assert torch.equal(one[2].weight, other[2].weight)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[[rules]]\ntype = "Normal"\nstd = 0.02\nname = "*.weight"\n')
    assert plan(net(), path)["0.weight"].fill == plan(net(), str(path))["2.weight"].fill == Normal(0.0, 0.02)


@pytest.mark.parametrize("recipe", [3, None, [3.0, WEIGHTS], (3,)])
def test_what_is_no_recipe(recipe: Any) -> None:
    with pytest.raises(TypeError, match="a recipe is a file, a dict with 'rules', entries, or rules, but got"):
        initialize(net(), recipe)


def test_a_seed_leaves_torchs_generator_alone() -> None:
    recipe = [WEIGHTS, Rule(Name("2.weight"), Orthogonal()), Rule(Leaf("bias"), TruncNormal())]
    model = net()
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    initialize(model, recipe, seed=1)
    assert torch.equal(torch.rand(4), expected)


def test_without_a_seed_the_values_are_those_of_hand_written_code() -> None:
    ours, theirs = net(), net()
    torch.manual_seed(4)
    initialize(ours, [Rule(Leaf("weight"), Kaiming(mode="fan_in")), Rule(Name("2.weight"), Uniform(-1, 1))])
    torch.manual_seed(4)
    for layer in (theirs[0], theirs[2]):
        nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
    nn.init.uniform_(theirs[2].weight, -1, 1)
    assert torch.equal(ours[0].weight, theirs[0].weight)
    assert torch.equal(ours[2].weight, theirs[2].weight)


@settings(max_examples=30, deadline=None)
@given(st.permutations(["a", "b", "c", "d"]), st.sets(st.sampled_from("abcd"), min_size=1))
def test_values_belong_to_names(order: list[str], kept: set[str]) -> None:
    def model(names: list[str]) -> Any:
        return nn.ModuleDict({name: nn.Linear(5, 5) for name in names})

    whole, part = model(["a", "b", "c", "d"]), model([name for name in order if name in kept])
    initialize(whole, WEIGHTS, seed=9)
    initialize(part, WEIGHTS, seed=9)
    assert all(torch.equal(whole[name].weight, part[name].weight) for name in part)


def test_a_rule_that_matches_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rules = [WEIGHTS, Rule(Layer("Lineer"), Constant(1.0))]
    report = initialize(net(), rules, seed=0)
    assert "did you mean 'Linear' (2 modules)?" in report.unused[0]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    with pytest.raises(PlanError, match="set optional = true"):
        initialize(net(), rules, seed=0, strict=True)


def test_complete_names_what_no_rule_covers() -> None:
    with pytest.raises(PlanError, match=r"no rule for 0\.bias"):
        plan(net(), WEIGHTS, complete=True)


def test_a_meta_model_is_planned_and_not_written() -> None:
    with torch.device("meta"):
        model = net()
    assert plan(model, WEIGHTS)["0.weight"].fill == Normal(0.0, 0.02)
    with pytest.raises(RunError, match=r"0\.weight: is on the meta device"):
        initialize(model, WEIGHTS, seed=0)


def test_a_bad_recipe_writes_nothing() -> None:
    model = net()
    before = model[0].weight.clone()
    with pytest.raises(ConfigError, match="2 mistakes"):
        initialize(model, {"rules": [{"type": "Nrmal", "name": "a"}, {"type": "Normal", "sdt": 1, "name": "a"}]})
    with pytest.raises(PlanError, match=r"'0\.bias' has shape \(8,\)"):
        initialize(model, [WEIGHTS, Rule(Leaf("bias"), Kaiming())], seed=0)
    assert torch.equal(before, model[0].weight)


def test_stats_and_progress() -> None:
    seen: list[str] = []
    report = initialize(net(), WEIGHTS, seed=0, stats=False, progress=lambda step: seen.append(step.site.name))
    assert seen == ["0.weight", "2.weight"]
    assert report["0.weight"].measured is None
