"""Placements: which part of a distributed tensor is here, as boxes of the whole."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from itertools import product
from typing import Any, Final, NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from torchinit.errors import RunError
from torchinit.model.meshes import ASCEND, check_order, cut_dimensions, piece_here
from torchinit.model.shards import Shard

Stretch = tuple[int, int]
"""First index and the one after the last, along one dimension of the whole."""


def is_distributed(tensor: Tensor) -> TypeGuard[Any]:
    """Whether the tensor is a DTensor: a part here, the others on other ranks.

    >>> is_distributed(torch.zeros(2))
    False
    """
    module = sys.modules.get("torch.distributed.tensor")  # who has not imported it has no such tensor
    return module is not None and isinstance(tensor, module.DTensor)


BEHIND: Final[MutableMapping[Tensor, Tensor]] = WeakIdKeyDictionary()
"""The DTensors behind plain tensors that stand for them while code works on a model that knows nothing of parts."""


def behind(tensor: Tensor) -> Tensor:
    """The DTensor that a plain tensor stands for at the time; any other tensor itself.

    >>> tensor = torch.zeros(2)
    >>> behind(tensor) is tensor
    True
    """
    return BEHIND.get(tensor, tensor)


def local_part(tensor: Tensor) -> Tensor:
    """The memory of a tensor on this rank: of a DTensor its local part, of any other the tensor itself.

    >>> tensor = torch.zeros(2)
    >>> local_part(tensor) is tensor
    True
    """
    if not is_distributed(tensor):
        return tensor
    with torch.no_grad():
        local: Tensor = tensor.to_local().detach()  # a plain tensor in the same memory
    return local


def shards_of(name: str, tensor: Tensor, store: Callable[[Tensor], Tensor] | None = None) -> tuple[Shard, ...]:
    """What of a tensor is here: a plain tensor whole, of a DTensor its local part, cut into boxes of the whole.

    One box is enough but where several dimensions of a mesh cut one axis of the tensor in another order than
    the mesh's own; the shards are then views of the local part. Of a tensor on a mesh that this rank does not
    belong to nothing is here, and the answer is empty. Raises RunError for a sum whose terms lie on several ranks
    (``Partial``), which has no values of its own, and for a layout that torch's own collectives would put together
    otherwise than it was cut (some meshes whose ranks do not ascend).

    >>> [shard.is_whole for shard in shards_of("weight", torch.zeros(2, 3))]
    [True]
    """
    if not is_distributed(tensor):
        return (Shard.whole(name, tensor, store),)
    local, shape = local_part(tensor), tuple(tensor.shape)
    cuts = _cuts(name, tensor)
    if cuts is None:
        return ()
    axes = [_stretches(size, cuts[axis], local.shape[axis]) for axis, size in enumerate(shape)]
    mesh = tensor.device_mesh
    if tuple(sum(high - low for low, high in axis) for axis in axes) != tuple(local.shape):
        moved = any(piece_here(mesh, i) != mesh.get_coordinate()[i] for i in cut_dimensions(tensor))
        disorder = f". The mesh's ranks {mesh.mesh.tolist()} do not ascend: {ASCEND}" if moved else ""
        raise RunError(
            f"{name}: its local part has shape {tuple(local.shape)}, which is not what placements"
            f" {tensor.placements} on a mesh of shape {tuple(mesh.shape)} leave of {shape}{disorder}"
        )
    check_order(name, tensor)
    spread = mesh.size() > 1
    return tuple(Shard(name, part, shape, start, store=store, spread=spread) for start, part in _boxes(local, axes))


def blank_shards(name: str, like: Tensor, store: Callable[[Tensor], Tensor]) -> tuple[Shard, ...]:
    """Shards in new memory that is laid out like a tensor; ``store`` takes the whole of it once it is written.

    >>> [shard.local.shape for shard in blank_shards("weight", torch.zeros(2, 3), lambda values: values)]
    [torch.Size([2, 3])]
    """
    blank = torch.empty_like(like)
    return shards_of(name, blank, (lambda _: store(blank)) if is_distributed(blank) else store)


class Cut(NamedTuple):
    """What one dimension of a mesh does to one axis: so many pieces, the one that is here, the split factor.

    ``factor`` is 0 for a plain cut; else the axis is first split into so many pieces, and each piece is cut.
    """

    pieces: int
    here: int
    factor: int = 0


def _cuts(name: str, tensor: Any) -> list[list[Cut]] | None:
    """The cuts of each axis in the order of the mesh's dimensions; None on a rank outside of the mesh."""
    mesh = tensor.device_mesh
    outside = mesh.get_coordinate() is None
    found: list[list[Cut]] = [[] for _ in tensor.shape]
    for dimension, (pieces, placement) in enumerate(zip(mesh.shape, tensor.placements, strict=True)):
        if placement.is_partial():
            raise RunError(
                f"{name}: is placed as {placement}: the ranks hold terms of a sum, which no values can be given to;"
                " redistribute it to Shard or Replicate"
            )
        axis = getattr(placement, "dim", None)
        if axis is not None:
            at = 0 if outside else piece_here(mesh, dimension)
            found[axis].append(Cut(pieces, at, getattr(placement, "split_factor", 0)))
    return None if outside else found


