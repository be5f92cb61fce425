"""DTensors: which part of a distributed tensor is on this rank, as boxes of the whole."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from torchinit.errors import RunError
from torchinit.model.parametrizations import Parametrized
from torchinit.model.shards import Shard

ASCEND: Final = (
    "torch cuts by the place in the mesh, but gathers by the rank in the group; make the mesh of ascending ranks,"
    " as init_device_mesh does"
)
"""Why a mesh whose ranks do not ascend may be refused, and the way out."""

BEHIND: Final = WeakIdKeyDictionary()
"""The DTensors behind plain tensors that stand for them while code works on a model that knows nothing of parts."""


def is_distributed(tensor: Tensor) -> TypeGuard[Any]:
    """Whether the tensor is a DTensor: a part here, the others on other ranks."""
    module = sys.modules.get("torch.distributed.tensor")  # who has not imported it has no such tensor
    return module is not None and isinstance(tensor, module.DTensor)


def behind(tensor: Tensor) -> Tensor:
    """The DTensor that a plain tensor stands for at the time; any other tensor itself."""
    return cast("Tensor", BEHIND.get(tensor, tensor)) if BEHIND.data else tensor  # whose length takes longer


def local_part(tensor: Tensor) -> Tensor:
    """The memory of a tensor on this rank: of a DTensor its local part, of any other the tensor itself."""
    if type(tensor) is nn.Parameter or not is_distributed(tensor):
        return tensor
    with torch.no_grad():
        local: Tensor = tensor.to_local().detach()  # a plain tensor in the same memory
    return local


def whole_values(tensor: Tensor) -> Tensor:
    """The values of a whole tensor, a DTensor's gathered: all ranks of its mesh have to call this."""
    if not is_distributed(tensor):
        return tensor
    whole: Tensor = tensor.full_tensor()
    return whole


def shards_of(name: str, tensor: Tensor, store: Callable[[Tensor], Tensor] | None = None) -> tuple[Shard, ...]:
    """The parts of a tensor that are here: a plain tensor whole, of a DTensor its local part, cut into boxes.

    One box is enough but where several dimensions of a mesh cut one axis of the tensor in another order than
    the mesh's own; the shards are then views of the local part. On a rank outside of the mesh there are none.
    Raises RunError for a sum whose terms lie on several ranks (``Partial``), which has no values of its own, and for
    a layout that torch's own collectives would put together otherwise than it was cut (:func:`check_order`).

    >>> [shard.is_whole for shard in shards_of("weight", torch.zeros(2, 3))]
    [True]
    """
    if type(tensor) is nn.Parameter or not is_distributed(tensor):
        return (Shard.whole(name, tensor, store),)
    local, shape, mesh = local_part(tensor), tuple(tensor.shape), tensor.device_mesh
    cuts = _cuts(name, tensor)
    if mesh.get_coordinate() is None:
        return ()
    axes = [_stretches(size, cuts[axis], local.shape[axis]) for axis, size in enumerate(shape)]
    if tuple(map(_length, axes)) != tuple(local.shape):
        moved = any(piece_here(mesh, i) != mesh.get_coordinate()[i] for i in cut_dimensions(tensor))
        disorder = f". The mesh's ranks {mesh.mesh.tolist()} do not ascend: {ASCEND}" if moved else ""
        raise RunError(
            f"{name}: its local part has shape {tuple(local.shape)}, which is not what placements"
            f" {tensor.placements} on a mesh of shape {tuple(mesh.shape)} leave of {shape}{disorder}"
        )
    check_order(name, tensor)
    spread = mesh.size() > 1
    return tuple(Shard(name, part, shape, start, store=store, spread=spread) for start, part in _boxes(local, axes))


def blank_shards(name: str, like: Tensor, computed: Parametrized) -> tuple[Shard, ...]:
    """Shards in new memory that is laid out like a computed tensor, which is given all of it; none if it takes none."""
    store = computed.assign
    if store is None:
        return ()
    blank = torch.empty_like(like)
    parts = shards_of(name, blank, (lambda _: store(blank)) if is_distributed(blank) else store)
    return tuple(replace(part, sources=computed.sources) for part in parts)


# --- meshes ----------------------------------------------------------------------------------------------------------


