"""Reach: counted by hand on models small enough to count, in plans, reports, JSON and the log."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests import strategies
from torchinit import (
    Kaiming,
    Leaf,
    Name,
    Normal,
    Plan,
    PlanError,
    Report,
    Rule,
    Zeros,
    initialize,
    lint,
    load_recipe,
    materialize,
    sites,
)
from torchinit.api import draft as plan  # whatever is wrong with it: a scheme that is for other models is an error
from torchinit.plans import make_plan
from torchinit.plans.plan import Reach
from torchinit.recipes import recipe_to_data, schemes


def cnn() -> nn.Sequential:
    """Of 28 parameters the last two are those of a linear layer."""
    layers = [module for _ in range(6) for module in (nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())]
    tail = [nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)]
    return nn.Sequential(*layers, *tail)


CONV, NORM, HEAD = 8 * 8 * 9 + 8, 2 * 8, 8 * 2 + 2
ALL = 7 * CONV + 6 * NORM + HEAD
LLAMA = 6 * NORM + HEAD  # the scheme reaches every norm and every linear layer


def test_a_scheme_says_what_it_reached() -> None:
    (reach,) = plan(cnn(), "llama").reach
    assert (reach.scheme, reach.parameters, reach.elements) == ("llama", (14, 28), (LLAMA, ALL))
    assert str(reach) == "scheme 'llama' reached 14 of 28 parameters, 2.7 % of the elements"
    assert reach.is_low
    better = [(other.scheme, other.parameters) for other in reach.better]
    assert better == [("general", (28, 28)), ("resnet", (28, 28))]
    assert (
        "scheme 'llama' reached 14 of 28 parameters, 2.7 % of the elements, less than a half of the model."
        " Schemes that reach more of it: 'general' (28 of 28), 'resnet' (28 of 28)"
    ) in plan(cnn(), "llama").summary().splitlines()


def test_all_of_it() -> None:
    (reach,) = plan(cnn(), "general").reach
    assert str(reach) == reach.summary() == "scheme 'general' reached 28 of 28 parameters, 100 % of the elements"
    assert not reach.is_low
    assert reach.better == ()


def test_rules_of_ones_own_are_not_the_schemes() -> None:
    own = [Rule(Leaf("weight"), Normal(std=0.1)), Rule(Leaf("bias"), Zeros())]
    (before,) = plan(cnn(), [*own, *load_recipe("llama")]).reach
    (after,) = plan(cnn(), [*load_recipe("llama"), *own]).reach
    assert before.parameters == after.parameters == (14, 28)  # that a later rule writes over them changes nothing
    both = plan(cnn(), [*load_recipe("llama"), *load_recipe("resnet")]).reach
    assert [(reach.scheme, reach.parameters) for reach in both] == [("llama", (14, 28)), ("resnet", (28, 28))]
    assert plan(cnn(), own).reach == ()


def test_a_scheme_that_reaches_nothing_is_no_less_a_scheme() -> None:
    """Every rule of `general` may match nothing."""
    model = nn.ParameterDict({"scale": torch.ones(3)})
    assert plan(model, "general").reach == (Reach("general", (0, 1), (0, 3)),)
    assert plan(model, "general").summary().splitlines()[-1] == (
        "scheme 'general' reached 0 of 1 parameter, 0.0 % of the elements, less than a half of the model."
        " No scheme that comes with torchinit reaches more of it: give the rest rules of their own"
    )


def test_what_does_not_count() -> None:
    model = cnn()
    for parameter in model[:-1].parameters():
        parameter.requires_grad_(False)
    (reach,) = plan(model, "llama").reach
    assert (reach.parameters, reach.elements) == ((2, 2), (HEAD, HEAD))  # neither frozen parameters nor buffers
    empty = nn.ParameterList([torch.ones(0, 3)])
    for nothing in (nn.Sequential(), nn.BatchNorm1d(3, affine=False), empty):
        (reach,) = plan(nothing, "general").reach
        assert (reach.parameters, reach.elements, reach.is_low) == ((0, 0), (0, 0), False)
    assert plan(nn.Embedding(3, 4), "general").reach == (Reach("general", (1, 1), (12, 12)),)


def test_a_tied_parameter_counts_once() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    model[1].weight = model[0].weight
    assert plan(model, "gpt2").reach == (Reach("gpt2", (2, 2), (25, 25)),)


def test_low_in_parameters_or_in_elements() -> None:
    assert Reach("a", (4, 10), (90, 100)).is_low
    assert Reach("a", (9, 10), (49, 100)).is_low
    assert not Reach("a", (5, 10), (50, 100)).is_low


@pytest.mark.slow("hypothesis draws models and recipes")
@given(strategies.models(), st.sampled_from(sorted(schemes())))
def test_what_is_reached_is_what_is_planned(model: nn.Module, scheme: str) -> None:
    made = make_plan(sites(model), load_recipe(scheme))
    (reach,) = made.reach
    assert reach.parameters == (len(made), len(list(model.parameters())))
    assert reach.elements == (sum(step.site.numel for step in made), sum(p.numel() for p in model.parameters()))
    for better in plan(model, scheme).reach[0].better:
        (alone,) = make_plan(sites(model), load_recipe(better.scheme)).reach
        assert (alone, alone.share > reach.share) == (better, True)


# --- where it is told ------------------------------------------------------------------------------------------------


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "scheme" in record.getMessage()]


@pytest.mark.parametrize("recipe", ["llama", [*load_recipe("llama"), Rule(Name("0.weight"), Kaiming())]])
def test_initialize_warns(recipe: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "torchinit"), pytest.raises(PlanError, match="the scheme 'llama' needs"):
        initialize(cnn(), recipe, seed=0)
    assert warned(caplog) == [plan(cnn(), recipe).reach[0].summary()]


def test_the_report_says_it_again(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "torchinit"):
        report = initialize(cnn(), {"type": "scheme", "name": "llama", "optional": True}, seed=0)
    (text,) = warned(caplog)
    assert text == report.reach[0].summary()
    assert text in report.summary().splitlines()


def test_nobody_is_warned_of_a_good_choice(caplog: pytest.LogCaptureFixture) -> None:
    report = initialize(cnn(), "general", seed=0)
    assert "scheme 'general' reached 28 of 28 parameters, 100 % of the elements" in report.summary().splitlines()
    assert warned(caplog) == []


def test_materialize_warns_before_it_names_each_parameter(caplog: pytest.LogCaptureFixture) -> None:
    with torch.device("meta"):
        model = cnn()
    with pytest.raises(PlanError, match=r"no rule for 0\.weight"):
        materialize(model, "llama", seed=0, complete=True)
    assert [text[:53] for text in warned(caplog)] == ["scheme 'llama' reached 14 of 28 parameters, 2.7 % of "]
    caplog.clear()
    assert materialize(model, "general", seed=0).reach[0].parameters == (28, 28)
    assert warned(caplog) == []


def test_lint_takes_a_scheme() -> None:
    model = cnn()
    report = initialize(model, "general", seed=0)
    assert tuple(lint(model, recipe="general", report=report)) == ()


def test_as_data() -> None:
    made = plan(cnn(), "llama")
    assert Plan.from_json(made.to_json()) == made
    assert made.to_dict()["reach"][0]["parameters"] == [14, 28]  # type: ignore[index]  # plain data
    report = initialize(cnn(), {"type": "scheme", "name": "llama", "optional": True}, seed=0)
    assert Report.from_json(report.to_json()) == report
    data = json.loads(report.to_json())
    assert data["reach"][0]["better"][0]["scheme"] == "general"
    del data["reach"]
    assert Report.from_json(json.dumps(data)).reach == ()


def test_rules_know_their_scheme() -> None:
    assert {rule.scheme for rule in load_recipe("bert")} == {"bert"}
    plain = [Rule(rule.where, rule.init, rule.label, rule.optional) for rule in load_recipe("bert")]
    assert list(load_recipe("bert")) == plain  # it is no part of what a rule is
    made = plan(nn.Linear(2, 2), "general")
    assert {step.rule.scheme for step in (*made, *Plan.from_json(made.to_json()))} == {"general"}
    assert "scheme" not in json.dumps(recipe_to_data(load_recipe("bert")))  # written out it is a recipe of one's own
