"""Reductions: the sums of a tensor's parts, added up over the ranks that hold them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from torchinit.model.dtensor import cut_dimensions
from torchinit.plans.digest import Sums
from torchinit.plans.sources import Look

_LOW = (1 << 32) - 1


def reduced(looks: Sequence[Look], *, failed: bool = False) -> tuple[list[Sums], bool]:
    """The sums of whole tensors, from what was seen of the parts on this rank; and whether any rank failed.

    A DTensor's are added up along those dimensions of its mesh that cut it, so that each replica counts for itself;
    a plain tensor's stay as they are. Every rank of the meshes has to call this with the same tensors, also one
    that ``failed`` to get its sums: so nobody waits for it in vain.

    >>> reduced([Look("w", "torch.float32", (2,), Sums(1, 2))])
    ([Sums(first=1, second=2)], False)
    """
    found = [look.sums for look in looks]
    groups: dict[tuple[Any, tuple[int, ...]], list[int]] = {}
    for index, look in enumerate(looks):
        tensor = look.distributed
        if tensor is not None and tensor.device_mesh.get_coordinate() is not None:
            groups.setdefault((tensor.device_mesh, cut_dimensions(tensor)), []).append(index)
    for (mesh, dimensions), indices in groups.items():
        for dimension in dimensions:
            added, failed = _added([found[index] for index in indices], mesh, dimension, failed)
            for index, value in zip(indices, added, strict=True):
                found[index] = value
    return found, failed


def _added(sums: Sequence[Sums], mesh: Any, dimension: int, failed: bool) -> tuple[Iterator[Sums], bool]:
    # Halves of a lane, since a sum of 2**31 of them does not overflow.
    halves = [half for one in sums for lane in one for half in (lane & _LOW, lane >> 32)]
    buffer = torch.tensor([*halves, int(failed)], dtype=torch.int64, device=mesh.device_type)
    torch.distributed.all_reduce(buffer, group=mesh.get_group(dimension))
    *halves, failures = buffer.tolist()
    lanes = [low + (high << 32) & (1 << 64) - 1 for low, high in zip(halves[::2], halves[1::2], strict=True)]
    return map(Sums, lanes[::2], lanes[1::2]), failures > 0
