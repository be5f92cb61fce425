"""Plans as JSON, both ways."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests import strategies
from torchinit import ConfigError, Kinds, Layer, Leaf, Name, Normal, Plan, Rule, sites
from torchinit.initializers import Fill
from torchinit.initializers.expressions import Computed
from torchinit.model import Site
from torchinit.plans import make_plan
from torchinit.recipes import INITIALIZERS, decode_recipe


@dataclass(frozen=True)
class Halved:
    """An initializer of somebody else, registered below."""

    inner: Normal

    def resolve(self, site: Site) -> Fill | None:
        return Normal(std=self.inner.std / 2)


@pytest.fixture
def halved() -> Iterator[None]:
    INITIALIZERS.register(Halved)
    yield
    del INITIALIZERS._classes["Halved"]


@pytest.mark.slow("hypothesis draws values of every class")
@given(strategies.models(), st.lists(strategies.rules(), max_size=4))
def test_there_and_back(model: nn.Module, rules: list[Rule]) -> None:
    made = make_plan(sites(model), rules)
    again = Plan.from_json(made.to_json())
    assert again == made
    assert [step.rule.origin for step in again] == [step.rule.origin for step in made]
    assert not made.diff(again)


def test_every_kind_of_site() -> None:
    tied = nn.Linear(4, 4)
    model = nn.Sequential(
        nn.Embedding(5, 4, padding_idx=0), tied, tied, nn.BatchNorm1d(4), nn.LSTM(4, 2, proj_size=1), nn.LazyLinear(3),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)), nn.Linear(2, 2, dtype=torch.complex64),
    )  # fmt: skip
    made = make_plan(sites(model), [Rule(Name("**"), Normal(std=0.02), buffers=True)])
    assert made.skipped
    assert made.problems
    assert Plan.from_json(made.to_json()) == made


def test_expressions_stay_expressions() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4)) for _ in range(3)))
    rule = Rule(Layer("Linear") & Leaf("weight"), Computed(Normal, std="1 / sqrt(depth * fan_in)", fans="true"))
    again = Plan.from_json(make_plan(sites(model), [rule]).to_json())
    assert again["0.0.weight"].rule == rule


@pytest.mark.usefixtures("halved")
def test_registered_classes() -> None:
    made = make_plan(sites(nn.Linear(2, 2)), [Rule(Name("**"), Halved(Normal(std=0.5)))])
    assert Plan.from_json(made.to_json()) == made


def test_a_class_without_a_name_is_refused() -> None:
    made = make_plan(sites(nn.Linear(2, 2)), [Rule(Name("**"), Halved(Normal()))])
    with pytest.raises(ConfigError, match="Halved is not registered as initializer"):
        made.to_json()


def test_a_plan_is_strict_json() -> None:
    text = make_plan(sites(nn.Linear(2, 2)), [Rule(Name("**"), Normal())]).to_json(indent=None)
    assert json.loads(text)["format"] == "torchinit-plan-1"
    assert "\n" not in text


def test_a_rule_of_many_steps_is_made_data_once() -> None:
    steps: Any = make_plan(sites(nn.Linear(2, 2)), [Rule(Name("**"), Normal())]).to_dict()["steps"]
    assert steps[0]["rule"] is steps[1]["rule"]
    assert steps[0]["rule"]["where"] == {"type": "Name", "globs": ["**"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "this is not a plan: Expecting"),
        ("[" * 100_000, "this is not a plan: maximum recursion"),
        ("[]", "this is not a plan: it does not say 'format': 'torchinit-plan-1'"),
        ('{"format": "torchinit-plan-2"}', "this is not a plan: it does not say 'format'"),
        ('{"format": "torchinit-plan-1", "stops": []}', "1 mistake in the plan\n  stops: .*did you mean 'steps'?"),
        ('{"format": "torchinit-plan-1", "steps": [{"fill": 3}]}', "3 mistakes in the plan"),
    ],
)
def test_what_is_no_plan(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Plan.from_json(text)


OLD_SITE = {
    "name": "0.weight", "shape": [3, 2], "dtype": "float32", "owner": {"name": "Linear", "bases": ["Module"]},
    "owner_name": "0", "kind": "parameter", "role": "weight", "layout": None,
}  # fmt: skip
OLD_WHERE = {
    "type": "All",
    "of": [
        {"type": "Any", "of": [{"type": "Roles", "roles": ["weight"]}, {"type": "Leaf", "names": ["nothing"]}]},
        {"type": "Not", "where": {"type": "Roles", "roles": ["bias", "other"]}},
    ],
}
NORMAL = {"type": "Normal", "std": 0.02}


def test_plans_with_the_names_of_before_are_read() -> None:
    rule = {"where": OLD_WHERE, "init": NORMAL, "origin": "rules[0]"}
    aliased = {**OLD_SITE, "aliases": [{**OLD_SITE, "name": "1.weight", "role": "bias"}]}
    data = {
        "format": "torchinit-plan-1",
        "steps": [{"site": aliased, "fill": NORMAL, "rule": rule}],
        "untouched": [{**OLD_SITE, "name": "2.weight", "role": "other"}],
    }
    made = Plan.from_json(json.dumps(data))
    assert made["0.weight"].rule.where == (Kinds("weight") | Leaf("nothing")) & ~Kinds("bias", "other")
    assert [view.parameter_kind for view in made["0.weight"].site.views] == ["weight", "bias"]
    assert made.untouched[0].parameter_kind == "other"
    assert {view.role for site in (made["0.weight"].site, *made.untouched) for view in site.views} == {None}
    assert Plan.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"type": "Roles", "roles": ["weight"]}, "Roles has no argument 'roles'"),
        ({"type": "Any", "of": []}, "unknown selector 'Any'"),
    ],
)
def test_recipes_are_written_with_the_names_of_today(where: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        decode_recipe({"rules": [{"where": where, "init": NORMAL}]})
