"""Runs: values that belong to names, torch's own bits without a seed, nothing written where a run must fail."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeAlias

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.model.test_sites import Decoder, Table, Wrapper
from tests.strategies import LAYERS, build, layer_names
from torchinit import (
    Constant,
    Kaiming,
    Kinds,
    Layer,
    Leaf,
    Name,
    Normal,
    Orthogonal,
    Plan,
    PlanError,
    Report,
    Rule,
    RunError,
    Shape,
    TruncNormal,
    Xavier,
    sites,
)
from torchinit.initializers import Blockwise, Identity
from torchinit.model import Shard
from torchinit.noise import Distribution, DrawRequest, Global, Keyed, Noise
from torchinit.plans import Step, local_shards, make_plan, run
from torchinit.plans.run import write

Parts: TypeAlias = Shard | tuple[Shard, ...]

RECIPE = (
    Rule(Name("**"), Normal(std=0.02)),
    Rule(Shape(ndim=2), Orthogonal(), optional=True),
    Rule(Layer("Conv2d") & Leaf("weight"), Kaiming(), optional=True),
    Rule(Layer("LayerNorm") & Leaf("weight"), Constant(1.0), optional=True),
)


def start(model: nn.Module, *rules: Rule, noise: Noise | None = None) -> Report:
    return run(make_plan(sites(model), rules), local_shards(model), noise or Keyed(7))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


# -- values belong to names -----------------------------------------------------------------------


@settings(max_examples=40)
@given(layer_names(), st.permutations(sorted(LAYERS)), st.data())
def test_inserting_removing_and_reordering_layers_changes_no_other_value(
    chosen: list[str], order: list[str], data: st.DataObject
) -> None:
    one = build(chosen)
    start(one, *RECIPE)
    others = [name for name in order if data.draw(st.booleans())]
    other = build(others)
    start(other, *RECIPE)
    mine, theirs = state(one), state(other)
    shared = mine.keys() & theirs.keys()
    assert {name.split(".")[0] for name in shared} == {*chosen} & {*others}
    for name in shared:
        assert torch.equal(mine[name], theirs[name]), name


@settings(max_examples=30)
@given(layer_names(), st.integers(0, 2**64 - 1))
def test_a_seed_is_all_that_counts(chosen: list[str], seed: int) -> None:
    before = torch.get_rng_state()
    models = [build(chosen) for _ in range(2)]
    outside = torch.get_rng_state()
    start(models[0], *RECIPE, noise=Keyed(seed))
    torch.rand(3)
    torch.set_rng_state(outside)
    start(Wrapper("module", models[1]), *RECIPE, noise=Keyed(seed))
    assert torch.equal(torch.get_rng_state(), outside), "torch's generator has moved"
    torch.set_rng_state(before)
    for name, tensor in state(models[0]).items():
        assert torch.equal(tensor, state(models[1])[name]), name


def test_another_seed_or_name_gives_other_values() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    start(model, Rule(Leaf("weight"), Normal()))
    first = state(model)
    assert not torch.equal(first["0.weight"], first["1.weight"])
    start(model, Rule(Leaf("weight"), Normal()), noise=Keyed(8))
    assert not torch.equal(first["0.weight"], state(model)["0.weight"])


def test_overwritten_rules_leave_no_trace_under_a_seed() -> None:
    one, other = nn.Linear(8, 8), nn.Linear(8, 8)
    start(one, Rule(Name("**"), Normal()), Rule(Leaf("weight"), Xavier()), Rule(Leaf("bias"), Constant(0.0)))
    start(other, Rule(Leaf("bias"), Constant(0.0)), Rule(Leaf("weight"), Xavier()))
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("init", [Normal(), TruncNormal(), Orthogonal(), Identity(), Kaiming()], ids=str)
def test_shards_of_two_ranks_are_the_halves(init: Any, dim: int) -> None:
    model = nn.Linear(6, 8, bias=False)
    plan = make_plan(sites(model), [Rule(Leaf("weight"), init)])
    run(plan, local_shards(model), Keyed(3))
    whole = model.weight.detach()
    for rank, half in enumerate(whole.chunk(2, dim)):
        place = (rank * len(half), 0) if dim == 0 else (0, rank * half.shape[1])
        shard = Shard("weight", torch.empty(half.shape), (8, 6), place)
        report = run(plan, {"weight": shard}, Keyed(3)).assert_ok()
        assert torch.equal(shard.local, half)
        assert report["weight"].bytes == half.numel() * 4


# -- torch's generator ----------------------------------------------------------------------------


def test_without_a_seed_the_bits_of_hand_written_code() -> None:
    """Rule by rule, children first, what is overwritten drawn all the same."""

    def by_hand(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def norms(module: nn.Module) -> None:
        if isinstance(module, nn.Linear) and module.out_features == 3:
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.constant_(module.bias, 0.5)

    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 3))

    ours, theirs = make(), make()
    start(
        ours,
        Rule(Layer("Linear") & Leaf("weight"), Kaiming()),
        Rule(Shape((3, 6)), TruncNormal(std=0.02)),
        Rule(Shape((3,)), Constant(0.5)),
        noise=Global(),
    )
    mine = torch.get_rng_state()
    theirs = make()
    theirs.apply(by_hand)
    theirs.apply(norms)
    assert torch.equal(mine, torch.get_rng_state())
    for name, tensor in state(ours).items():
        assert torch.equal(tensor, state(theirs)[name]), name


def test_a_tied_tensor_on_torchs_generator_is_drawn_for_each_of_its_modules() -> None:
    def by_hand(module: nn.Module) -> None:
        if isinstance(module, (nn.Embedding, nn.Linear)):
            nn.init.normal_(module.weight)

    torch.manual_seed(0)
    ours = Decoder()
    torch.manual_seed(5)
    start(ours, Rule(Leaf("weight"), Normal(), padding=False), noise=Global())
    theirs = copy.deepcopy(ours)
    torch.manual_seed(5)
    theirs.apply(by_hand)
    for name, tensor in state(ours).items():
        assert torch.equal(tensor, state(theirs)[name]), name


@pytest.mark.parametrize("noise", [Global(torch.Generator().manual_seed(0)), Keyed(0)])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize(
    "init", [Normal(std=0.5), Constant(0.5), Orthogonal(), TruncNormal(), Xavier(distribution="uniform")]
)
def test_eight_bit_floats(init: Any, dtype: torch.dtype, noise: Noise) -> None:
    model = Table(torch.zeros(40, 50).to(dtype), requires_grad=False)
    start(model, Rule(Leaf("weight"), init), noise=noise).assert_ok()
    assert model.weight.dtype == dtype
    assert float(model.weight.float().abs().sum()) > 0


def test_one_write_alone() -> None:
    tensor, expected = torch.empty(3, 3), torch.empty(3, 3)
    torch.manual_seed(0)
    write(Normal(), Shard.whole("w", tensor), Global())
    torch.manual_seed(0)
    assert torch.equal(tensor, nn.init.normal_(expected))


# -- what is written ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(()),
        torch.zeros(1),
        torch.zeros(6, 4).T,
        torch.zeros(4, 6, dtype=torch.complex64),
        torch.zeros(4, 6, dtype=torch.float64),
        torch.zeros(4, 6, dtype=torch.bfloat16),
        torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)} {tensor.stride()}",
)
def test_parameters_of_any_kind(tensor: Tensor) -> None:
    model = Table(tensor)
    pointer = model.weight.data_ptr()
    report = start(model, Rule(Leaf("weight"), Normal(std=0.1))).assert_ok(complete=True)
    assert model.weight.data_ptr() == pointer, "the optimizer's reference must stay good"
    assert model.weight.requires_grad
    assert model.weight.is_leaf
    assert model.weight.grad_fn is None
    assert report["weight"].measured is not None
    plain = Table(torch.zeros(tensor.shape, dtype=tensor.dtype))
    start(plain, Rule(Leaf("weight"), Normal(std=0.1)))
    assert torch.equal(plain.weight, model.weight)


def test_the_padding_row_is_zero_after_the_run() -> None:
    model = Decoder()
    start(model, Rule(Leaf("weight"), Normal())).assert_ok()
    assert not model.embed.weight[0].any()
    assert model.embed.weight[1:].all()
    assert model.head.weight is model.embed.weight
    start(model, Rule(Leaf("weight"), Normal(), padding=False)).assert_ok()
    assert model.embed.weight[0].any()


def test_a_recurrent_layer_gate_by_gate() -> None:
    model = nn.LSTM(6, 6)
    fill = Blockwise((Orthogonal(),) * 4, (6,) * 4)
    start(model, Rule(Kinds("weight"), fill), Rule(Kinds("bias"), Constant(0.0))).assert_ok(complete=True)
    for gate in model.get_parameter("weight_hh_l0").detach().chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(6), atol=1e-6, rtol=0)


def test_progress_is_told_of_each_step() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    plan = make_plan(sites(model), [Rule(Leaf("weight"), Normal()), Rule(Name("0.*"), Constant(1.0))])
    told: list[Step] = []
    run(plan, local_shards(model), Keyed(0), progress=told.append)
    assert told == list(plan.steps)
    told.clear()
    run(plan, local_shards(model), Global(torch.Generator()), progress=told.append)
    assert told == list(plan.writes)


class Counting(Noise):
    """Keyed noise that notes which names are drawn in one call."""

    is_stateful = False

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def fill_many(self, jobs: Iterable[DrawRequest]) -> None:
        batch = list(jobs)
        self.calls.append([job.shard.name for job in batch])
        Keyed(7).fill_many(batch)

    def fill(self, shard: Shard, distribution: Distribution, params: tuple[float, ...], index: int = 0) -> None:
        self.fill_many([DrawRequest(shard, distribution, params, index)])

    def order(self, shard: Shard, index: int = 0) -> Tensor:
        return Keyed(7).order(shard, index)

    def linalg_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return Keyed(7).linalg_dtype(dtype)


def test_neighbours_that_draw_share_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["torchinit.plans.run"], "_ELEMENTS", 200)
    rules = [
        Rule(Name("*.weight"), Normal()),  # 80, 80, 800, 80, 80 elements
        Rule(Name("1.bias"), Constant(1.0)),
        Rule(Name("2.bias"), TruncNormal(mean=1.0, std=0.0)),
        Rule(Name("3.bias"), Normal()),
    ]
    shapes = [(8, 10), (8, 10), (40, 20), (8, 10), (8, 10)]
    model = nn.Sequential(*(nn.Linear(inputs, outputs) for outputs, inputs in shapes))
    noise, told = Counting(), list[str]()
    plan = make_plan(sites(model), rules)
    report = run(plan, local_shards(model), noise, progress=lambda step: told.append(step.site.name))
    assert noise.calls == [["0.weight", "1.weight"], ["2.weight"], ["3.weight", "4.weight"], ["3.bias"]]
    assert told == [step.site.name for step in plan] == [record.name for record in report]
    assert all(record.seconds > 0 for record in report)
    assert sum(record.seconds for record in report) <= report.seconds
    for step in plan:
        alone = torch.empty(step.site.shape)
        write(step.fill, Shard.whole(step.site.name, alone), Keyed(7))
        assert torch.equal(alone, model.get_parameter(step.site.name)), step.site.name


def test_constants_do_not_end_a_batch() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    rules = [Rule(Name("0.weight"), Normal()), Rule(Name("*.bias"), Constant(1 / 3)), Rule(Name("2.weight"), Normal())]
    noise, told = Counting(), list[str]()
    plan = make_plan(sites(model), rules)
    run(plan, local_shards(model), noise, progress=lambda step: told.append(step.site.name))
    assert noise.calls == [["0.weight", "2.weight"]]
    assert told == ["0.weight", "0.bias", "1.bias", "2.bias", "2.weight"]
    assert model.get_parameter("1.bias").tolist() == [1 / 3] * 4


def test_steps_in_one_memory_keep_their_order() -> None:
    model, memory = nn.Module(), torch.zeros(4, 4)
    model.table, model.turned = nn.Parameter(memory), nn.Parameter(memory.T)
    rules = [Rule(Name("table"), Constant(1.0)), Rule(Name("turned"), Normal())]
    for order in (rules, rules[::-1]):
        run(make_plan(sites(model), order, ties="last"), local_shards(model), Keyed(0))
        assert bool((memory == 1).all()) == (order[-1] is rules[0])


def test_a_batch_with_a_tensor_that_cannot_be_drawn_writes_none_of_it() -> None:
    model = nn.Linear(4, 3)
    before = state(model)
    plan = make_plan(sites(model), [Rule(Name("**"), Normal())])
    shared = Shard.whole("bias", torch.zeros(1).expand(3))
    with pytest.raises(RunError, match="bias: several of its elements share memory"):
        run(plan, local_shards(model) | {"bias": shared}, Keyed(0))
    assert torch.equal(model.weight, before["weight"])


def test_the_model_may_have_another_dtype_than_the_plan() -> None:
    plan = make_plan(sites(nn.Linear(30, 30)), [Rule(Leaf("weight"), Normal())])
    half = nn.Linear(30, 30, dtype=torch.bfloat16)
    assert run(plan, local_shards(half), Keyed(0)).assert_ok()["weight"].dtype == "bfloat16"


def test_local_shards_by_name() -> None:
    model = Decoder()
    assert sorted(local_shards(model)) == ["body.bias", "body.weight", "embed.weight", "head.weight"]
    assert list(local_shards(model, ["body.bias"])) == ["body.bias"]
    assert local_shards(Wrapper("module", model)).keys() == local_shards(model).keys()


# -- nothing is written where a run must fail -----------------------------------------------------


class Refusing(Noise):
    """A noise that must not be asked."""

    is_stateful = False

    def fill(self, *_: object) -> None:
        raise AssertionError("written")

    def order(self, *_: object) -> Tensor:
        raise AssertionError("written")

    def linalg_dtype(self, dtype: torch.dtype) -> torch.dtype:
        raise AssertionError("written")


def whole(model: nn.Module) -> dict[str, Parts]:
    return {**local_shards(model)}


def without_bias(model: nn.Module) -> dict[str, Parts]:
    return {**local_shards(model, ["weight"])}


def with_a_part(model: nn.Module) -> dict[str, Parts]:
    return {**local_shards(model)} | {"weight": Shard("weight", torch.zeros(1, 3), (2, 3), (0, 0))}


def on_meta(model: nn.Module) -> dict[str, Parts]:
    return {**local_shards(model)} | {"weight": Shard.whole("weight", torch.empty(2, 3, device="meta"))}


def of_another_shape(model: nn.Module) -> dict[str, Parts]:
    return {**local_shards(model)} | {"weight": Shard.whole("weight", torch.empty(4, 3))}


@pytest.mark.parametrize(
    ("shards", "noise", "error", "message"),
    [
        (without_bias, Keyed(0), RunError, "1 site cannot be written; nothing was\n  bias: not in the model$"),
        (on_meta, Keyed(0), RunError, r"weight: is on the meta device.* model\.to_empty\(device=\.\.\.\)"),
        (of_another_shape, Keyed(0), RunError, r"weight: planned for shape \(2, 3\), but it has \(4, 3\)"),
        (with_a_part, Global(), RunError, "weight: only part of it is here, which needs a seed: give one"),
    ],
)
def test_a_run_that_must_fail_writes_nothing(
    shards: Callable[[nn.Module], dict[str, Parts]], noise: Noise, error: type[Exception], message: str
) -> None:
    model = nn.Linear(3, 2)
    plan = make_plan(sites(model), [Rule(Leaf("bias"), Constant(9.0)), Rule(Leaf("weight"), Normal())])
    plan = replace(plan, steps=tuple(sorted(plan.steps, key=lambda step: step.site.name)))
    before, generator = state(model), torch.get_rng_state()
    with pytest.raises(error, match=message):
        run(plan, shards(model), noise)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())
    assert torch.equal(generator, torch.get_rng_state())


def test_every_site_that_cannot_be_written_is_told() -> None:
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    with pytest.raises(RunError, match="2 sites cannot be written") as caught:
        start(model, Rule(Name("**"), Constant(1.0)))
    assert len(caught.value.problems) == 2


def test_a_plan_with_problems_is_not_run() -> None:
    model = nn.Linear(3, 2)
    plan = make_plan(sites(model), [Rule(Leaf("weight"), Normal()), Rule(Leaf("bias"), Xavier())])
    with pytest.raises(PlanError, match="fans need at least 2 dimensions"):
        run(plan, whole(model), Refusing())


def test_an_empty_plan_writes_nothing() -> None:
    assert len(run(Plan(), {}, Refusing())) == 0


def test_modules_by_name_only() -> None:
    """A child called like a wrapper, whose bare name another parameter has, keeps its values to itself."""
    model = nn.Linear(4, 4)
    model.add_module("module", nn.Linear(4, 4))
    report = start(model, Rule(Name("weight"), Constant(1.0)), Rule(Name("module.weight"), Constant(2.0)))
    assert float(model.weight.detach().mean()) == 1
    assert float(model.get_parameter("module.weight").detach().mean()) == 2
    assert len(report) == 2
