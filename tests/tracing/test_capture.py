"""Captured plans beside the code itself: what the plan writes is what the code writes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchinit
from torchinit import (
    Constant,
    Name,
    Normal,
    Orthogonal,
    Plan,
    Rule,
    RunError,
    TruncNormal,
    Uniform,
    capture,
    initialize,
    seeded,
)
from torchinit.initializers import Blockwise, Dirac, Fill, Identity, Opaque, Padded, Sparse
from torchinit.model.shards import Shard
from torchinit.noise import Keyed
from torchinit.plans import local_shards, run
from torchinit.recipes import recipe_to_data

Way = Callable[[Any], object]


def by_hand(p: Any, mean: float, std: float, a: float, b: float) -> None:
    """A truncated normal as timm and older torch make it."""
    low, high = ((1 + math.erf((end - mean) / std / math.sqrt(2))) / 2 for end in (a, b))
    p.uniform_(2 * low - 1, 2 * high - 1).erfinv_().mul_(std * math.sqrt(2)).add_(mean).clamp_(min=a, max=b)


BOUND = math.sqrt(3.0) * (math.sqrt(2 / 6) / math.sqrt(4))  # as torch computes it

# What code does to a parameter of shape (6, 4), and the fill that this is.
WAYS: list[tuple[Way, Fill]] = [
    (lambda p: nn.init.normal_(p, 0.5, 0.02), Normal(0.5, 0.02)),
    (lambda p: nn.init.uniform_(p, -1, 2), Uniform(-1, 2)),
    (lambda p: nn.init.constant_(p, 3), Constant(3)),
    (lambda p: [nn.init.ones_(p)], Constant(1)),
    (lambda p: [nn.init.zeros_(p)], Constant(0)),
    (lambda p: [nn.init.eye_(p)], Identity()),
    (lambda p: nn.init.orthogonal_(p, 2), Orthogonal(2)),
    (lambda p: nn.init.sparse_(p, 0.5, std=0.1), Sparse(0.5, 0.1)),
    (lambda p: nn.init.trunc_normal_(p, std=0.02, a=-0.04, b=0.04), TruncNormal(std=0.02, a=-0.04, b=0.04)),
    (lambda p: [nn.init.xavier_normal_(p)], Normal(std=math.sqrt(2 / 10))),
    (lambda p: nn.init.kaiming_uniform_(p, a=math.sqrt(5)), Uniform(-BOUND, BOUND)),
    (lambda p: p.normal_().mul_(0.02), Normal(std=0.02)),
    (lambda p: p.normal_().div_(-4).add_(1), Normal(1, 0.25)),
    (lambda p: p.uniform_().mul_(2).sub_(1), Uniform(-1, 1)),
    (lambda p: p.uniform_(0.25, 0.5).neg_(), Uniform(-0.5, -0.25)),
    (lambda p: p.uniform_(-1, 1).clamp_(-2, 2), Uniform(-1, 1)),
    (lambda p: p.fill_(2.0).mul_(torch.tensor(3.0)).sub_(1.0, alpha=2), Constant(4.0)),
    (lambda p: p.copy_(torch.tensor(0.5)), Constant(0.5)),
    (lambda p: nn.init.orthogonal_(p).mul_(0.1), Orthogonal(0.1)),
    (lambda p: by_hand(p, 0.0, 0.02, -0.04, 0.04), TruncNormal(0.0, 0.02, -0.04, 0.04)),
    (lambda p: by_hand(p, 0.1, 0.02, -2.0, 2.0), TruncNormal(0.1, 0.02, -2.0, 2.0)),
    (lambda p: p.normal_()[2].zero_(), Padded(Normal(), 2)),
    (lambda p: p.normal_().__setitem__(2, 0), Padded(Normal(), 2)),
    (lambda p: [p.normal_(), p.__setitem__((slice(None), 0), 0)], Blockwise((Constant(0), Normal()), (1, 3), axis=1)),
    (lambda p: [p[:2].normal_(), p[2:].zero_()], Blockwise((Normal(), Constant(0.0)), (2, 4))),
    (lambda p: [p.normal_(), p[:, 1:3].mul_(2)], Blockwise((Normal(), Normal(std=2), Normal()), (1, 2, 1), axis=1)),
    (lambda p: [p[:3].normal_(), p[3:].normal_()], Normal()),
    (lambda p: [p.copy_(torch.ones(6, 4, device=p.device)), p.normal_()], Normal()),
]


def model() -> nn.ParameterDict:
    return nn.ParameterDict({"w": torch.zeros(6, 4), "left": torch.zeros(2)})


@pytest.mark.parametrize("number", range(len(WAYS)))
def test_a_fill_is_recognised(number: int) -> None:
    way, fill = WAYS[number]
    plan = capture(model(), lambda copy: torch.no_grad()(way)(copy["w"]))
    assert plan["w"].fill == fill
    assert [site.name for site in plan.untouched] == ["left"]
    assert plan.check() is plan


# Of these the numbers come out by other roundings, or (sparse) from other draws.
ROUNDED = {number for number, (way, fill) in enumerate(WAYS) if number >= 11 or isinstance(fill, Sparse)}


@pytest.mark.parametrize("number", sorted(set(range(len(WAYS))) - ROUNDED))
def test_the_plan_writes_what_the_code_writes(number: int) -> None:
    way, _ = WAYS[number]
    ours, theirs = model(), model()
    plan = torchinit.capture(ours, lambda copy: way(copy["w"]))
    run(plan, local_shards(ours), Keyed(4))
    with torch.no_grad(), seeded(theirs, 4):
        way(theirs["w"])
    assert torch.equal(ours["w"], theirs["w"])


def test_dirac_and_a_vector_and_a_scalar() -> None:
    one = nn.ParameterDict({"kernel": torch.zeros(4, 2, 3), "scalar": torch.zeros(()), "vector": torch.zeros(3)})

    def code(copy: Any) -> None:
        nn.init.dirac_(copy["kernel"], 2)
        nn.init.constant_(copy["scalar"], 2.5)
        copy["vector"].data[1] = 1

    plan = capture(one, code)
    assert plan["kernel"].fill == Dirac(2)
    assert plan["scalar"].fill == Constant(2.5)
    assert isinstance(plan["vector"].fill, Opaque)


OPAQUE: list[Way] = [
    lambda p: p.copy_(torch.arange(24.0).view(6, 4)),
    lambda p: p.mul_(2),
    lambda p: p.normal_().mul_(p),
    lambda p: p.normal_().abs_(),
    lambda p: p.exponential_(),
    lambda p: p.normal_()[::2].zero_(),
    lambda p: [p.normal_(), p[:, 1].zero_(), p[3].zero_()],
    lambda p: p.normal_().masked_fill_(torch.ones(6, 4, dtype=torch.bool, device=p.device), 0.0),
    lambda p: [nn.init.orthogonal_(p), p[0].zero_()],
    lambda p: p[2:].normal_(),
    lambda p: p.uniform_().erfinv_().clamp_(-0.5, 0.5),
    lambda p: p.uniform_(0, 3).erfinv_(),
    lambda p: [p[:, 1].zero_(), p[3].zero_()],
    lambda p: nn.init.dirac_(p.view(6, 2, 2)),
    lambda p: p.normal_().div_(2.0, rounding_mode="floor"),
    lambda p: p.normal_().clamp_(-1, 1),
    lambda p: p.normal_().__setattr__("data", torch.ones(6, 4, device=p.device)),
]


@pytest.mark.parametrize("number", range(len(OPAQUE)))
def test_what_no_fill_says_is_opaque(number: int) -> None:
    way = OPAQUE[number]
    plan = capture(model(), lambda copy: torch.no_grad()(way)(copy["w"]))
    fill = plan["w"].fill
    assert isinstance(fill, Opaque)
    assert all("test_capture.py:" in text for text in fill.done)


def test_an_opaque_step_is_read_but_not_run() -> None:
    one = model()

    def code(copy: Any) -> None:
        nn.init.ones_(copy["left"])
        copy["w"].data.mul_(2).add_(torch.ones(6, 4, device="meta"))

    plan = capture(one, code)
    assert "Opaque: add_(other=tensor of 6x4, alpha=1) at tests/tracing/test_capture.py:" in plan.table(full=True)
    assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(RunError, match=r"w: only its own code can write it \(mul_\(other=2\) at .*run that code"):
        run(plan, local_shards(one), Keyed(0))
    assert not one["left"].any()
    with pytest.raises(RunError, match="w: only its own code"):
        plan["w"].fill.write(Shard.whole("w", torch.zeros(6, 4)), Keyed(0))
    assert str(Opaque(())) == "Opaque: unknown code"


# --- whole models ------------------------------------------------------------------------------------------


def network() -> Any:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Embedding(5, 3, 1))


def reset(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(module.bias)
    elif hasattr(module, "reset_parameters"):
        module.reset_parameters()  # type: ignore[operator]


def test_rules_by_layer_where_all_agree() -> None:
    one = network()
    plan = capture(one, lambda copy: copy.apply(reset))
    assert plan["0.bias"].rule is plan["2.bias"].rule
    assert plan["2.weight"].rule is not plan["0.weight"].rule
    assert plan["4.weight"].fill == Padded(Normal(), 1)
    assert plan["1.running_var"].fill == Constant(1.0)
    assert [(skip.site.name, skip.why) for skip in plan.skipped] == [("1.num_batches_tracked", "holds whole numbers")]
    assert plan["0.weight"].notes == ("nn.init.kaiming_normal_",)
    assert plan["0.bias"].rule.origin.startswith("tests/tracing/test_capture.py:")


def test_the_rules_are_a_recipe_that_brings_the_plan_back() -> None:
    one = network()
    plan = capture(one, lambda copy: copy.apply(reset))
    data = recipe_to_data(tuple(dict.fromkeys(step.rule for step in plan)))
    assert torchinit.plan(one, data).diff(plan) == ()
    ours, theirs = network(), network()
    initialize(ours, data, seed=1)
    run(plan, local_shards(theirs), Keyed(1))
    for left, right in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(left, right)


def test_a_subclass_that_starts_otherwise_gets_rules_by_name() -> None:
    class Special(nn.Linear):
        pass

    one = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), Special(3, 3), Special(3, 3))

    def code(copy: Any) -> None:
        for module in copy:
            nn.init.constant_(module.bias, 1.0 if isinstance(module, Special) else 0.0)

    plan = capture(one, code)
    again = torchinit.plan(one, tuple(dict.fromkeys(step.rule for step in plan)))
    assert again.diff(plan) == ()


def test_a_diff_with_a_recipe() -> None:
    one = network()
    rules = [Rule(Name("0.weight"), Normal(std=1)), Rule(Name("0.bias"), Constant(0))]
    captured = capture(one, lambda copy: reset(copy[0]))
    (change,) = torchinit.plan(one, rules).diff(captured)
    assert str(change).startswith(
        "changed 0.weight: Normal(mean=0.0, std=1) in [6, 4] float32 -> Normal(mean=0.0, std=0.70"
    )


def test_the_model_itself_is_left_alone() -> None:
    one = network()
    one.note = torch.ones(2)
    one[0].weight.mark = "kept"
    before = {name: (value, value.clone()) for name, value in one.state_dict(keep_vars=True).items()}
    seen: list[Any] = []
    capture(one, lambda copy: seen.extend([copy.apply(reset)]))
    (copy,) = seen
    assert {value.device.type for value in copy.state_dict().values()} == {"meta"}
    assert copy[0].weight.mark == "kept"
    for name, value in one.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])


def test_tied_weights_are_one_step() -> None:
    one: Any = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False))
    one[1].weight = one[0].weight
    plan = capture(one, lambda copy: [nn.init.ones_(copy[0].weight), nn.init.normal_(copy[1].weight)])
    assert [(step.site.name, step.fill) for step in plan] == [("0.weight", Normal())]


def test_a_parametrized_weight_is_opaque() -> None:
    one: Any = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    plan = capture(one, lambda copy: nn.init.ones_(copy.parametrizations.weight.original0))
    assert isinstance(plan["weight"].fill, Opaque)


def test_a_fill_that_does_not_fit_is_a_problem() -> None:
    plan = capture(model().half(), lambda copy: nn.init.normal_(copy["w"], std=1e5))
    assert plan.problems == ("w: Normal(std=100000) goes beyond 65504, the largest number of float16",)


def test_code_that_looks_at_values() -> None:
    with pytest.raises(RuntimeError) as caught:
        capture(model(), lambda copy: copy["w"].sum().item())
    assert "runs the code on the meta device" in caught.value.__notes__[0]
