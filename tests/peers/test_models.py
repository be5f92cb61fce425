"""One recipe, unchanged, on models that nobody here wrote."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from tests.peers.foreign import MODELS
from torchinit import Kinds, Name, Normal, Plan, Rule, Zeros, initialize, load_recipe, plan, sites
from torchinit.model.names import normalize
from torchinit.plans import make_plan
from torchinit.rules import Recipe

RECIPES: Mapping[str, Recipe] = {
    "general": load_recipe("general"),
    # Reaches every parameter, so that nothing can hide among the untouched.
    "everything": (Rule(Name("**"), Normal(std=0.02)), Rule(Kinds("bias"), Zeros(), optional=True)),
}

both = pytest.mark.parametrize("recipe", RECIPES)
each = pytest.mark.parametrize("name", MODELS)


def parameters_of(model: nn.Module) -> set[str]:
    """Every name of every parameter, without what parametrizations put into it."""
    return {normalize(name) for name, _ in model.named_parameters(remove_duplicate=False)}


def names_in(made: Plan) -> set[str]:
    """Every name of every parameter that the plan writes, skips or leaves."""
    accounted = [step.site for step in made] + [skip.site for skip in made.skipped] + list(made.untouched)
    return {view.name for site in accounted for view in site.views if view.kind == "parameter"}


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@both
@each
def test_every_parameter_is_planned_or_listed(name: str, recipe: str) -> None:
    model = MODELS[name]()
    made = plan(model, RECIPES[recipe])
    assert names_in(made) == parameters_of(model)
    assert len(made) > 0
    if recipe == "everything":
        assert made.check(complete=True).skipped == ()


@both
@each
def test_values_are_as_planned_and_repeat_by_seed(name: str, recipe: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    before, generator = state_of(model), torch.get_rng_state()
    report = initialize(model, RECIPES[recipe], seed=3).assert_ok()
    assert torch.equal(torch.get_rng_state(), generator)

    torch.manual_seed(1)
    again = MODELS[name]()
    assert initialize(again, RECIPES[recipe], seed=3).problems == ()
    written = {alias for record in report for alias in (record.name, *record.aliases)}
    other = state_of(again)
    for key, tensor in model.state_dict().items():
        if normalize(key) in written:
            assert torch.equal(tensor, other[key]), key
        else:
            assert torch.equal(tensor, before[key]), f"{key} was not to be touched"


@both
@each
def test_plan_on_meta_is_the_plan_in_memory(name: str, recipe: str) -> None:
    with torch.device("meta"):
        sketch = MODELS[name]()
    assert sum(tensor.is_meta for tensor in sketch.parameters()) > 1  # a few models name the CPU themselves
    assert make_plan(sites(sketch), RECIPES[recipe]) == make_plan(sites(MODELS[name]()), RECIPES[recipe])


@each
def test_plan_survives_json(name: str) -> None:
    made = plan(MODELS[name](), RECIPES["general"])
    assert Plan.from_json(made.to_json()) == made
