"""Together: what one rank has to say, known to all before any of them goes on or gives up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import torch
from torch import nn

from torchinit._text import count, some
from torchinit.errors import RunError
from torchinit.model.dtensor import is_distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_T = TypeVar("_T")


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


def is_shared(group: ProcessGroup | None = None) -> bool:
    """Whether there are other ranks to wait for."""
    dist = torch.distributed
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def together(work: Callable[[], _T], what: str, group: ProcessGroup | None = None) -> _T:
    """What ``work`` returns, once it has returned on every rank of the group.

    Where it raises on any rank, all raise RunError with each rank's text, the ranks that failed from their own error:
    nobody waits for a rank that has gone. The work must not wait for other ranks itself but by :func:`exchanged`.
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
        raise RunError(f"{what} failed on {count(len(failed), 'rank')}", failed) from error
    return result  # type: ignore[return-value]  # without an error it is what the work returned


def exchanged(value: _T, group: ProcessGroup | None = None) -> list[_T]:
    """The values of all ranks of a group in the midst of work that they do :func:`together`.

    Where the work of another rank has failed meanwhile, it ends here, too. That takes an exception that other people's
    code does not catch: a rank that went on would wait for those that have gone.
    """
    words = gathered(_Word("value", value), group)
    if failed := _failed(words, group):
        raise _GivenUp(failed)
    return [word.content for word in words]


class _Word(NamedTuple):
    """What a rank says at one point of the work: that it failed, or is done, or has a value for the others."""

    kind: Literal["failed", "done", "value"]
    content: Any = None


class _GivenUp(BaseException):  # no error of this rank's
    """Work that ends because other ranks' has failed, which all know."""

    def __init__(self, failed: list[str]) -> None:
        super().__init__(failed)
        self.failed = failed


def _failed(words: Sequence[_Word], group: ProcessGroup | None) -> list[str]:
    """What failed, a text for each rank; also where ranks are at different points, as they do not do the same."""
    said = list(zip(ranks_of(group), words, strict=True))
    failed = [f"rank {rank}: {word.content}" for rank, word in said if word.kind == "failed"]
    if failed or len({word.kind for word in words}) == 1:
        return failed
    return [f"rank {rank}: gathers a tensor, when others are done" for rank, word in said if word.kind == "value"]


def among(model: nn.Module) -> Callable[[Sequence[str]], list[str]]:
    """A function that gives what any ranks found wrong, with these ranks, for what this one did.

    The ranks are those that hold parts of the model, and all of them have to call the function. Where nobody found
    anything a number travels along each dimension of each mesh, and nothing else.
    """
    tensors = [*model.parameters(), *model.buffers()]
    meshes = dict.fromkeys(tensor.device_mesh for tensor in tensors if is_distributed(tensor))
    here = [mesh for mesh in meshes if mesh.get_coordinate() is not None]
    lines = [(mesh, axis) for mesh in here for axis in range(mesh.ndim) if mesh.size(axis) > 1]

    def shared(texts: Sequence[str]) -> list[str]:
        if not lines:
            return [*texts]
        known = [(torch.distributed.get_rank(), text) for text in texts]
        for mesh, axis in [*lines, *lines[-2::-1]]:  # and back, for what was learned on the way
            if _any(bool(known), mesh.get_group(axis), mesh.device_type):
                known = [*dict.fromkeys(pair for each in gathered(known, mesh.get_group(axis)) for pair in each)]
        ranks = {text: [str(rank) for rank, said in sorted(known) if said == text] for _, text in known}
        return [f"{'rank' if len(who) == 1 else 'ranks'} {some(who)}: {text}" for text, who in ranks.items()]

    return shared


def _any(mine: bool, group: ProcessGroup, device: str) -> bool:
    flag = torch.tensor(int(mine), device=device)
    try:
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group)
    except RuntimeError as error:
        raise RunError(f"no word from the other ranks: {str(error).splitlines()[0]}") from error
    return bool(flag)


def ranks_of(group: ProcessGroup | None = None) -> list[int]:
    """The ranks of a group, as the whole job counts them."""
    return torch.distributed.get_process_group_ranks(group)
