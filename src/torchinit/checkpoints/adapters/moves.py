"""Moves: what a box of a site is made of where an adapter only moves elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchinit.checkpoints.adapters.adapter import Adapter, Part, Size
from torchinit.core.shards import Box, replaced


def moved(adapter: Adapter, axis: int, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> Part:
    """The part of an adapter that moves slices along one axis: of each tensor the stretch that comes into the box.

    Which slices those are tells the adapter itself: the whole number of each is put through it.

    >>> from torchinit.checkpoints.adapters.fusion import Fuse
    >>> fuse = Fuse("qkv", ("q", "k", "v"))
    >>> [one.shape for one in moved(fuse, 0, [(4, 8), (2, 8), (2, 8)], (8, 8), Box((3, 0), (2, 8)), "qkv").boxes]
    [(1, 8), (1, 8), (0, 8)]
    """
    counts = [seen[axis] for seen in shapes]
    line = replaced((1,) * len(shape), axis, shape[axis])
    numbers = torch.arange(sum(counts)).view(replaced(line, axis, -1)).split(counts, axis)
    wanted = adapter.adapt(numbers, line, key).flatten().narrow(0, box.start[axis], box.shape[axis])
    boxes, read, first = [], [], 0
    for count in counts:
        mine = wanted[(wanted >= first) & (wanted < first + count)]
        low, end = (int(mine.min()), int(mine.max()) + 1) if len(mine) else (first, first)
        boxes.append(Box(replaced(box.start, axis, low - first), replaced(box.shape, axis, end - low)))
        read.append(torch.arange(low, end))
        first += count
    order = torch.searchsorted(torch.cat(read), wanted)
    return Part(tuple(boxes), lambda tensors: _ordered(tensors, axis, order))


def _ordered(tensors: Sequence[Tensor], axis: int, order: Tensor) -> Tensor:
    """The slices of all tensors, one after the other, in another order."""
    held = [tensor for tensor in tensors if tensor.shape[axis]] or [tensors[0]]
    joined = torch.cat(held, axis) if len(held) > 1 else held[0]
    if torch.equal(order, torch.arange(joined.shape[axis])):
        return joined
    return joined.index_select(axis, order.to(joined.device))
