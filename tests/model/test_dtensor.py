"""DTensors: which elements are here, against what torch itself puts here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from tests.ranks import each_rank, fake_rank
from torchinit import RunError
from torchinit.model.dtensor import blank_shards, local_part, shards_of
from torchinit.model.parametrizations import Parametrized

SHAPES = ((5,), (7,), (1, 7), (6, 4), (3, 5), (0, 3), (4, 3, 2))
MESHES = ((1,), (2,), (3,), (5,), (2, 2), (2, 3), (3, 2), (1, 3), (2, 2, 2), (2, 1, 3))


def numbers(shape: Sequence[int]) -> Tensor:
    return torch.arange(math.prod(shape)).reshape(tuple(shape))


def options(axes: int, deep: bool) -> list[Placement]:
    """Replicate, and a plain and a strided cut of each axis."""
    strided = [
        _StridedShard(axis, split_factor=factor) for axis in range(axes) for factor in ((2,) if deep else (2, 3))
    ]
    return [Replicate(), *map(Shard, range(axes)), *strided]


def disagreement(spread: Any) -> str | None:
    """What is wrong with the shards of a tensor that holds its own flat indices."""
    local, whole = spread.to_local(), numbers(spread.shape)
    parts = shards_of("w", spread)
    home = local.untyped_storage().data_ptr()
    seen = 0
    for part in parts:
        box = tuple(slice(at, at + size) for at, size in zip(part.start, part.local.shape, strict=True))
        if part.shape != tuple(spread.shape) or part.local.untyped_storage().data_ptr() != home:
            return f"{part} is no view of {local}"
        if not torch.equal(whole[box], part.local):
            return f"{part.local} is not {whole[box]}"
        seen += part.local.numel()
    if seen != local.numel():
        return f"{seen} of {local.numel()} elements"
    return None


@pytest.mark.slow("every placement of every small mesh, compared element by element")
@pytest.mark.parametrize("layout", MESHES, ids=str)
def test_every_placement_of_every_shape(layout: tuple[int, ...]) -> None:
    """Against torch's own cutting, of tensors that hold the indices of their elements."""
    checked = 0
    for mesh in each_rank(*layout):
        for shape in SHAPES:
            for placements in product(options(len(shape), len(layout) > 2), repeat=len(layout)):
                spread = distribute_tensor(numbers(shape), mesh, list(placements), src_data_rank=None)
                wrong = disagreement(spread)
                assert wrong is None, (mesh.get_coordinate(), shape, placements, wrong)
                checked += 1
    assert checked >= math.prod(layout) * len(SHAPES) * 3 ** len(layout)


def wrapped(rows: int, mesh: DeviceMesh) -> DTensor:
    """A weight as tensor parallelism on the last dimension of a mesh and then FSDP2 on the others leave it."""
    *data, tensor = mesh.mesh_dim_names or ()
    layer = nn.Linear(2, rows, bias=False)
    weight = distribute_tensor(numbers((rows, 2)).float(), mesh[tensor], [Shard(0)], src_data_rank=None)
    layer.weight = nn.Parameter(weight)
    fully_shard(layer, mesh=mesh[tuple(data)])
    assert isinstance(layer.weight, DTensor)
    return layer.weight


@pytest.mark.parametrize("layout", [(2, 2), (3, 2), (2, 3), (2, 2, 2)], ids=str)
def test_fsdp2_over_tensor_parallel_rows(layout: tuple[int, ...]) -> None:
    """Of seven rows on a mesh of 3 x 2 FSDP2 leaves other pieces than its own placements say."""
    for mesh in each_rank(*layout):
        for rows in (1, 2, 3, 5, 7, 11):
            weight = wrapped(rows, mesh)
            wrong = disagreement(weight.to(torch.int64).detach())
            assert wrong is None, (mesh.get_coordinate(), rows, weight.placements, wrong)


def test_a_part_that_is_not_one_box() -> None:
    """Two dimensions of a mesh on one axis, the first of them strided and the second on another axis."""
    with fake_rank(0, 2):
        mesh = DeviceMesh("cpu", [0, 1])
        spread = distribute_tensor(numbers((8,)), mesh, [_StridedShard(0, split_factor=2)], src_data_rank=None)
        parts = shards_of("w", spread)
        assert [(part.start, part.local.tolist()) for part in parts] == [((0,), [0, 1]), ((4,), [4, 5])]
        parts[1].local.fill_(9)
        assert spread.to_local().tolist() == [0, 1, 9, 9]


def test_a_plain_tensor_is_whole() -> None:
    tensor = torch.zeros(2, 3)
    (part,) = shards_of("w", tensor)
    assert part.is_whole and not part.spread and part.local is tensor


def test_copies_on_several_ranks_are_spread_and_on_one_are_not() -> None:
    for mesh in (*each_rank(2), *each_rank(1)):
        (part,) = shards_of("w", distribute_tensor(torch.zeros(3), mesh, [Replicate()], src_data_rank=None))
        assert part.is_whole
        assert part.spread == (mesh.size() > 1)


def test_an_empty_part() -> None:
    with fake_rank(3, 4):
        mesh = DeviceMesh("cpu", range(4))
        (part,) = shards_of("w", distribute_tensor(torch.zeros(2, 3), mesh, [Shard(0)], src_data_rank=None))
        assert part.local.shape == (0, 3)
        assert part.shape == (2, 3)


def test_nothing_is_here_of_a_tensor_on_a_mesh_of_others() -> None:
    with fake_rank(3, 4):
        mesh = DeviceMesh("cpu", [0, 1], _init_backend=False)
        spread = DTensor.from_local(
            torch.zeros(2), mesh, [Shard(0)], run_check=False, shape=torch.Size([4]), stride=(1,)
        )
        assert shards_of("w", spread) == ()


def test_terms_of_a_sum_are_refused() -> None:
    with fake_rank(0, 2):
        spread = DTensor.from_local(torch.zeros(2), DeviceMesh("cpu", [0, 1]), [Partial()], run_check=False)
        with pytest.raises(RunError, match=r"w: is placed as P\(sum\): .*; redistribute it to Shard"):
            shards_of("w", spread)


def test_a_local_part_of_another_shape_is_refused() -> None:
    with fake_rank(0, 2):
        mesh = DeviceMesh("cpu", [0, 1])
        spread = DTensor.from_local(
            torch.zeros(2), mesh, [Shard(0)], run_check=False, shape=torch.Size([9]), stride=(1,)
        )
        with pytest.raises(RunError, match=r"w: its local part has shape \(2,\), which is not what placements"):
            shards_of("w", spread)


def test_blank_shards_hand_over_the_whole_of_a_distributed_tensor() -> None:
    given = []

    def store(values: Tensor) -> Tensor:
        given.append(values)
        return values

    with fake_rank(0, 2):
        like = distribute_tensor(torch.zeros(4), DeviceMesh("cpu", [0, 1]), [Shard(0)], src_data_rank=None)
        (part,) = blank_shards("w", like, Parametrized("w", like, (like,), store))
        assert part.sources == (like,)
        part.local.fill_(2.0)
        assert part.store is not None
        part.store(part.local)
        assert isinstance(given[0], DTensor)
        assert local_part(given[0]).tolist() == [2.0, 2.0]
