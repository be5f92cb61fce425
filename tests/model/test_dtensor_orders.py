"""Orders of ranks in a mesh: whose piece is whose, against what FSDP2 leaves on each rank of a mesh in any order."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import count, permutations
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from tests.ranks import fake_rank
from torchinit import RunError
from torchinit.model.dtensor import check_order, is_in_order, piece_here, shards_of

NAMES = count()


def mesh_of(ranks: Tensor) -> DeviceMesh:
    """A mesh with names of its own: torch keeps meshes that are equal, with the place of the rank that asked first."""
    return DeviceMesh("cpu", ranks, mesh_dim_names=tuple(f"m{next(NAMES)}" for _ in range(ranks.dim())))


def each_rank(ranks: Tensor) -> Iterator[DeviceMesh]:
    for rank in range(ranks.numel()):
        with fake_rank(rank, ranks.numel()):
            yield mesh_of(ranks)


def orders() -> Iterator[Tensor]:
    """Every order of four ranks in a line, and rows and columns of 2 x 3 in every order."""
    yield from map(torch.tensor, permutations(range(4)))
    plane = torch.arange(6).view(2, 3)
    for turned in (plane, plane.T.reshape(3, 2), torch.arange(6).view(3, 2).T):
        for rows in permutations(range(turned.shape[0])):
            for columns in permutations(range(turned.shape[1])):
                yield turned[list(rows)][:, list(columns)]


@pytest.mark.parametrize("rows", [4, 5])
def test_pieces_are_those_that_fsdp2_cuts(rows: int) -> None:
    """FSDP2 asks no mesh where it is: it takes the chunk of its rank in the group."""
    checked = 0
    for ranks in orders():
        if ranks.flatten()[0]:  # as many again would show no more
            for mesh in each_rank(ranks):
                layer = nn.Linear(2, rows, bias=False)
                whole = torch.arange(2.0 * rows).view(rows, 2)
                layer.weight = nn.Parameter(whole.clone())
                fully_shard(layer, mesh=mesh)
                assert isinstance(layer.weight, DTensor)
                (part,) = shards_of("w", layer.weight)
                first, size = part.start[0], len(part.local)
                assert torch.equal(whole[first : first + size], part.local), (ranks, mesh.get_rank())
                checked += 1
    assert checked > 100


@pytest.mark.skipif(
    "sort_ranks" not in inspect.signature(dist.new_group).parameters, reason="this torch sorts the ranks of each group"
)
def test_a_group_that_was_not_sorted_counts_as_it_is() -> None:
    with fake_rank(0, 2):
        mesh = DeviceMesh.from_group(dist.new_group([1, 0], sort_ranks=False), "cpu")
        assert mesh.mesh.tolist() == [1, 0]
        assert piece_here(mesh, 0) == 1
        assert is_in_order(mesh)


def test_without_a_group_it_is_the_place_in_the_mesh() -> None:
    with fake_rank(0, 2):
        mesh = DeviceMesh("cpu", [1, 0], _init_backend=False)
        assert piece_here(mesh, 0) == 1
        assert is_in_order(mesh)


def test_the_same_answer_on_every_rank() -> None:
    """In [0, 2, 1] rank 0 is in its place, and has to know all the same that others are not."""
    assert [is_in_order(mesh) for mesh in each_rank(torch.tensor([0, 2, 1]))] == [False] * 3
    assert [is_in_order(mesh) for mesh in each_rank(torch.arange(3))] == [True] * 3


CASES: list[tuple[Any, list[Placement], str | None]] = [
    ([[3, 2], [1, 0]], [Shard(0), Shard(0)], None),
    ([[0, 2], [1, 3]], [Shard(0), Shard(0)], None),
    ([[0, 1], [3, 2]], [Shard(0), Replicate()], None),
    ([[0, 1], [3, 2]], [Replicate(), Replicate()], None),
    (
        [[0, 1], [3, 2]],
        [Replicate(), Shard(0)],
        r"w: dimension 1 of its mesh has its ranks in different orders, as \[0, 1\] and \[3, 2\]: torch cuts by",
    ),
    (
        [[0, 3], [2, 1]],
        [Shard(0), Shard(1)],
        r"dimension 0 of its mesh has its ranks in different orders, as \[0, 2\] and \[3, 1\]: .* as init_device_mesh",
    ),
]


@pytest.mark.parametrize(("ranks", "placements", "text"), CASES)
def test_orders_that_make_no_whole_are_refused_on_every_rank(
    ranks: Any, placements: list[Placement], text: str | None
) -> None:
    for mesh in each_rank(torch.tensor(ranks)):
        spread = DTensor.from_local(torch.zeros(4, 4), mesh, placements, run_check=False)
        if text is None:
            check_order("w", spread)
        else:
            with pytest.raises(RunError, match=text):
                check_order("w", spread)


def test_dimensions_that_were_made_one_have_to_ascend_together() -> None:
    for ranks, refused in (([[0, 2], [1, 3]], True), ([[3, 2], [1, 0]], False)):
        for mesh in each_rank(torch.tensor(ranks)):
            mesh._flatten(f"f{next(NAMES)}")
            for placements in ([Shard(0), Shard(0)], [Shard(0), Shard(1)]):
                spread = DTensor.from_local(torch.zeros(2, 2), mesh, placements, run_check=False)
                if refused and placements[0] == placements[1]:
                    with pytest.raises(
                        RunError, match=r"are flattened into one, over ranks \[0, 2, 1, 3\]: torch cuts"
                    ):
                        check_order("w", spread)
                else:
                    check_order("w", spread)
