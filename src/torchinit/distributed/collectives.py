"""Collectives: work that all ranks do together, and what each has to say of it.

No weights are sent but for what foreign code reads. Ranks compare digests and tell each other of errors, and none
leaves before all know: an error on one rank is an error on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import nn

from torchinit._text import abbreviate, count
from torchinit.errors import RunError
from torchinit.model.dtensor import is_distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_T = TypeVar("_T")
_MOST = 10


def is_shared(group: ProcessGroup | None = None) -> bool:
    """Whether the group has other ranks."""
    dist = torch.distributed
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def gathered(value: _T, group: ProcessGroup | None = None) -> list[_T]:
    """The values of all ranks of a group, in their order; every rank has to call this.

    Raises RunError where there is no process group, and where a rank gives no answer: it has died, or the group's
    timeout has passed.
    """
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized()):
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


def over_meshes(model: nn.Module) -> Spread | None:
    """The spread over the ranks that hold parts of a model's DTensors; None where this rank alone does.

    Values travel along each dimension of each mesh, twice. Raises RunError on the ranks that know of each other
    where the tensors of one are on a mesh that has another rank, whose tensors are not.
    """
    # Every rank takes its groups in the same order of all, so that none waits for one that waits for it; that does not
    # depend on the tensors, of which ranks may have others. The widest mesh comes first, since what it tells is
    # whether all have the narrower ones, too. Twice, since tensors on the rows and on the columns of ranks leave those
    # in the corners two steps apart; on every rank, since one that has fewer groups than its neighbours would else be
    # waited for. One mesh needs a single round, however many dimensions it has. What can go wrong: a rank that has no
    # DTensor at all cannot know that others wait for it, which ends with their timeout.
    is_alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    tensors = [] if is_alone else [*model.parameters(), *model.buffers()]
    meshes = dict.fromkeys(tensor.device_mesh for tensor in tensors if is_distributed(tensor))
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


def ranks_text(ranks: Sequence[int], most: int = 5) -> str:
    """Ranks as a reader would write them."""
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {abbreviate([str(rank) for rank in ranks], most)}"


def abridged(problems: Sequence[str]) -> list[str]:
    """The first few of many problems, each of one site, and the number of the others."""
    rest = len(problems) - _MOST
    return [*problems[:_MOST], *([f"and {count(rest, 'more site')}"] if rest > 0 else [])]


# --- work that may fail ------------------------------------------------------------------------------------

# A rank that raises and leaves would let the others wait for it in the next collective until its timeout. So each
# rank says in the end whether it failed, by one gathering that all take part in. Work that gathers values itself, as
# foreign code that reads a sharded weight does, does so by the same words: one rank's "failed" may then meet the
# others' "value", which ends their work, too. Where a rank is done and others still gather, they do not do the same,
# which is as much an error. What can go wrong: work that waits by other collectives, and ranks that gather different
# tensors at the same turn, which the caller has to compare by name.


class _Word(NamedTuple):
    """A rank's message at one point of the work: that it failed, or is done, or has a value for the others."""

    kind: Literal["failed", "done", "value"]
    content: Any = None


class _GivenUp(BaseException):  # foreign code does not catch it: a rank that went on would wait for those that left
    """Ends the work of a rank because other ranks' has failed, which all know."""

    def __init__(self, failed: list[str]) -> None:
        super().__init__(failed)
        self.failed = failed


def run_collectively(work: Callable[[], _T], noun: str, spread: Spread, *, own: bool = False) -> _T:
    """Return what ``work`` returns, once it has returned on every rank of the spread.

    Where it raises on any rank, all raise RunError with each rank's text, the ranks that failed from their own error;
    or that error itself, with ``own``. The work must not wait for other ranks itself but by :func:`exchanged`.
    """
    result, error = None, None
    try:
        result = work()
    except _GivenUp as given_up:
        failed = given_up.failed
    except Exception as raised:  # noqa: BLE001  # whatever it is, the others have to hear of it
        error = raised
        failed = _failed(spread(_Word("failed", f"{type(error).__name__}: {error}")))
    else:
        failed = _failed(spread(_Word("done")))
    if error is not None and own:
        raise error
    if failed:
        raise RunError(f"{noun} failed on {count(len(failed), 'rank')}", failed) from error
    return result  # type: ignore[return-value]  # without an error it is what the work returned


def exchanged(value: _T, spread: Spread) -> dict[int, _T]:
    """The values of all ranks of a spread in the midst of work that :func:`run_collectively` runs.

    Where the work of another rank has failed meanwhile, it ends here, too.
    """
    words = spread(_Word("value", value))
    if failed := _failed(words):
        raise _GivenUp(failed)
    return {rank: word.content for rank, word in words.items()}


def _failed(words: Mapping[int, _Word]) -> list[str]:
    """A text for each rank that failed, or that gathers when others are done."""
    failed = [f"rank {rank}: {word.content}" for rank, word in words.items() if word.kind == "failed"]
    if failed or len({word.kind for word in words.values()}) == 1:
        return failed
    return [
        f"rank {rank}: gathers a tensor, when others are done" for rank, word in words.items() if word.kind == "value"
    ]


def among(model: nn.Module) -> Callable[[Sequence[str]], list[str]]:
    """A function that joins this rank's errors with those of the other ranks that hold parts of the model.

    All of these have to call it.
    """
    spread = over_meshes(model)
    return list if spread is None else lambda texts: joined(spread(tuple(texts)))


def joined(texts: Mapping[int, Sequence[str]]) -> list[str]:
    """The errors of all ranks, each with the ranks that have it."""
    ranks = {text: [rank for rank, those in texts.items() if text in those] for each in texts.values() for text in each}
    return [f"{ranks_text(those)}: {text}" for text, those in ranks.items()]
