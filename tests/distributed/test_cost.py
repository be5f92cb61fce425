"""Costs: sums of arithmetic on shapes, and rates that are measured."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

from examples.large import llama_405b, moe_1t
from torchinit import Constant, Layer, Leaf, Name, Normal, Orthogonal, Plan, Rule, Uniform, load_recipe, sites
from torchinit.distributed.cost import Rates, cost_of, kind_of, measured, whole_regions
from torchinit.distributed.partition import Partition, parse_mesh, parse_override
from torchinit.initializers import Blocks, Identity, Sparse, Stacked
from torchinit.initializers.composed import Padded
from torchinit.initializers.matrices import DeltaOrthogonal, Dirac, RegionFill
from torchinit.model import Site
from torchinit.model.shards import Shard
from torchinit.noise import Keyed
from torchinit.plans import make_plan
from torchinit.plans.run import write

LARGE = Path(__file__).parents[2] / "examples/large.toml"


def given(nanoseconds: Mapping[str, float], call: float = 0.0) -> Rates:
    return Rates(nanoseconds, "given", call)


def small() -> Plan:
    known = [
        Site("layers.0.q_proj.weight", (30, 16)),
        Site("layers.1.q_proj.weight", (30, 16)),
        Site("layers.0.norm.weight", (5,), torch.bfloat16),
        Site("steps", (7,), torch.int64, kind="buffer"),
    ]
    return make_plan(known, [Rule(Name("**.q_proj.*"), Normal(std=0.1)), Rule(Name("**.norm.*"), Constant(1.0))])


def test_sums_are_those_of_all_ranks() -> None:
    plan, partition = small(), Partition((4, 2), ("fsdp", "tp"))
    cost = cost_of(plan, partition, given({"Normal float32": 2.0, "Constant bfloat16": 1.0}, 1e-6))
    held = [
        sum(math.prod(partition.local_shape(site, at)) * site.dtype.itemsize for site in (*plan_sites(plan),))
        for at in product(range(4), range(2))
    ]
    assert (cost.most, cost.least) == (max(held), min(held))
    assert (cost.ranks, cost.sites, cost.elements) == (8, 4, 2 * 30 * 16 + 5 + 7)
    assert cost.bytes == 2 * 30 * 16 * 4 + 5 * 2 + 7 * 8
    assert cost.written == 2 * 4 * 16 + 2
    assert cost.seconds == pytest.approx((2 * 4 * 16 * 2.0 + 2 * 1.0) * 1e-9 + 3e-6)
    assert cost.peak == cost.most


def plan_sites(plan: Plan) -> list[Site]:
    return [*(step.site for step in plan), *plan.untouched, *(skip.site for skip in plan.skipped)]


def test_like_sites_are_one_line() -> None:
    cost = cost_of(small(), Partition((4, 2), ("fsdp", "tp")), given({"Normal float32": 2.0, "Constant bfloat16": 1.0}))
    text = str(cost.table()).splitlines()
    assert [line.split()[:2] for line in text[1:4]] == [
        ["layers.*.q_proj.weight", "2"],
        ["layers.*.norm.weight", "1"],
        ["steps", "1"],
    ]
    assert text[1].split()[2:8] == ["30x16", "float32", "0", "0", "4x16", "0.000"]
    assert text[3].split()[4:6] == ["-", "-"]
    assert text[4] == "4 sites: 972 elements, 3.814 KiB, on 8 ranks (fsdp 4 x tp 2)"
    assert text[5] == "a rank holds 572 bytes at most, 440 bytes at least, 572 bytes at the peak"
    assert text[6].startswith("a rank writes 130 elements, in about 2.58e-07 s")
    assert (
        text[7]
        == "  nanoseconds an element: Normal float32 2.00, Constant bfloat16 1.00; 0.0 microseconds a site; given"
    )


def test_fills_that_are_computed_whole_are_told() -> None:
    known = [Site("a.weight", (512, 256)), Site("b.weight", (64, 64)), Site("c.weight", (6, 4))]
    rules = [
        Rule(Name("a.*"), Blocks(Orthogonal(), parts=2)),
        Rule(Name("b.*"), Sparse(0.5)),
        Rule(Name("c.*"), Identity()),
    ]
    cost = cost_of(make_plan(known, rules), Partition((8,), ("fsdp",)), given({"Identity float32": 1.0}))
    # The first of 8 ranks holds 64 of 512 rows, which lie in the first of the two blocks.
    assert [(fill.name, fill.elements) for fill in cost.whole] == [("a.weight", 256 * 256), ("b.weight", 64 * 64)]
    assert cost.whole[0].bytes == 256 * 256 * Orthogonal.bytes_an_element
    assert cost.peak == cost.most + cost.whole[0].bytes
    assert cost.seconds > cost.whole[0].seconds > 0
    assert "2 sites computed whole on each rank with a part: a.weight takes the most memory" in cost.summary()


@pytest.mark.parametrize(("ranks", "matrices"), [(1, 8), (3, 3), (8, 1), (16, 1)])
def test_of_a_stack_only_the_matrices_that_are_here_are_computed(
    ranks: int, matrices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, mesh = Site("experts.w", (8, 16, 16)), Partition((ranks,), ("ep",))
    planned = make_plan([site], [Rule(Name("**"), Stacked(Orthogonal()))])
    assert len(cost_of(planned, mesh, given({})).whole) == matrices
    factorized: list[tuple[int, ...]] = []
    qr = torch.linalg.qr

    def counted(matrix: torch.Tensor) -> object:
        factorized.append(tuple(matrix.shape))
        return qr(matrix)

    monkeypatch.setattr(torch.linalg, "qr", counted)
    local = torch.empty(mesh.local_shape(site, (0,)))
    write(planned.steps[0].fill, Shard(site.name, local, site.shape, (0, 0, 0)), Keyed(0))
    assert factorized == [(16, 16)] * matrices


def test_the_time_of_a_factorization_grows_with_both_sides() -> None:
    rates = given({})
    small = rates.seconds_of(Orthogonal(), (64, 64))
    assert rates.seconds_of(Orthogonal(), (128, 128)) == pytest.approx(8 * small)
    assert rates.seconds_of(Orthogonal(), (128, 64)) == pytest.approx(2 * small)
    assert rates.seconds_of(DeltaOrthogonal(), (0, 3, 3)) == 0.0
    assert rates.seconds_of(Sparse(0.5), (64, 128)) == pytest.approx(2 * rates.seconds_of(Sparse(0.5), (64, 64)))


def test_a_rate_is_measured_for_each_kind() -> None:
    """Of what a fill is made does not matter, only what it draws; samples are parts of tensors too large to have."""
    with torch.device("meta"):
        model = nn.ModuleDict({"table": nn.Embedding(1 << 20, 1 << 14, padding_idx=3), "head": nn.Linear(8, 8)})
    rules = [
        Rule(Leaf("weight") & Layer("Embedding"), Normal()),
        Rule(Leaf("weight") & Layer("Linear"), Orthogonal()),
        Rule(Leaf("bias"), Uniform(-1, 1)),
    ]
    rates = measured(make_plan(sites(model), rules))
    assert set(rates.nanoseconds) == {"Normal float32", "Uniform float32"}
    assert all(rate > 0 for rate in rates.nanoseconds.values())
    assert rates.call > 0
    assert rates.source.startswith("measured here and now on the CPU, ")
    assert kind_of(Padded(Normal(), row=3), Site("table", (8, 2), torch.float16)) == "Normal float16"


@pytest.mark.parametrize(
    ("model", "mesh", "ways", "overrides", "elements"),
    [
        (llama_405b, "512x8", "fsdp,tp", [], 405_853_388_800),
        (moe_1t, "512x8", "fsdp,ep", ["fsdp:**.experts.*=1"], 1_028_298_994_688),
    ],
    ids=["405B", "1T"],
)
def test_a_model_for_thousands_of_ranks(
    model: Callable[[], nn.Module], mesh: str, ways: str, overrides: list[str], elements: int
) -> None:
    with torch.device("meta"):
        plan = make_plan(sites(model()), load_recipe(LARGE)).check(complete=True)
    partition = replace(parse_mesh(mesh, ways), overrides=tuple(map(parse_override, overrides)))
    cost = cost_of(plan, partition, given({"Normal bfloat16": 1.0, "Constant bfloat16": 1.0}))
    assert cost.elements == elements
    assert cost.ranks == 4096
    assert elements * 2 / 4096 <= cost.most < 1.1 * elements * 2 / 4096 + (8 << 20)  # parts that do not divide
    assert len(cost.groups) < 20


MEASURE = """
import math, sys, torch
from torchinit.initializers import *
from torchinit.model import Shard
from torchinit.noise import Keyed
from torchinit.plans.run import write

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

