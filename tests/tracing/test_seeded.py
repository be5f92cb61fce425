"""Seeded code beside what it should draw: the same bits for any order and any sharding, and the right distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from tests.ranks import each_rank
from tests.stats import assert_distribution, assert_mean
from torchinit import Name, Normal, Orthogonal, Rule, RunError, TruncNormal, Uniform, initialize, seeded
from torchinit.initializers import Fill
from torchinit.model.dtensor import shards_of

Write = Callable[[Any], object]


def model() -> Any:
    return nn.ModuleDict({"a": nn.Linear(6, 8), "b": nn.Linear(8, 5), "c": nn.Linear(5, 5)})


def state() -> bytes:
    return bytes(torch.get_rng_state().tolist())


# --- what a recipe would give ------------------------------------------------------------------------------

FILLS: list[tuple[Write, Fill]] = [
    (lambda p: nn.init.normal_(p, 0.5, 0.02), Normal(0.5, 0.02)),
    (lambda p: p.data.normal_(std=3.0), Normal(std=3.0)),
    (lambda p: nn.init.uniform_(p, -1, 2), Uniform(-1, 2)),
    (lambda p: nn.init.trunc_normal_(p, std=0.5, a=-1, b=1), TruncNormal(std=0.5, a=-1, b=1)),
    (lambda p: nn.init.trunc_normal_(p, std=0.5, a=1, b=2), TruncNormal(std=0.5, a=1, b=2)),
    (lambda p: nn.init.orthogonal_(p, 1.5), Orthogonal(1.5)),
    (lambda p: torch.randn(p.shape, out=p.data), Normal()),
    (lambda p: torch.normal(1.0, 2.0, p.shape, out=p.data), Normal(1.0, 2.0)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("number", range(len(FILLS)))
def test_a_first_draw_has_the_bits_of_the_fill(number: int, dtype: torch.dtype) -> None:
    way, fill = FILLS[number]
    if isinstance(fill, Orthogonal) and dtype == torch.bfloat16:
        dtype = torch.float64  # torch factorizes no bfloat16
    ours, theirs = model().to(dtype), model().to(dtype)
    with torch.no_grad(), seeded(ours, 3):
        for name in "cab":
            way(ours[name].weight)
    initialize(theirs, Rule(Name("*.weight"), fill), seed=3)
    for name in "abc":
        assert torch.equal(ours[name].weight, theirs[name].weight)


def test_draws_of_one_site_differ_and_other_sites_do_not_count() -> None:
    one, other = model(), model()
    with torch.no_grad(), seeded(one, 0):
        one["a"].weight.normal_()
        first = one["a"].weight.clone()
        one["a"].weight.normal_()
    with torch.no_grad(), seeded(other, 0):
        other["a"].weight.normal_()
        other["b"].weight.normal_()
        other["a"].weight.normal_()
    assert not torch.equal(one["a"].weight, first)
    assert torch.equal(one["a"].weight, other["a"].weight)


def test_parts_of_a_site_draw_under_its_name() -> None:
    one = model()
    with torch.no_grad(), seeded(one, 0):
        one["a"].weight[:3].normal_()
        one["a"].weight[3:6].normal_()
        one["a"].weight.t()[:, 6:].normal_()
    parts = [one["a"].weight[:3], one["a"].weight[3:6]]
    assert not torch.equal(*parts)
    assert one["a"].weight.unique().numel() == one["a"].weight.numel()


# --- any order ---------------------------------------------------------------------------------------------


def by_hand(module: nn.Module) -> None:
    """Draws of every kind, of sites and of tensors that are nobody's."""
    if not isinstance(module, nn.Linear):
        return
    weight, bias = module.weight.data, module.bias.data
    weight.copy_(torch.randn(weight.shape) * 0.1 + torch.rand_like(weight))
    weight.add_(torch.empty(weight.shape).exponential_())
    weight[torch.randperm(5)[:2]] = torch.randint(3, (2, weight.shape[1])).float()
    weight.add_(torch.normal(torch.zeros_like(weight), 0.1)).add_(torch.normal(1.0, torch.ones(1)))
    bias.copy_(nn.functional.dropout(torch.ones_like(bias)) + torch.multinomial(torch.ones(4), 1))
    bias.add_(torch.bernoulli(torch.full_like(bias, 0.5)))
    nn.init.sparse_(module.weight, 0.2)
    module.bias.data.add_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(0)))


def loop(model: nn.Module, order: Callable[[list[nn.Module]], list[nn.Module]]) -> None:
    """Works on the modules in a loop of one function, as ``__init__`` methods do."""
    for module in order(list(model.children())):
        weight = module.weight
        weight.data.copy_(torch.rand(weight.shape).mul_(2))  # type: ignore[operator, arg-type]


