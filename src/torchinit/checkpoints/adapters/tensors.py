"""Tensors: what adapters compute with, and how they compare shapes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from torchinit.model.shards import Box, Shard
from torchinit.noise import Keyed

Size: TypeAlias = tuple[int, ...]  # the shape of a tensor


def upcast(tensor: Tensor) -> Tensor:
    """The tensor in a dtype to compute in: its own, but float32 at least."""
    small = tensor.dtype.itemsize == 1  # torch promotes no float of eight bits
    return tensor.to(torch.float32 if small else torch.promote_types(tensor.dtype, torch.float32))


def span(places: Sequence[Tensor]) -> tuple[int, int]:
    """The first of all places, and the one behind the last; nothing of nothing."""
    every = torch.cat([*places]) if places else torch.empty(0, device="cpu")
    return (int(every.min()), int(every.max()) + 1) if len(every) else (0, 0)


def normal(seed: int, key: str, box: Box, shape: Size, like: Tensor, *, std: float = 1.0, index: int = 0) -> Tensor:
    """The normal numbers of a seed and a name for a box of a tensor, with the dtype and on the device of another."""
    draws = torch.empty(box.shape, dtype=like.dtype, device="cpu")
    Keyed(seed).fill(Shard(key, draws, shape, box.start), "normal", (0.0, std), index)
    return draws.to(like.device)


def along(values: Tensor, axis: int, like: Tensor) -> Tensor:
    """A value for each slice along an axis, to be broadcast over the others."""
    return values.view(-1, *(1,) * (like.dim() - axis - 1)).to(like.device)


def picked(picks: Sequence[Tensor], box: Box) -> tuple[Box, list[Tensor]]:
    """The box of a tensor that holds what is picked of it for a box of the result, and the places therein."""
    here = [pick.narrow(0, low, size) for pick, low, size in zip(picks, box.start, box.shape, strict=True)]
    spans = [span([places]) for places in here]
    read = Box(tuple(low for low, _ in spans), tuple(end - low for low, end in spans))
    return read, [places - low for places, low in zip(here, read.start, strict=True)]


def taken(tensor: Tensor, places: Sequence[Tensor]) -> Tensor:
    """The elements of a tensor at these places along each axis."""
    for axis, each in enumerate(places):
        if len(each) != tensor.shape[axis] or not torch.equal(each, torch.arange(len(each), device="cpu")):
            tensor = tensor.index_select(axis, each.to(tensor.device))
    return tensor


def listed(shapes: Sequence[Size]) -> str:
    """Shapes as a message has them: ``[2, 3], []``."""
    return ", ".join(str(list(size)) for size in shapes)


def check_same(
    adapter: object, shapes: Sequence[Size], shape: Size, free: Collection[int], *, least: int = 1, most: int = 0
) -> Size:
    """Return the one shape of the file, once it agrees with the site's in every dimension but the ``free`` ones.

    Raises ValueError where it does not, where a free dimension is empty, and where the site has fewer than ``least``
    dimensions, or more than ``most``, if that is given.
    """
    (stored,) = shapes
    if not least <= len(shape) <= (most or len(shape)):
        dims = f"at least {least}" if not most else " or ".join(map(str, range(least, most + 1)))
        raise ValueError(f"{adapter} needs a site of {dims} dimensions, but it has {list(shape)}")
    open_axes = {axis % len(shape) for axis in free}
    expected = ["*" if axis in open_axes else str(size) for axis, size in enumerate(shape)]
    if ["*" if axis in open_axes else str(size) for axis, size in enumerate(stored)] != expected:
        raise ValueError(f"{adapter} needs [{', '.join(expected)}] for a site of {list(shape)}, but got {list(stored)}")
    if any(stored[axis] == 0 for axis in open_axes):
        raise ValueError(f"{adapter} can make nothing of {list(stored)}, which is empty")
    return stored
