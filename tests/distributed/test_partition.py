"""Partitions: arithmetic on shapes, against what torch's own FSDP2 and tensor parallelism leave on each rank."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tests.ranks import fake_rank
from torchinit import RunError, sites
from torchinit.distributed.partition import Partition, PartitionOverride, parse_mesh, parse_override, piece
from torchinit.model import Site
from torchinit.model.dtensor import local_part


class Block(nn.Module):
    """Sizes that two and three do not divide, and fewer rows than ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(10)
        self.wq = nn.Linear(10, 14)
        self.wk = nn.Linear(10, 2)
        self.wo = nn.Linear(14, 10)
        self.router = nn.Linear(10, 5, bias=False)
        self.experts = nn.Module()
        self.experts.w1 = nn.Parameter(torch.empty(5, 4, 10))
        self.scale = nn.Parameter(torch.empty(3))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(11, 10)
        self.layers = nn.ModuleList(Block() for _ in range(2))


PLAN = {
    "embed_tokens": RowwiseParallel(),
    "layers.*.wq": ColwiseParallel(),
    "layers.*.wk": ColwiseParallel(),
    "layers.*.wo": RowwiseParallel(),
}


def held_by_torch(rank: int, sizes: tuple[int, ...], names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """The local shapes that torch itself leaves a rank."""
    with fake_rank(rank, math.prod(sizes)), torch.device("meta"):
        # Names that tell the ranks apart: torch keeps meshes that are equal.
        mesh = init_device_mesh("cpu", sizes, mesh_dim_names=tuple(f"{name}_{rank}" for name in names))
        model = Model()
        if "tp" in names:
            tensor = mesh[f"tp_{rank}"]
            parallelize_module(model, tensor, PLAN)
            for block in model.layers:
                experts = block.get_submodule("experts")
                cut = distribute_tensor(experts.get_parameter("w1"), tensor, [Shard(0)])
                experts.register_parameter("w1", nn.Parameter(cut))
        data = tuple(f"{name}_{rank}" for name in names if name != "tp")
        for block in model.layers:
            fully_shard(block, mesh=mesh[data])
        fully_shard(model, mesh=mesh[data])
        return {site.name: tuple(local_part(tensor_of(model, site.name)).shape) for site in sites(model)}


def tensor_of(model: nn.Module, name: str) -> torch.Tensor:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}[name]


@pytest.mark.parametrize(
    ("sizes", "ways"),
    [
        ((3,), ("fsdp",)),
        ((3, 2), ("fsdp", "tp")),
        ((2, 3), ("replicate", "fsdp")),
        ((2, 2, 2), ("replicate", "fsdp", "tp")),
    ],
)
def test_every_rank_holds_what_torch_leaves_it(sizes: tuple[int, ...], ways: tuple[str, ...]) -> None:
    with torch.device("meta"):
        known = sites(Model())
    partition = parse_mesh("x".join(map(str, sizes)), ",".join(ways))
    for rank, coordinate in enumerate(itertools.product(*map(range, sizes))):
        expected = held_by_torch(rank, sizes, ways)
        assert {site.name: partition.local_shape(site, coordinate) for site in known} == expected


@given(st.integers(0, 40), st.integers(1, 9))
def test_pieces_are_those_of_chunk(size: int, pieces: int) -> None:
    chunks = [len(chunk) for chunk in torch.empty(size).chunk(pieces)] if size else []
    assert [piece(size, pieces, at) for at in range(pieces)] == chunks + [0] * (pieces - len(chunks))


def test_placings_win_over_what_is_usual() -> None:
    norm, expert = Site("layers.0.norm.weight", (8,)), Site("layers.0.experts.w1", (6, 4, 10))
    usual = Partition((2, 2), ("fsdp", "tp"))
    assert usual.axes(norm) == (0, None)
    assert usual.axes(expert) == (0, 0)
    overrides = (
        PartitionOverride("tp", "**.norm.*", 0),
        PartitionOverride("fsdp", "**.experts.*", 1),
        PartitionOverride("tp", "**", None),
    )
    other = Partition((2, 2), ("fsdp", "tp"), overrides)
    assert other.axes(expert) == (1, None)
    assert other.axes(norm) == (0, None)
    assert Partition((2, 2), ("fsdp", "tp"), overrides[:2]).axes(norm) == (0, 0)
    assert other.local_shape(expert, (1, 0)) == (6, 2, 10)


def test_experts_apart_are_left_alone_by_tensor_parallelism() -> None:
    both = Partition((2, 2, 2), ("fsdp", "tp", "ep"))
    assert both.axes(Site("experts.w1", (6, 4, 10))) == (0, None, 0)
    assert both.axes(Site("wq.weight", (6, 4))) == (0, 0, None)


def test_mistakes_in_placements_come_together() -> None:
    overrides = (
        PartitionOverride("ep", "**.weight", 0),
        PartitionOverride("fsdp", "a.wieght", 0),
        PartitionOverride("fsdp", "a.weight", 2),
    )
    partition = Partition((2,), ("fsdp",), overrides)
    with pytest.raises(RunError, match="3 mistakes in the placements") as caught:
        partition.check([Site("a.weight", (2, 3))])
    assert caught.value.problems == (
        "ep:**.weight: the mesh has no dimension 'ep': it is fsdp 2",
        "fsdp:a.wieght matches none of 1 site; did you mean 'a.weight'?",
        "fsdp:a.weight: a.weight has no axis 2: its shape is (2, 3)",
    )


def test_what_is_usual_for_a_mesh() -> None:
    assert parse_mesh("8").ways == ("fsdp",)
    assert parse_mesh("2X4x8").ways == ("replicate", "fsdp", "tp")
    assert parse_mesh("4x2", "fsdp, ep").ways == ("fsdp", "ep")
    assert parse_mesh("4x2").ranks == 8


@pytest.mark.parametrize(
    ("mesh", "ways", "why"),
    [
        ("8x", "", "a mesh is numbers of ranks such as 512x8, but got '8x'"),
        ("0x8", "", "a mesh is numbers of ranks such as 512x8, but got '0x8'"),
        ("2x2x2x2", "", "what do the 4 dimensions of 2x2x2x2 do"),
        ("2x2", "fsdp,pp", "a dimension of a mesh does one of replicate, fsdp, tp, ep, but got 'pp'"),
        ("2x2", "fsdp", "a mesh of 2 dimensions needs as many ways"),
    ],
)
def test_what_is_no_mesh(mesh: str, ways: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_mesh(mesh, ways)


def test_a_mesh_has_ranks() -> None:
    with pytest.raises(ValueError, match="a mesh has dimensions of at least 1 rank"):
        Partition((0,), ("fsdp",))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tp", "a placement is way:name=axis"),
        ("tp:a.weight", "a placement is way:name=axis"),
        ("tp:a.weight=-1", "a placement is way:name=axis"),
        ("tq:a.weight=1", "a dimension of a mesh does one of replicate, fsdp, tp, ep, but got 'tq'"),
        ("tp:a..weight=1", "a name is dotted text"),
    ],
)
def test_what_is_no_placing(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_override(text)


def test_a_dtensor_is_what_these_tests_compare_with() -> None:
    """Else the shapes above would agree without a word about sharding."""
    with fake_rank(0, 2), torch.device("meta"):
        layer = nn.Linear(4, 6)
        fully_shard(layer, mesh=init_device_mesh("cpu", (2,), mesh_dim_names=("only",)))
        assert isinstance(layer.weight, DTensor)
        assert tuple(local_part(layer.weight).shape) == (3, 4)