def _stretches(size: int, cuts: Sequence[Cut], here: int) -> list[Stretch]:
    """The indices of an axis that are here, as stretches in order.

    A strided cut can be read in two ways, which differ where the pieces are uneven. FSDP2 cuts what tensor
    parallelism left (``_inner_first``); torch's own placements are worked off in the order of the mesh, with
    a shuffle (``_in_order``), which is what ``distribute_tensor`` does. The local size tells which it was; where
    it fits both it is FSDP2, which is what such placements are made for.
    """
    order = _inner_first(cuts)
    if order is not None:
        found = [(0, size)]
        for cut in order:
            found = _piece(found, cut.pieces, cut.here)
        if _length(found) == here:
            return found
    return _in_order(size, cuts)


def _in_order(size: int, cuts: Sequence[Cut]) -> list[Stretch]:
    found = [(0, size)]
    for cut in cuts:
        pieces = [_piece(found, cut.factor, at) for at in range(cut.factor)] if cut.factor else [found]
        found = _joined(stretch for piece in pieces for stretch in _piece(piece, cut.pieces, cut.here))
    return found


def _inner_first(cuts: Sequence[Cut]) -> list[Cut] | None:
    """The cuts in the order in which they were made: a strided one after ``factor`` pieces were there already."""
    order: list[Cut] = []
    for cut in reversed(cuts):
        after = next((n for n in range(len(order) + 1) if _pieces(order[:n]) == max(1, cut.factor)), None)
        if after is None:
            return None
        order.insert(after, cut)
    return order


def _pieces(cuts: Sequence[Cut]) -> int:
    return math.prod(cut.pieces for cut in cuts)


def _piece(stretches: Sequence[Stretch], pieces: int, at: int) -> list[Stretch]:
    """One of so many pieces, as ``torch.chunk`` cuts them: all of one size but the last; there may be too few."""
    each = -(-_length(stretches) // pieces)
    low, high = at * each, (at + 1) * each
    found = []
    for first, last in stretches:
        begin, end = first + max(low, 0), min(first + high, last)
        if begin < end:
            found.append((begin, end))
        low, high = low - (last - first), high - (last - first)
    return found


def _length(stretches: Sequence[Stretch]) -> int:
    return sum(last - first for first, last in stretches)


def _joined(stretches: Iterator[Stretch]) -> list[Stretch]:
    """Neighbours that touch made one."""
    found: list[Stretch] = []
    for first, last in stretches:
        if found and found[-1][1] == first:
            found[-1] = found[-1][0], last
        else:
            found.append((first, last))
    return found


def _boxes(local: Tensor, axes: Sequence[list[Stretch]]) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Where each box of the local part starts in the whole, and the view of it."""
    if not local.numel():
        yield (0,) * local.dim(), local
        return
    for box in product(*map(_placed, axes)):
        part = local
        for axis, (_, at, size) in enumerate(box):
            part = part if size == part.shape[axis] else part.narrow(axis, at, size)
        yield tuple(first for first, _, _ in box), part


def _placed(stretches: Sequence[Stretch]) -> Iterator[tuple[int, int, int]]:
    """First index in the whole, first index in the local part, length."""
    at = 0
    for first, last in stretches:
        yield first, at, last - first
        at += last - first