def piece_here(mesh: Any, dimension: int) -> int:
    """Which piece this rank of a mesh has along one of its dimensions, as collectives count.

    ``DeviceMesh.get_coordinate()`` is the place in the mesh's array of ranks. FSDP2, ``full_tensor()`` and
    ``distribute_tensor`` go by the rank in the dimension's process group, whose ranks torch sorts: on a mesh of ranks
    ``[1, 0]`` rank 0 has the first piece, though its place is the second. Nothing is sent to find this out.
    """
    try:
        return int(mesh.get_local_rank(dimension))
    except RuntimeError:  # the group was never made, or is gone: nothing will gather the pieces
        return int(mesh.get_coordinate()[dimension])


def is_in_order(mesh: Any) -> bool:
    """Whether the places in a mesh of one dimension are the ranks in its group, on this rank and all others of it."""
    try:
        ranks: list[int] = torch.distributed.get_process_group_ranks(mesh.get_group())
    except (RuntimeError, IndexError):  # no group, or not this rank's
        return True
    return bool(ranks == mesh.mesh.tolist())


def cut_dimensions(tensor: Any) -> tuple[int, ...]:
    """The dimensions of a DTensor's mesh along which its ranks hold different parts."""
    return tuple(i for i, placement in enumerate(tensor.placements) if getattr(placement, "dim", None) is not None)


def check_order(name: str, tensor: Any) -> None:
    """Raise RunError where the ranks of a DTensor's mesh are in an order that torch's collectives mix up.

    A rank's piece is told by its place in one group for each dimension that cuts the tensor. That makes a whole of the
    pieces only if each group along a dimension has its ranks in the same order: in ``[[0, 1], [3, 2]]`` the first
    ranks of the rows, 0 and 3, count as replicas of each other, but hold the first and the second piece. And where
    several dimensions cut one axis and have been flattened into one, torch gathers along that one, rank by rank.
    """
    mesh, cut = tensor.device_mesh, cut_dimensions(tensor)
    if mesh.ndim == 1 or (mesh.mesh.flatten().diff() > 0).all():
        return
    ranks = mesh.mesh
    for dimension in cut:
        groups = ranks.movedim(dimension, -1).reshape(-1, ranks.shape[dimension])
        orders = groups.argsort(-1)
        for group, order in zip(groups.tolist(), orders, strict=True):
            if not order.equal(orders[0]):
                raise RunError(
                    f"{name}: dimension {dimension} of its mesh has its ranks in different orders, as"
                    f" {groups[0].tolist()} and {group}: {ASCEND}"
                )
        ranks = ranks.index_select(dimension, orders[0])  # in the order of the groups
    for axis in {tensor.placements[dimension].dim for dimension in cut}:
        joint = [dimension for dimension in cut if tensor.placements[dimension].dim == axis]
        rows = ranks.movedim(joint, tuple(range(len(joint)))).flatten(0, len(joint) - 1)
        if (rows.diff(dim=0) < 0).any() and _is_flattened(mesh, len(rows)):
            raise RunError(
                f"{name}: dimensions {joint} of its mesh are flattened into one, over ranks"
                f" {rows.reshape(len(rows), -1)[:, 0].tolist()}: {ASCEND}"
            )


def _is_flattened(mesh: Any, size: int) -> bool:
    """Whether some dimensions of a mesh, or of the one that it is a slice of, were made one of so many ranks."""
    root = mesh._get_root_mesh() if hasattr(mesh, "_get_root_mesh") else mesh  # torch has no public list of them
    return any(flat.size() == size for flat in getattr(root, "_flatten_mapping", {}).values())


# --- cuts ------------------------------------------------------------------------------------------------------------
#
# The indices of one axis that are here are a list of stretches, each a range: one stretch after any number of plain
# cuts, several after a strided one, which first splits the axis into `factor` pieces and then cuts each of them. Such
# placements come about in two ways, which differ where the pieces are uneven, and a placement does not say which it
# was. FSDP2 cuts what tensor parallelism has left, though its dimension comes first in the mesh: the axis is cut by the
# inner dimension, then by the outer one (_inner_first). `distribute_tensor` works the placements off in the order of
# the mesh (_in_order). The local size tells them apart; where it fits both, the pieces are even or it is FSDP2, which
# is what such placements are made for. Reading all of them in the mesh's order was wrong for 7 rows on 3 x 2 ranks. It
# would fail if torch cut otherwise than in chunks of one size, the last one smaller: the sizes then do not match, and
# shards_of refuses.


