"""Planner: which rule wins where, in which order it is written, and what is said of the rest."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.model.test_sites import Decoder, Table, Wrapper, quantized
from tests.strategies import models, selectors
from torchinit import (
    Constant,
    Kaiming,
    Kinds,
    Layer,
    Leaf,
    Name,
    Normal,
    Plan,
    PlanError,
    Pretrained,
    Regex,
    Rule,
    Uniform,
    Within,
    Xavier,
    sites,
)
from torchinit.initializers import Blocks, Fill, Initializer, Padded, Scaled
from torchinit.initializers.source import Resolution, is_verbatim, resolve_all
from torchinit.model import Site
from torchinit.plans import make_plan
from torchinit.rules import All

ONE, TWO, THREE = Constant(1.0), Constant(2.0), Constant(3.0)


def named(plan: Plan) -> dict[str, str]:
    return {step.site.name: str(step.fill) for step in plan}


@given(models(), st.lists(selectors(), max_size=5))
def test_the_last_rule_that_matches_wins(model: nn.Sequential, where: list[Any]) -> None:
    rules = [Rule(each, Constant(float(number)), padding=False) for number, each in enumerate(where)]
    plan = make_plan(sites(model), rules)
    for site in sites(model):
        matching = [rule for rule in rules if rule.matches(site)]
        if matching:
            step = plan[site.name]
            assert step.rule == matching[-1]
            assert step.over == tuple(matching[:-1])
        else:
            assert site in plan.untouched
    unused = {rule for rule, _ in plan.unused}
    assert unused == {rule for rule in rules if not any(map(rule.matches, sites(model)))}
    assert [step.turn for step in plan.writes] == list(range(len(plan.writes)))
    assert len(plan.writes) == sum(rule.matches(site) for rule in rules for site in sites(model))


def test_writes_go_rule_by_rule_and_children_first() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    plan = make_plan(sites(model), [Rule(Leaf("bias"), ONE), Rule(Leaf("weight"), TWO), Rule(Name("0.*"), THREE)])
    assert [(step.site.name, step.fill) for step in plan.writes] == [
        ("0.bias", ONE),
        ("1.bias", ONE),
        ("0.weight", TWO),
        ("1.weight", TWO),
        ("0.weight", THREE),
        ("0.bias", THREE),
    ]
    assert [(step.site.name, step.fill) for step in plan.overwritten] == [("0.bias", ONE), ("0.weight", TWO)]
    assert [step.site.name for step in plan] == ["1.bias", "1.weight", "0.weight", "0.bias"]


def test_an_initializer_may_decline() -> None:
    class OnlyMatrices:
        def resolve(self, site: Site) -> Fill | None:
            return ONE if len(site.shape) == 2 else None

    plan = make_plan(sites(nn.Linear(2, 2)), [Rule(All(), TWO), Rule(All(), OnlyMatrices())])
    assert named(plan) == {"weight": "Constant(1)", "bias": "Constant(2)"}


def test_buffers_only_where_the_rule_says_so() -> None:
    known = sites(nn.BatchNorm1d(3))
    assert named(make_plan(known, [Rule(All(), ONE)])) == {"weight": "Constant(1)", "bias": "Constant(1)"}
    plan = make_plan(known, [Rule(Leaf("running_var"), TWO, buffers=True)])
    assert named(plan) == {"running_var": "Constant(2)"}


def test_the_padding_row() -> None:
    known = sites(nn.Embedding(5, 3, padding_idx=1))
    assert make_plan(known, [Rule(All(), Normal())])["weight"].fill == Padded(Normal(), 1)
    assert make_plan(known, [Rule(All(), Normal(), padding=False)])["weight"].fill == Normal()


# -- tied weights ---------------------------------------------------------------------------------


def test_a_tied_tensor_is_written_once_for_each_module_that_holds_it() -> None:
    """As Module.apply would: twice, and the first time for nothing but the generator."""
    plan = make_plan(sites(Decoder()), [Rule(Leaf("weight"), Normal(), padding=False)])
    assert [step.site.name for step in plan.writes].count("embed.weight") == 2
    assert plan["head.weight"] == plan["embed.weight"]
    assert plan["embed.weight"].over == ()
    assert plan.problems == ()


def test_a_module_under_two_names_is_written_once() -> None:
    model = nn.Module()
    model.encoder = model.backbone = nn.Linear(2, 2)
    plan = make_plan(sites(model), [Rule(Leaf("weight"), Normal())])
    assert len(plan.writes) == 1
    assert make_plan(sites(model), [Rule(Name("backbone.*"), Normal())])["encoder.bias"].fill == Normal()


def test_sites_made_by_hand_need_no_turns() -> None:
    plan = make_plan([Site("a.weight", (2,)), Site("b.weight", (2,))], [Rule(Leaf("weight"), ONE)])
    assert [step.site.name for step in plan] == ["a.weight", "b.weight"]


def test_rules_that_disagree_about_a_tied_tensor() -> None:
    rules = [Rule(Layer("Embedding"), Normal(std=0.02)), Rule(Layer("Linear"), Uniform(), label="heads")]
    plan = make_plan(sites(Decoder()), rules)
    with pytest.raises(PlanError, match="1 problem in the plan; nothing was written") as caught:
        plan.check()
    assert caught.value.problems == (
        (
            "tied weights: rules[0] gives 'embed.weight' Normal(std=0.02), row 0 zero and rules[1] gives 'head.weight' "
            "Uniform(), row 0 zero, but they are one tensor. "
            "Add a rule that matches all of 'embed.weight', 'head.weight'"
        ),
    )
    settled = [*rules, Rule(Name("embed.weight", "head.weight"), Normal(std=0.5))]
    assert make_plan(sites(Decoder()), settled).problems == ()
    assert make_plan(sites(Decoder()), rules, ties="last")["embed.weight"].fill == Padded(Uniform(), 0)


def test_rules_that_agree_about_a_tied_tensor() -> None:
    rules = [Rule(Layer("Embedding"), Normal(std=0.02)), Rule(Layer("Linear"), Normal(std=0.02))]
    assert make_plan(sites(Decoder()), rules).problems == ()


def test_one_rule_that_sees_a_tied_tensor_in_two_ways() -> None:
    """A look-up has a fan-in of 1, a linear layer of 4."""
    plan = make_plan(sites(Decoder()), [Rule(Leaf("weight"), Kaiming(mode="fan_in", fans="true"))])
    assert "tied weights: rules[0] gives 'embed.weight' Normal(std=1.41421)" in plan.problems[0]


def test_views_of_one_memory() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    model[1].weight.data = model[0].weight.data.T
    both = make_plan(sites(model), [Rule(Leaf("weight"), Normal())])
    assert both.problems == (
        (
            "shared memory: '0.weight' and '1.weight' are views of one memory, and what is written to one changes the "
            "other. Let the rules match one of them"
        ),
    )
    one = make_plan(sites(model), [Rule(Name("0.weight"), Normal()), Rule(Leaf("bias"), ONE)]).check(complete=True)
    assert [(skip.site.name, skip.why) for skip in one.skipped] == [
        ("1.weight", "lies in the memory of '0.weight', which is written")
    ]


# -- what cannot be written -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "why", "way_out"),
    [
        (torch.zeros(2, 2, dtype=torch.int32), "holds whole numbers", "load it (Pretrained), or make it a buffer"),
        (torch.zeros(2, 2).to_sparse(), "is a sparse tensor", "initialize it while it is dense"),
        (torch.zeros(0, 2), "has no elements", "gather it first if it is partitioned, or register None"),
        (
            torch.zeros(2, 2, dtype=torch.float8_e8m0fnu),
            "is quantized",
            "initialize the model before it is quantized",
        ),
    ],
)
def test_skipped_with_a_reason(tensor: torch.Tensor, why: str, way_out: str) -> None:
    """Skipping is no covering: that a plan is complete has to be true."""
    model = Table(tensor, requires_grad=False)
    plan = make_plan(sites(model), [Rule(All(), Xavier())]).check(strict=True)
    assert [(skip.site.name, skip.why) for skip in plan.skipped] == [("weight", why)]
    assert len(plan) == len(plan.untouched) == 0
    text = re.escape(f"1 problem in the plan; nothing was written\n  weight {why}: {way_out}")
    for rules in ([Rule(All(), Xavier())], []):
        with pytest.raises(PlanError, match=text):
            make_plan(sites(model), rules).check(complete=True)


@pytest.mark.filterwarnings("ignore:.*quantiz")
def test_quantized_is_skipped() -> None:
    plan = make_plan(sites(Table(quantized(), requires_grad=False)), [Rule(All(), ONE)])
    assert plan.skipped[0].why == "is quantized"


def inference() -> nn.Module:
    with torch.inference_mode():
        return nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (nn.LazyLinear(3), r"rules[0] matches 'weight', which has no shape yet: run the model once on an example"),
        (Table(torch.zeros(1, 2).expand(3, 2)), "rules[0] matches 'weight', which has elements that share memory"),
        (inference(), "rules[0] matches 'weight', which was made in inference mode and cannot be written"),
    ],
)
def test_problems_of_a_site(model: nn.Module, problem: str) -> None:
    plan = make_plan(sites(model), [Rule(Leaf("weight"), ONE)])
    assert plan.problems[0].startswith(problem)
    with pytest.raises(PlanError, match="nothing was written"):
        plan.check()
    assert make_plan(sites(model), []).check().problems == ()


@pytest.mark.parametrize(
    ("init", "problem"),
    [
        (
            Xavier(),
            (
                "rules[0]: 'bias' has shape (3,): fans need at least 2 dimensions. "
                "Give it an initializer that does not depend on fans, for example Constant or Normal"
            ),
        ),
        (Blocks(ONE, 2), "rules[0] at 'bias': parts=2 do not make up the 3 of dimension 0 of 'bias'"),
        (Constant(1e39), "rules[0] at 'bias': Constant(1e+39) goes beyond 3.40282e+38, the largest number of float32"),
    ],
)
def test_problems_of_an_initializer(init: Any, problem: str) -> None:
    plan = make_plan(sites(nn.Linear(2, 3)), [Rule(Leaf("bias"), init)])
    assert plan.problems == (problem,)


def test_what_a_formula_makes_is_checked_like_what_is_given() -> None:
    half = nn.Linear(2, 2, dtype=torch.float16)
    plan = make_plan(sites(half), [Rule(Leaf("weight"), Xavier(gain=1e5))])
    assert "goes beyond 65504, the largest number of float16" in plan.problems[0]


def test_every_problem_at_once() -> None:
    model = nn.Sequential(OrderedDict(a=nn.LayerNorm(3), b=nn.LayerNorm(3), c=nn.Linear(3, 3, bias=False)))
    plan = make_plan(sites(model), [Rule(Leaf("weight"), Xavier()), Rule(Name("nix.*"), ONE)])
    with pytest.raises(PlanError, match="7 problems in the plan; nothing was written") as caught:
        plan.check(strict=True, complete=True)
    starts = [problem.split(":")[0].splitlines()[0] for problem in caught.value.problems]
    assert starts == [
        "rules[0]",
        "rules[0]",
        "rules[1] Name('nix.*') matches none of 5 names",
        "no rule for a.weight",
        "no rule for a.bias",
        "no rule for b.weight",
        "no rule for b.bias",
    ]
    assert "set optional = true" in caught.value.problems[2]


# -- notes and hints ------------------------------------------------------------------------------


def test_a_note_where_the_two_counts_differ() -> None:
    note = "fans by torch's count 9 in, 576 out; true 9 in, 9 out; used: {}"
    known = sites(nn.Conv2d(64, 64, 3, groups=64))
    for fans in ("torch", "true"):
        step = make_plan(known, [Rule(Leaf("weight"), Kaiming(mode="fan_in", fans=fans))])["weight"]
        assert step.notes == (note.format(fans),)
    assert make_plan(known, [Rule(Leaf("weight"), Normal())])["weight"].notes == ()
    assert make_plan(sites(nn.Linear(2, 3)), [Rule(Leaf("weight"), Kaiming())])["weight"].notes == ()


@pytest.mark.parametrize("inputs", [1, 3, 4, 16, 64, 65, 400])
def test_a_note_where_another_fan_would_make_more_than_twice_the_difference(inputs: int) -> None:
    layer = nn.ParameterDict({"weight": torch.empty(16, inputs)})

    def notes(init: Initializer) -> tuple[str, ...]:
        return make_plan(sites(layer), [Rule(Leaf("weight"), init)])["weight"].notes

    assert notes(Kaiming(mode="fan_in")) == notes(Xavier()) == ()
    if 4 <= inputs <= 64:
        assert notes(Kaiming()) == ()
        return
    (note,) = notes(Kaiming())
    ratio = float(note.split()[3])
    assert note == f'mode = "fan_out": {ratio:.3g} times the std of "fan_in", torch\'s default'
    theirs, ours = (torch.empty(160, 10 * inputs) for _ in range(2))
    nn.init.kaiming_normal_(theirs)
    nn.init.kaiming_normal_(ours, mode="fan_out")
    assert (ours.std() / theirs.std()).item() == pytest.approx(ratio, rel=6 / ours.numel() ** 0.5)
    assert notes(Scaled(Kaiming(), 0.5)) == (note,)


def hint(rule: Rule) -> str:
    model = nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 4, 3),
            body=nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)),
            head=nn.Linear(4, 2),
        )
    )
    ((_, text),) = make_plan(sites(model), [rule]).unused
    return text


@pytest.mark.parametrize(
    ("where", "text"),
    [
        (Layer("Conv2D"), "Layer('Conv2D') matches none of 4 modules; did you mean 'Conv2d' (2 modules)?"),
        (
            Layer("Liner") & Leaf("weight"),
            "Layer('Liner') matches none of 4 modules; did you mean 'Linear' (1 module)?",
        ),
        (Layer("Transformer"), "Layer('Transformer') matches none of 4 modules"),
        (Layer(), "Layer() matches none of 4 modules"),
        (Name("haed.weight"), "Name('haed.weight') matches none of 11 names; did you mean 'head.weight'?"),
        (Leaf("wieght"), "Leaf('wieght') matches none of 11 names; did you mean 'weight'?"),
        (Within("bodi"), "Within('bodi') matches none of 4 modules"),
        (Within("sten"), "Within('sten') matches none of 4 modules; did you mean 'stem'?"),
        (Regex("backbone.*"), "Regex('backbone.*') matches none of 11 sites"),
        (Leaf("weight") & Kinds("bias"), "All(Leaf('weight'), Kinds('bias')) matches none of 11 sites, though"),
        (Leaf("running_mean"), "Leaf('running_mean') matches only buffers; set buffers = true to write them"),
    ],
    ids=str,
)
def test_hints_for_rules_that_match_nothing(where: Any, text: str) -> None:
    assert hint(Rule(where, ONE)).startswith(f"rules[0] {text}")


def test_a_hint_names_the_place_in_the_recipe() -> None:
    assert hint(Rule(Name("nix"), ONE, origin="recipe.toml: rules[7]")).startswith("recipe.toml: rules[7] Name('nix')")


def test_an_optional_rule_may_match_nothing() -> None:
    assert make_plan(sites(nn.Linear(2, 2)), [Rule(Name("nix"), ONE, optional=True)]).unused == ()


def test_names_are_those_of_the_bare_model() -> None:
    wrapped = Wrapper("module", Wrapper("_orig_mod", nn.Linear(2, 2)))
    assert named(make_plan(sites(wrapped), [Rule(Name("weight"), ONE)])) == {"weight": "Constant(1)"}


@dataclass(frozen=True)
class Together:
    """A plug-in that looks at all of its sites at once and shares a budget among them."""

    budget: float = 1.0

    def resolve(self, site: Site) -> Fill | None:
        raise AssertionError("asked for one site alone")

    def resolve_all(self, pairs: Sequence[tuple[Site, Site]], known: Sequence[Site]) -> Resolution:
        fills = {view.name: Constant(self.budget / len(pairs)) for view, _ in pairs if view.name != "b"}
        return Resolution(fills, {"b": ValueError(f"nothing left of {len(known)} sites")})


def test_an_initializer_that_looks_at_all_its_sites_at_once() -> None:
    plan = make_plan([Site(name, (2,)) for name in "abcd"], [Rule(Name("a", "b", "c"), Together())])
    assert {step.site.name: step.fill for step in plan} == {"a": Constant(1 / 3), "c": Constant(1 / 3)}
    assert plan.problems == ("rules[0] at 'b': nothing left of 4 sites",)
    assert plan.loads == ()


def test_one_without_that_is_asked_site_by_site() -> None:
    pairs = [(site, site) for site in (Site("a", (2, 3)), Site("b", (3,)))]
    found = resolve_all(Xavier(), pairs, [])
    assert set(found.fills) == {"a"}
    assert "fans need at least 2 dimensions" in str(found.errors["b"])
    assert found.account is None
    assert not is_verbatim(Xavier())
    assert is_verbatim(Pretrained("a.pth"))
