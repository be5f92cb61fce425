"""Together: what one rank has to say, known to all before any of them goes on or gives up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from torchinit.errors import RunError, count

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


def together(work: Callable[[], _T], what: str, group: ProcessGroup | None = None) -> _T:
    """What ``work`` returns, once it has returned on every rank of the group; it must not wait for other ranks itself.

    Where it raises on any rank, all raise RunError with each rank's text, the ranks that failed from their own error:
    nobody waits for a rank that has gone.
    """
    result, error = None, None
    try:
        result = work()
    except Exception as raised:  # noqa: BLE001  # whatever it is, the others have to hear of it
        error = raised
    texts = gathered(None if error is None else f"{type(error).__name__}: {error}", group)
    failed = [f"rank {rank}: {text}" for rank, text in zip(ranks_of(group), texts, strict=True) if text is not None]
    if failed:
        raise RunError(f"{what} failed on {count(len(failed), 'rank')}", failed) from error
    return result  # type: ignore[return-value]  # without an error it is what the work returned


def ranks_of(group: ProcessGroup | None = None) -> list[int]:
    """The ranks of a group, as the whole job counts them."""
    return torch.distributed.get_process_group_ranks(group)
