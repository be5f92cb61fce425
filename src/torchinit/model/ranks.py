"""Ranks: what each process of a job says to the others, in an order in which none waits for one that waits for it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

from torchinit.errors import RunError
from torchinit.model.dtensor import is_distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_T = TypeVar("_T")


def is_alone() -> bool:
    """Whether there is no process group, and so nobody to talk to."""
    return not (torch.distributed.is_available() and torch.distributed.is_initialized())


def is_shared(group: ProcessGroup | None = None) -> bool:
    """Whether the group has other ranks."""
    return not is_alone() and torch.distributed.get_world_size(group) > 1


def gathered(value: _T, group: ProcessGroup | None = None) -> list[_T]:
    """The values of all ranks of a group, in their order; every rank has to call this.

    Raises RunError where there is no process group, and where a rank gives no answer: it has died, or the group's
    timeout has passed.
    """
    dist = torch.distributed
    if is_alone():
        raise RunError("there is no process group: call torch.distributed.init_process_group first")
    found: list[_T] = [value] * dist.get_world_size(group)
    if dist.get_backend(group) == "fake":  # of a dry run on one process: nobody else is there
        return found
    try:
        dist.all_gather_object(found, value, group)
    except RuntimeError as error:
        raise RunError(f"no word from the other ranks: {str(error).splitlines()[0]}") from error
    return found


def ranks_of(group: ProcessGroup | None = None) -> list[int]:
    """The ranks of a group, as the whole job counts them."""
    return torch.distributed.get_process_group_ranks(group or torch.distributed.group.WORLD)


class Spread(Protocol):
    """Tells what each rank that has a model says: the values by rank. All these ranks have to call it."""

    def __call__(self, value: _T, /) -> dict[int, _T]: ...


def over_group(group: ProcessGroup | None = None) -> Spread:
    """The spread over the ranks of a group; None: all there are."""

    def spread(value: _T, /) -> dict[int, _T]:
        values = gathered(value, group)
        return dict(zip(ranks_of(group), values, strict=True))

    return spread


def over_meshes(tensors: Iterable[Tensor]) -> Spread | None:
    """The spread over the ranks that hold parts of these DTensors; None where this rank alone does.

    Values travel along each dimension of each mesh, twice. Raises RunError on the ranks that know of each other
    where the tensors of one are on a mesh that has another rank, whose tensors are not.
    """
    # Every rank takes its groups in the same order of all, so that none waits for one that waits for it; that does not
    # depend on the tensors, of which ranks may have others. The widest mesh comes first, since what it tells is
    # whether all have the narrower ones, too. Twice, since tensors on the rows and on the columns of ranks leave those
    # in the corners two steps apart; on every rank, since one that has fewer groups than its neighbours would else be
    # waited for. One mesh needs a single round, however many dimensions it has. What can go wrong: a rank that has no
    # DTensor at all cannot know that others wait for it, which ends with their timeout.
    held = () if is_alone() else tensors
    meshes = dict.fromkeys(tensor.device_mesh for tensor in held if is_distributed(tensor))
    groups: dict[tuple[Any, ...], ProcessGroup] = {}
    for mesh in meshes:
        ranks = tuple(mesh.mesh.flatten().tolist())
        for axis in range(mesh.ndim) if mesh.get_coordinate() is not None else ():
            with suppress(RuntimeError):  # the mesh has no groups
                key, group = (-mesh.size(), ranks, tuple(mesh.shape), axis), _group_of(mesh, axis)
                if mesh.size(axis) > 1:  # of meshes that differ in their words only, the group that was made first
                    groups[key] = min(group, groups.get(key, group), key=lambda each: each.group_name)
    order = sorted(groups)
    if not order:
        return None

    def spread(value: _T, /) -> dict[int, _T]:
        known = {torch.distributed.get_rank(): (frozenset(order), value)}
        for key in order * 2:
            if all(key in known[rank][0] for rank in ranks_of(groups[key]) if rank in known):
                for each in gathered(known, groups[key]):
                    known |= each
        lacking = {
            (rank, key[1]) for keys, _ in known.values() for key in keys for rank in known
            if rank in key[1] and all(key[:3] != other[:3] for other in known[rank][0])
        }  # fmt: skip
        if lacking:
            texts = [f"rank {rank} has no DTensor on the mesh of ranks {[*mesh]}" for rank, mesh in sorted(lacking)]
            raise RunError("the ranks' models lie on other meshes; nothing was written", texts)
        return {rank: known[rank][1] for rank in sorted(known)}

    return spread


def _group_of(mesh: Any, axis: int) -> ProcessGroup:
    """The group of this rank along a dimension; of all ranks the job's own, in which those of other meshes meet it."""
    group, everyone = mesh.get_group(axis), torch.distributed.group.WORLD
    return everyone if mesh.size(axis) == torch.distributed.get_world_size() else group  # type: ignore[return-value]