@pytest.mark.parametrize("way", ["functions", "a loop", "reset_parameters"])
def test_the_order_does_not_matter(way: str) -> None:
    models = [model(), model()]
    for one, step in zip(models, (1, -1), strict=True):
        before = state()
        with seeded(one, 5):
            modules = list(one.modules())[::step]
            if way == "a loop":
                loop(one, lambda found, step=step: found[::step])  # type: ignore[misc]
            for module in modules if way != "a loop" else ():
                by_hand(module) if way == "functions" else getattr(module, "reset_parameters", list)()
        assert state() == before
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert way == "a loop" or ours.unique().numel() > 1
        if way != "a loop" or ours.dim() == 2:
            assert torch.equal(ours, theirs)


def test_another_seed_gives_other_values() -> None:
    one, other = model(), model()
    for seed, each in enumerate((one, other)):
        with seeded(each, seed):
            each.apply(by_hand)
    assert not any(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


def test_draws_that_are_nobodys_still_have_a_seed() -> None:
    found = []
    for _ in range(2):
        with seeded(nn.Linear(2, 2), 0):
            found.append(torch.stack([torch.rand(4), torch.rand(4), torch.empty(4).uniform_()]))
    assert torch.equal(*found)
    assert found[0].unique().numel() == 12


def test_the_global_generator_is_as_it_was() -> None:
    one = model()
    before = state()

    def run() -> None:
        torch.manual_seed(7)
        one.apply(by_hand)
        _ = 1 / 0

    with pytest.raises(ZeroDivisionError), seeded(one, 0):
        run()
    assert state() == before


def test_a_seed_that_is_none() -> None:
    with pytest.raises(TypeError, match="a seed is an int"):
        seeded(model(), "0")  # type: ignore[arg-type]


# --- any sharding ------------------------------------------------------------------------------------------

OPERATIONS: dict[str, Write] = {
    "normal_": lambda p: p.normal_(0.5, 2.0),
    "uniform_": lambda p: p.uniform_(-1, 1),
    "bernoulli_": lambda p: p.bernoulli_(0.3),
    "random_": lambda p: p.random_(-3, 9),
    "random_, all": lambda p: p.random_(),
    "exponential_": lambda p: p.exponential_(2.0),
    "geometric_": lambda p: p.geometric_(0.3),
    "cauchy_": lambda p: p.cauchy_(1.0, 2.0),
    "log_normal_": lambda p: p.log_normal_(0.0, 0.5),
    "kaiming_uniform_": lambda p: nn.init.kaiming_uniform_(p),  # noqa: PLW0108 # a line of its own
    "twice": lambda p: p.normal_().mul_(0.1).add_(torch.empty_like(p).normal_()),
    "randn_like": lambda p: p.copy_(torch.randn_like(p)),
}


@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate()], ids=str)
def test_a_shard_has_the_bits_of_the_whole(placement: Any) -> None:
    wholes = {}
    for name, way in OPERATIONS.items():
        whole = nn.Linear(6, 7, bias=False)
        with torch.no_grad(), seeded(whole, 1):
            way(whole.weight)
        wholes[name] = whole.weight.detach()
    for mesh in each_rank(3):
        for name, way in OPERATIONS.items():
            part = nn.Linear(6, 7, bias=False)
            part.weight = nn.Parameter(distribute_tensor(part.weight.detach(), mesh, [placement]))
            with torch.no_grad(), seeded(part, 1) as seen:
                way(part.weight)
            assert {(write.site, write.region) for write in seen.writes} == {("weight", None)}
            for shard in shards_of("weight", part.weight):
                place = tuple(slice(a, a + n) for a, n in zip(shard.start, shard.local.shape, strict=True))
                assert torch.equal(shard.local, wholes[name][place]), name


def test_the_local_part_may_be_drawn_by_itself_but_not_a_piece_of_it() -> None:
    whole = nn.Linear(6, 7, bias=False)
    with torch.no_grad(), seeded(whole, 1):
        whole.weight.normal_()
    for mesh in each_rank(2):
        part = nn.Linear(6, 7, bias=False)
        part.weight = nn.Parameter(distribute_tensor(part.weight.detach(), mesh, [Shard(0)]))
        assert isinstance(part.weight, DTensor)
        local = part.weight.to_local().detach()
        with seeded(part, 1):
            local.normal_()
        (shard,) = shards_of("weight", part.weight)
        assert torch.equal(local, whole.weight[shard.start[0] :][: len(local)])
        with pytest.raises(RunError, match="weight: is spread over ranks, and code draws a piece"), seeded(part, 1):
            local[0].normal_()


