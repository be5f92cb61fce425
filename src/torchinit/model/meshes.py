"""Meshes: which piece of a distributed tensor a rank holds, in the order in which collectives gather the pieces."""

from __future__ import annotations

from typing import Any

import torch

from torchinit.errors import RunError

ASCEND = (
    "torch cuts by the place in the mesh, but gathers by the rank in the group; make the mesh of ascending ranks,"
    " as init_device_mesh does"
)
"""Why a mesh whose ranks do not ascend may be refused, and the way out."""


def piece_here(mesh: Any, dimension: int) -> int:
    """Return which piece a rank of a mesh has along one of its dimensions, as collectives count.

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
    """Return the dimensions of a DTensor's mesh along which its ranks hold different parts."""
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
        lines = ranks.movedim(dimension, -1).reshape(-1, ranks.shape[dimension])
        orders = lines.argsort(-1)
        for line, order in zip(lines.tolist(), orders, strict=True):
            if not order.equal(orders[0]):
                raise RunError(
                    f"{name}: dimension {dimension} of its mesh has its ranks in different orders, as"
                    f" {lines[0].tolist()} and {line}: {ASCEND}"
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
