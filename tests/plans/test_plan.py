"""Plans: looked up, checked, compared, printed. Their JSON has tests of its own."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from torch import nn

import torchinit
from tests.model.test_sites import Decoder
from tests.strategies import rules
from torchinit import Constant, Kaiming, Layer, Leaf, Name, Normal, Orthogonal, Plan, PlanError, Rule, sites
from torchinit.initializers import Blocks
from torchinit.model import Site
from torchinit.plans import Change, make_plan
from torchinit.plans.diff import Diff

MODEL = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def planned(*given_rules: Rule, model: nn.Module = MODEL) -> Plan:
    return make_plan(sites(model), given_rules)


@given(rules())
def test_a_rule_is_a_value(rule: Rule) -> None:
    assert eval(repr(rule), {**vars(torchinit.initializers), **vars(torchinit.rules)}) == rule


def test_the_origin_of_a_rule_is_no_part_of_its_value() -> None:
    assert Rule(Leaf("weight"), Normal(), origin="a") == Rule(Leaf("weight"), Normal(), origin="b")
    assert planned(Rule(Leaf("weight"), Normal()))["0.weight"].rule.origin == "rules[0]"
    assert planned(Rule(Leaf("weight"), Normal(), origin="here"))["0.weight"].rule.origin == "here"


def test_text_of_a_rule() -> None:
    assert str(Rule(Leaf("weight"), Normal(std=0.02))) == "Leaf('weight') -> Normal(std=0.02)"
    assert str(Rule(Leaf("weight"), Normal(std=0.02), label="weights")) == "weights"


def test_steps_by_name() -> None:
    plan = planned(Rule(Leaf("weight"), Normal()))
    assert len(plan) == len(list(plan)) == 3
    assert plan["2.weight"].site.shape == (2, 3)
    with pytest.raises(KeyError, match=r"no step for '2\.wieght'; did you mean '2\.weight'\?"):
        plan["2.wieght"]


def test_a_tied_tensor_by_any_name() -> None:
    plan = planned(Rule(Leaf("weight"), Normal()), model=Decoder())
    assert plan["embed.weight"] is plan["head.weight"]


def test_check_returns_the_plan() -> None:
    plan = planned(Rule(Name("**"), Constant(1.0)))
    assert plan.check(complete=True, strict=True) is plan


def test_check_complete_asks_for_every_parameter_and_no_buffer() -> None:
    with pytest.raises(PlanError, match=r"1 problem in the plan; nothing was written\n  no rule for 2\.bias$"):
        planned(Rule(Name("0.*", "1.*", "2.weight"), Constant(1.0))).check(complete=True)


def test_check_strict_asks_for_every_rule() -> None:
    plan = planned(Rule(Layer("Liner"), Constant(1.0)))
    plan.check()
    with pytest.raises(PlanError, match=r"did you mean 'Linear' \(2 modules\)\?\n.*If that is intended, set optional"):
        plan.check(strict=True)


def test_diff() -> None:
    weights = Rule(Leaf("weight"), Normal(std=0.25))
    before = planned(weights, Rule(Name("0.bias"), Constant(0.0)))
    after = planned(weights, Rule(Name("2.bias"), Constant(0.0)), Rule(Name("1.*"), Constant(1.0)))
    assert before.diff(before) == ()
    assert set(map(str, before.diff(after))) == {
        "removed 0.bias: Constant(val=0.0) in [3] float32",
        "added 2.bias: Constant(val=0.0) in [2] float32",
        "added 1.bias: Constant(val=1.0) in [3] float32",
        "changed 1.weight: Normal(mean=0.0, std=0.25) in [3] float32 -> Constant(val=1.0) in [3] float32",
    }


def test_a_diff_is_a_frozen_sequence_that_prints_like_changes_once() -> None:
    before = [Rule(Leaf("weight"), Normal(std=0.25)), Rule(Name("0.bias"), Constant(0.0))]
    found = planned(*before).diff(planned(*before[:1]))
    assert isinstance(found, Diff)
    assert hash(found) == hash(tuple(found))
    assert str(found[0]) == "removed 0.bias: Constant(val=0.0) in [3] float32"
    assert str(found).splitlines() == [
        "-  0.bias  0 in [3] float32  Name('0.bias')",
        "",
        "1 kind goes; 1 kind is the same.",
    ]
    assert str(planned(*before).diff(planned(*before))) == "no difference"


def test_a_diff_of_like_layers_is_one_line_in_the_order_of_the_model() -> None:
    before = planned(Rule(Leaf("weight"), Normal(std=0.25), label="weights"))
    last = Rule(Name("2.*"), Constant(1.0), label="last")
    after = planned(Rule(Name("2.bias"), Constant(0.0)), Rule(Leaf("weight"), Normal(std=0.25 + 1e-12)), last)
    assert str(before.diff(after)).splitlines() == [
        "~  2.weight  N(0, 0.25) → 1    last",
        "+  2.bias    1 in [2] float32  last",
        "",
        "1 kind changes (1 tensor), 1 appears, 1 kind differs by rounding alone; 0 kinds are the same.",
    ]
    assert len(before.diff(after)) == 4
    assert str(planned(last).diff(planned())).splitlines()[0] == "-  2.weight  1 in [2, 3] float32  last"


def test_a_diff_tells_of_ties() -> None:
    def model(*, tied: bool) -> nn.Module:
        net = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False))
        if tied:
            net[1].weight = net[0].weight
        return net

    rule = Rule(Leaf("weight"), Normal(std=0.5), label="weights")
    together, apart = (planned(rule, model=model(tied=tied)) for tied in (True, False))
    assert str(together.diff(apart)).splitlines()[0].endswith("weights, no longer tied to 0.weight")
    assert str(apart.diff(together)).splitlines()[0].endswith("weights, now tied to 0.weight")


def test_diff_sees_what_the_text_of_tables_rounds_away() -> None:
    one, other = (Rule(Leaf("weight"), Normal(std=std)) for std in (0.02, 0.02 + 1e-9))
    (change,) = planned(one, model=nn.Linear(2, 2)).diff(planned(other, model=nn.Linear(2, 2)))
    assert isinstance(change, Change)
    assert (change.name, change.verb) == ("weight", "changed")
    assert change.before != change.after


def test_diff_sees_shapes_and_dtypes() -> None:
    rule = Rule(Leaf("weight"), Constant(1.0))
    (change,) = planned(rule, model=nn.Linear(2, 2)).diff(planned(rule, model=nn.Linear(2, 3, dtype=torch.float64)))
    assert str(change) == "changed weight: Constant(val=1.0) in [2, 2] float32 -> Constant(val=1.0) in [3, 2] float64"


def test_table() -> None:
    plan = planned(
        Rule(Leaf("weight"), Normal(std=0.02), label="weights"),
        Rule(Name("2.*"), Constant(0.5)),
        Rule(Name("head.*"), Constant(0.0)),
        Rule(Name("1.num*"), Constant(0.0), buffers=True),
    )
    lines = [re.split("  +", line) for line in str(plan).splitlines()]
    assert lines[0] == ["4 sites to write: 4 kinds, 23 elements, float32"]
    assert lines[2] == ["tensor", "shape", "starts as", "mean", "std", "elements", "rule", "over"]
    assert lines[3] == ["0.weight", "3x4", "N(0, 0.02)", "0", "0.02", "12", "weights"]
    assert lines[5] == ["2.weight", "2x3", "0.5", "0.5", "0", "6", "Name('2.*')", "weights"], (
        "with the rule that it beat"
    )
    whole = [re.split("  +", line) for line in plan.table(full=True).splitlines()]
    assert whole[2] == ["tensor", "shape", "dtype", "starts as", "mean", "std", "elements", "rule", "over"]
    assert whole[5][-2:] == ["rules[1] Name('2.*') -> Constant(0.5)", "rules[0] weights"]
    assert plan.summary().splitlines() == [
        "4 sites to write: 23 elements",
        "2 parameters untouched: 0-1.bias ×2",
        "2 buffers untouched: 1.running_mean, 1.running_var",
        "skipped 1.num_batches_tracked: holds whole numbers",
        "unused: rules[2] Name('head.*') matches none of 9 names",
    ]
    assert "problem: rules[0]" in planned(Rule(Leaf("bias"), Kaiming())).summary()


def test_an_empty_plan_has_a_table() -> None:
    assert str(planned()).splitlines() == [
        "0 sites to write: 0 kinds, 0 elements",
        "6 parameters untouched: 0-2.weight ×3, 0-2.bias ×3",
        "3 buffers untouched: 1.running_mean, 1.running_var, 1.num_batches_tracked",
    ]


def test_the_memory_of_a_fill_that_needs_the_whole_is_stated() -> None:
    rules = [Rule(Name("a.*"), Orthogonal()), Rule(Name("b.*"), Blocks(Orthogonal(), 2)), Rule(Name("c.*"), Normal())]
    found = [Site(f"{name}.weight", (512, 512)) for name in "abc"]
    plan = make_plan(found, rules)
    assert plan.scratch == ("a.weight", 512 * 512 * Orthogonal.bytes_an_element)
    assert plan["b.weight"].fill.scratch((512, 512)) == plan.scratch[1] // 2
    assert "a.weight is computed whole, which takes 8.5 MiB beside the model for a moment" in plan.summary()
    assert make_plan(found, rules[2:]).scratch[1] == 0
    assert "computed whole" not in make_plan(found, rules[2:]).summary()