# --- distributions -----------------------------------------------------------------------------------------

CONTINUOUS: list[tuple[Write, Any]] = [
    (lambda p: p.exponential_(2.0), scipy.stats.expon(scale=0.5)),
    (lambda p: p.cauchy_(1.0, 2.0), scipy.stats.cauchy(1.0, 2.0)),
    (lambda p: p.log_normal_(0.5, 0.25), scipy.stats.lognorm(0.25, scale=math.exp(0.5))),
    (lambda p: p.random_(), scipy.stats.uniform(0, 2**24)),
    (lambda p: p.double().random_(0, 2**53), scipy.stats.uniform(0, 2**53)),
    (lambda p: torch.normal(torch.full_like(p, 3.0), 2.0), scipy.stats.norm(3, 2)),
    (lambda p: torch.normal(3.0, torch.full_like(p, 2.0)), scipy.stats.norm(3, 2)),
    (lambda p: torch.randn(4096, dtype=torch.float64), scipy.stats.norm()),
    (lambda p: torch.rand(p.shape), scipy.stats.uniform()),
]


@pytest.mark.parametrize("number", range(len(CONTINUOUS)))
def test_continuous_distributions(number: int) -> None:
    way, expected = CONTINUOUS[number]
    one = nn.Linear(128, 128)
    with torch.no_grad(), seeded(one, 2):
        drawn = way(one.weight)
    assert isinstance(drawn, Tensor)
    assert_distribution(drawn, expected.cdf)


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_geometric(p: float) -> None:
    one = nn.Linear(128, 128)
    with torch.no_grad(), seeded(one, 2):
        values = one.weight.geometric_(p).detach()
    assert float(values.min()) == 1.0
    assert_mean(values, 1 / p, math.sqrt(1 - p) / p)


def test_bernoulli_by_numbers_and_by_tensors() -> None:
    one = nn.Linear(64, 64)
    chances = torch.linspace(0, 1, 64).expand(64, 64)
    flags = torch.empty(4096, dtype=torch.bool)
    with torch.no_grad(), seeded(one, 2):
        one.weight.bernoulli_(chances)
        flags.bernoulli_(0.25)
    assert set(one.weight.unique().tolist()) == {0.0, 1.0}
    assert not one.weight[:, 0].any()
    assert bool(one.weight[:, -1].all())
    assert_mean(one.weight, 0.5, 0.5)
    assert_mean(flags, 0.25, math.sqrt(0.25 * 0.75))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.bool])
def test_all_numbers_of_a_dtype_are_drawn(dtype: torch.dtype) -> None:
    with seeded(nn.Linear(2, 2), 2):
        values = torch.empty(4096, dtype=dtype).random_()
    most = {torch.uint8: 255, torch.int64: 2**63 - 1, torch.float16: 2**11, torch.bool: 1}[dtype]
    numbers = np.asarray(values.double())
    assert numbers.min() >= 0
    assert numbers.max() <= most
    assert_mean(values.double() / most, 0.5, 0.5 if dtype == torch.bool else 1 / math.sqrt(12))


def test_on_the_meta_device_there_is_only_the_record() -> None:
    with torch.device("meta"):
        one = model()
    with seeded(one, 0) as seen:
        one["a"].reset_parameters()
        nn.init.trunc_normal_(one["b"].weight)
        torch.randn(3)
    assert [write.what.split("(")[0] for write in seen.writes] == ["uniform_", "uniform_", "trunc_normal_"]
    assert one["a"].weight.is_meta


SKIPPING_META: list[Write] = [nn.init.trunc_normal_, nn.init.orthogonal_, lambda p: nn.init.sparse_(p, 0.5)]


@pytest.mark.parametrize("number", range(len(SKIPPING_META)))
def test_what_is_not_drawn_on_the_meta_device_counts_for_nothing(number: int) -> None:
    """Of an initializer that leaves meta tensors alone, also where an older torch works on them."""
    with torch.device("meta"):
        one = model()
    with seeded(one, 0):
        expected = torch.rand(4)
    with seeded(one, 0):
        SKIPPING_META[number](one["a"].weight)
        drawn = torch.rand(4)
        one.to_empty(device="cpu")
        nn.init.trunc_normal_(one["a"].weight)
    assert torch.equal(drawn, expected)
    other = model()
    initialize(other, Rule(Name("a.weight"), TruncNormal(std=1.0, a=-2.0, b=2.0)), seed=0)
    assert torch.equal(one["a"].weight, other["a"].weight)