class Cut(NamedTuple):
    """A cut of one axis by one dimension of a mesh: the number of pieces, the one that is here, the split factor.

    ``factor`` is 0 for a plain cut; else the axis is first split into so many pieces, and each piece is cut.
    """

    pieces: int
    here: int
    factor: int = 0


def _cuts(name: str, tensor: Any) -> list[list[Cut]]:
    """The cuts of each axis in the order of the mesh's dimensions; on a rank outside of the mesh without meaning."""
    mesh = tensor.device_mesh
    is_outside = mesh.get_coordinate() is None
    cuts: list[list[Cut]] = [[] for _ in tensor.shape]
    for dimension, (pieces, placement) in enumerate(zip(mesh.shape, tensor.placements, strict=True)):
        if placement.is_partial():
            raise RunError(
                f"{name}: is placed as {placement}: the ranks hold terms of a sum, which no values can be given to;"
                " redistribute it to Shard or Replicate"
            )
        axis = getattr(placement, "dim", None)
        if axis is not None:
            here = 0 if is_outside else piece_here(mesh, dimension)
            cuts[axis].append(Cut(pieces, here, getattr(placement, "split_factor", 0)))
    return cuts


def _stretches(size: int, cuts: Sequence[Cut], local_size: int) -> list[range]:
    order = _inner_first(cuts)
    if order is not None:
        stretches = [range(size)]
        for cut in order:
            stretches = _piece(stretches, cut.pieces, cut.here)
        if _length(stretches) == local_size:
            return stretches
    return _in_order(size, cuts)


def _in_order(size: int, cuts: Sequence[Cut]) -> list[range]:
    stretches = [range(size)]
    for cut in cuts:
        split = [_piece(stretches, cut.factor, at) for at in range(cut.factor)] if cut.factor else [stretches]
        stretches = _joined(stretch for each in split for stretch in _piece(each, cut.pieces, cut.here))
    return stretches


def _inner_first(cuts: Sequence[Cut]) -> list[Cut] | None:
    """The cuts in the order in which they were made: a strided one after ``factor`` pieces were there already."""
    order: list[Cut] = []
    for cut in reversed(cuts):
        pieces = (math.prod(earlier.pieces for earlier in order[:n]) for n in range(len(order) + 1))
        after = next((n for n, number in enumerate(pieces) if number == max(1, cut.factor)), None)
        if after is None:
            return None
        order.insert(after, cut)
    return order


def _piece(stretches: Sequence[range], pieces: int, at: int) -> list[range]:
    """One of so many pieces, as ``torch.chunk`` cuts them: all of one size but the last; there may be too few."""
    each = -(-_length(stretches) // pieces)
    low, high = at * each, (at + 1) * each
    piece = []
    for stretch in stretches:
        piece.append(stretch[max(low, 0) : max(high, 0)])
        low, high = low - len(stretch), high - len(stretch)
    return [part for part in piece if part]


def _length(stretches: Iterable[range]) -> int:
    return sum(map(len, stretches))


def _joined(stretches: Iterable[range]) -> list[range]:
    """Neighbours that touch made one."""
    joined: list[range] = []
    for stretch in stretches:
        if joined and joined[-1].stop == stretch.start:
            joined[-1] = range(joined[-1].start, stretch.stop)
        else:
            joined.append(stretch)
    return joined


def _boxes(local: Tensor, axes: Sequence[list[range]]) -> list[tuple[tuple[int, ...], Tensor]]:
    """Where each box of the local part starts in the whole, and the view of it."""
    if not local.numel():
        return [((0,) * local.dim(), local)]
    boxes: list[tuple[tuple[int, ...], Tensor]] = [((), local)]
    for axis, stretches in enumerate(axes):
        sizes = [len(stretch) for stretch in stretches]
        boxes = [
            ((*start, stretch.start), view)
            for start, part in boxes
            for stretch, view in zip(stretches, part.split(sizes, axis) if len(sizes) > 1 else [part], strict=True)
        ]
    return boxes
