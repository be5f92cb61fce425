"""Simple steps: written without shards, they come out as those that are written with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import torchinit
from torchinit import (
    Constant,
    Kaiming,
    Leaf,
    Name,
    Normal,
    Orthogonal,
    Plan,
    Rule,
    TruncNormal,
    Uniform,
    initialize,
    plan,
)
from torchinit.errors import RunError
from torchinit.model.traversal import walk_tensors
from torchinit.noise import Keyed
from torchinit.plans import local_shards, run
from torchinit.plans.report import Report
from torchinit.plans.run import shards_held
from torchinit.plans.simple import SimpleSteps

RECIPE = (
    Rule(Leaf("weight"), Normal(std=0.02)),
    Rule(Name("1.weight"), TruncNormal(std=0.02)),
    Rule(Name("2.weight"), Orthogonal()),
    Rule(Name("3.weight"), Uniform(-1, 1)),
    Rule(Leaf("bias"), Constant(-0.0)),
    Rule(Name("4.*"), Constant(1 / 3)),
)


def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(8)))
    net[4].to(torch.bfloat16)
    net[5].to(torch.float64)
    net[6].weight = nn.Parameter(torch.zeros(6, 6).t()[:, :5])
    net[7] = nn.utils.parametrizations.weight_norm(net[7])
    return net


def timeless(report: Report) -> Report:
    return replace(report, seconds=0.0, records=tuple(replace(record, seconds=0.0) for record in report))


@pytest.mark.parametrize("stats", [True, False])
def test_as_with_shards(stats: bool) -> None:
    net, other = model(), model()
    planned = plan(net, RECIPE)
    short = run(planned, shards_held(walk_tensors(net)), Keyed(3), stats=stats)
    long = run(planned, local_shards(other), Keyed(3), stats=stats)  # a dict of shards
    assert timeless(short) == timeless(long)
    assert [record.name for record in short] == [step.site.name for step in planned]
    for (name, mine), theirs in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(mine.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8)), name


def test_which_are_simple() -> None:
    net = model()
    whole = shards_held(walk_tensors(net)).tensors
    simple, rest = SimpleSteps.among(plan(net, RECIPE).steps, whole, Keyed(0))
    assert rest == {"2.weight", "6.weight", "7.weight"}
    assert len(simple.drafts) == 13


def test_drafts_are_the_steps_in_their_order() -> None:
    planned = plan(model(), [Rule("**", Normal()), Rule(Leaf("bias"), Constant(1.0)), Rule("2.*", Constant(2.0))])
    drafted = [(draft.site, draft.fill, draft.rule) for draft in planned.drafts]
    assert any(step.over for step in planned.steps)
    assert drafted == [(step.site, step.fill, step.rule) for step in planned.steps]
    assert planned.drafts is planned.steps


@pytest.mark.parametrize("init", [lambda t: t.fill_(net_sum(t)), nn.init.eye_])
def test_none_is_beside_code_that_may_look_at_others(init: object) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    planned = plan(net, [Rule(Leaf("bias"), Constant(1.0)), Rule(Leaf("weight"), init)])  # type: ignore[arg-type]
    simple, _ = SimpleSteps.among(planned.steps, shards_held(walk_tensors(net)).tensors, Keyed(0))
    assert bool(simple.drafts) is (init is nn.init.eye_)


def net_sum(tensor: torch.Tensor) -> float:
    return float(tensor.numel())


def test_another_dtype_or_shape_by_now() -> None:
    net = nn.Linear(3, 3)
    planned = plan(net, Rule("**", Normal()))
    report = run(planned, shards_held(walk_tensors(net.half())), Keyed(0))
    assert {record.dtype for record in report} == {"float16"}
    with pytest.raises(RunError, match="planned for shape"):
        run(planned, shards_held(walk_tensors(nn.Linear(2, 2))), Keyed(0))


def test_a_report_tells_what_was_there_when_it_was_made() -> None:
    net = nn.Linear(64, 64)
    report = initialize(net, Rule("**", Normal(std=0.02)), seed=0)
    with torch.no_grad():
        net.weight.fill_(7.0)
    assert report["weight"].measured is not None
    assert abs(report["weight"].measured.mean or 0.0) < 0.01
    assert report.assert_ok() is report


def test_a_plan_holds_its_steps_when_they_are_read_late() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    late, early = plan(net, Rule("**", Normal())), plan(net, Rule("**", Normal()))
    assert len(early.steps) == 4
    net.append(nn.Linear(3, 3))
    assert late == early
    assert Plan.from_json(late.to_json()) == early
    assert torchinit.plan(net, Rule(Leaf("weight"), Kaiming())).check(complete=False)["2.weight"].turn == 2
