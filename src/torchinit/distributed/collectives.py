"""Collectives: work that all ranks do together, what each has to say of it, and whether they are about to do the same.

No weights are sent but for what foreign code reads. Ranks compare digests and tell each other of errors, and none
leaves before all know: an error on one rank is an error on every rank.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import torch
from torch import nn

from torchinit._text import abbreviate, count
from torchinit.errors import RunError
from torchinit.model.dtensor import is_distributed
from torchinit.noise import Keyed
from torchinit.noise.keyed import STREAM
from torchinit.plans.plan import Plan

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
    try:
        dist.all_gather_object(found, value, group)
    except RuntimeError as error:
        raise RunError(f"no word from the other ranks: {str(error).splitlines()[0]}") from error
    return found


def ranks_of(group: ProcessGroup | None = None) -> list[int]:
    """The ranks of a group, as the whole job counts them."""
    return torch.distributed.get_process_group_ranks(group)


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


def run_collectively(work: Callable[[], _T], noun: str, group: ProcessGroup | None = None) -> _T:
    """Return what ``work`` returns, once it has returned on every rank of the group.

    Where it raises on any rank, all raise RunError with each rank's text, the ranks that failed from their own error.
    The work must not wait for other ranks itself but by :func:`exchanged`.
    """
    result, error = None, None
    try:
        result = work()
    except _GivenUp as given_up:
        failed = given_up.failed
    except Exception as raised:  # noqa: BLE001  # whatever it is, the others have to hear of it
        error = raised
        failed = _failed(gathered(_Word("failed", f"{type(error).__name__}: {error}"), group), group)
    else:
        failed = _failed(gathered(_Word("done"), group), group)
    if failed:
        raise RunError(f"{noun} failed on {count(len(failed), 'rank')}", failed) from error
    return result  # type: ignore[return-value]  # without an error it is what the work returned


def exchanged(value: _T, group: ProcessGroup | None = None) -> list[_T]:
    """The values of all ranks of a group in the midst of work that :func:`run_collectively` runs.

    Where the work of another rank has failed meanwhile, it ends here, too.
    """
    words = gathered(_Word("value", value), group)
    if failed := _failed(words, group):
        raise _GivenUp(failed)
    return [word.content for word in words]


def _failed(words: Sequence[_Word], group: ProcessGroup | None) -> list[str]:
    """A text for each rank that failed, or that gathers when others are done."""
    pairs = list(zip(ranks_of(group), words, strict=True))
    failed = [f"rank {rank}: {word.content}" for rank, word in pairs if word.kind == "failed"]
    if failed or len({word.kind for word in words}) == 1:
        return failed
    return [f"rank {rank}: gathers a tensor, when others are done" for rank, word in pairs if word.kind == "value"]


def among(model: nn.Module) -> Callable[[Sequence[str]], list[str]]:
    """A function that joins this rank's errors with those of the other ranks that hold parts of the model.

    All of these have to call it. The errors travel along each dimension of each mesh, and back.
    """
    tensors = [*model.parameters(), *model.buffers()]
    meshes = dict.fromkeys(tensor.device_mesh for tensor in tensors if is_distributed(tensor))
    here = [mesh for mesh in meshes if mesh.get_coordinate() is not None]
    groups = [mesh.get_group(axis) for mesh in here for axis in range(mesh.ndim) if mesh.size(axis) > 1]

    def shared(texts: Sequence[str]) -> list[str]:
        if not groups:
            return [*texts]
        known = [(torch.distributed.get_rank(), text) for text in texts]
        for group in [*groups, *groups[-2::-1]]:  # and back, for what was learned on the way
            known = [*dict.fromkeys(pair for each in gathered(known, group) for pair in each)]
        ranks = {text: sorted(rank for rank, other in known if other == text) for _, text in known}
        return [f"{ranks_text(those)}: {text}" for text, those in ranks.items()]

    return shared


# --- whether the ranks start alike -------------------------------------------------------------------------


def check_consensus(intent: Mapping[str, str], noise: Keyed, group: ProcessGroup | None = None) -> None:
    """Raise RunError on every rank unless all ranks of the group have one stream, one seed and one intent.

    The intent tells by name what will happen. All ranks of the group have to call this. Digests are sent, and intents
    only where they differ.
    """
    ranks = ranks_of(group)
    digest = hashlib.blake2b("\n".join(f"{name}: {text}" for name, text in intent.items()).encode()).hexdigest()
    starts = gathered({"stream": STREAM, "seed": str(noise.seed), "plan": digest}, group)
    problems = []
    for noun in ("stream", "seed"):
        values = [start[noun] for start in starts]
        problems += [f"the {noun} is {_by_value(ranks, values)}"] if len(set(values)) > 1 else []
    if len({start["plan"] for start in starts}) > 1:
        problems += abridged(list(_differences(ranks, gathered(dict(intent), group))))
    if problems:
        raise RunError(
            "the ranks do not start alike; nothing was written. Give each its own group= if that is meant", problems
        )


def intent_of(plan: Plan) -> dict[str, str]:
    """The effect of each step of a plan, by the name of its site."""
    return {step.site.name: f"{step.fill!r} in {list(step.site.shape)} {step.site.dtype}" for step in plan.steps}


def _by_value(ranks: Sequence[int], values: Sequence[str]) -> str:
    holders: dict[str, list[int]] = defaultdict(list)
    for rank, value in zip(ranks, values, strict=True):
        holders[value].append(rank)
    return ", ".join(f"{value} on {ranks_text(those)}" for value, those in holders.items())


def _differences(ranks: Sequence[int], intents: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """A line for each name for which the ranks intend something else."""
    for name in dict.fromkeys(name for intent in intents for name in intent):
        values = [intent.get(name, "nothing") for intent in intents]
        if len(set(values)) > 1:
            yield f"{name}: {_by_value(ranks, values)}"