for text in sys.argv[1:]:
    fill, shape = eval(text)
    write(fill, Shard.whole("w", torch.empty([min(size, 64) for size in shape])), Keyed(0))
    here = Shard("w", torch.empty(1, *shape[1:]), shape, (0,) * len(shape))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = peak()
    write(fill, here, Keyed(0))
    print((peak() - before) / math.prod(shape))
"""

SIZES: list[tuple[RegionFill, tuple[int, ...]]] = [
    (Orthogonal(), (1024, 1024)),
    (DeltaOrthogonal(), (512, 512, 3, 3)),
    (Sparse(0.5), (1024, 1024)),
    (Dirac(), (512, 512, 3, 3)),
]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the peak of a process")
def test_the_memory_of_fills_that_are_computed_whole() -> None:
    """What is told is what it takes at most; less where the allocator has pages left, or zeros that nobody touches."""
    command = [sys.executable, "-c", MEASURE, *map(repr, SIZES)]
    # Each tensor a mapping of its own: what malloc keeps of freed ones depends on what ran before, and on where.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    for (fill, _), bytes_an_element in zip(SIZES, map(float, printed), strict=True):
        least = 0 if isinstance(fill, Dirac) else 0.5 * type(fill).bytes_an_element
        assert least <= bytes_an_element < 1.1 * type(fill).bytes_an_element, fill
    assert {type(fill) for fill, _ in SIZES} == {Orthogonal, DeltaOrthogonal, Sparse, Dirac}


def test_composites_are_looked_into() -> None:
    assert [box.shape for box, _ in whole_regions(Padded(Orthogonal(), row=0), (4, 3))] == [(4, 3)]
    assert whole_regions(Normal(), (4, 3)) == []
