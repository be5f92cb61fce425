"""Ranks: one process that takes the part of each rank of a job in turn, with no others there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def fake_rank(rank: int, world: int) -> Iterator[None]:
    """As if this process were one of a job: collectives return at once, with nothing in them."""
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def each_rank(*shape: int) -> Iterator[DeviceMesh]:
    """The mesh of this shape, as each rank in turn sees it.

    Its dimensions have names that tell the ranks apart, since torch keeps meshes that are equal, with the place
    of the rank that asked first.
    """
    world = math.prod(shape)
    for rank in range(world):
        with fake_rank(rank, world):
            yield init_device_mesh(
                "cpu", shape, mesh_dim_names=tuple(f"{letter}{rank}" for letter in "abc"[: len(shape)])
            )


def local_of(local: Tensor, mesh: DeviceMesh, placement: Placement, *shape: int) -> DTensor:
    """The distributed tensor of this shape of which this is the part on this rank."""
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, [placement], run_check=False, shape=torch.Size(shape), stride=stride)
