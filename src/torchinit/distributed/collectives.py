"""Collectives: work that all ranks do together, and what each has to say of it.

No weights are sent but for what foreign code reads. Ranks compare digests and tell each other of errors, and none
leaves before all know: an error on one rank is an error on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, NamedTuple, TypeVar

from torch import nn

from torchinit._text import count
from torchinit.errors import RunError
from torchinit.model.ranks import Spread, is_shared, is_told, over_group, over_model, ranks_text, told

__all__ = ["Spread", "is_shared", "over_group", "over_model"]

_T = TypeVar("_T")
_MOST = 10


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
        raise told(error)
    if failed:
        raise told(RunError(f"{noun} failed on {count(len(failed), 'rank')}", failed)) from error
    return result  # type: ignore[return-value]  # without an error it is what the work returned


@contextmanager
def ending_together(model: nn.Module, spread: Spread | None, doing: str) -> Iterator[None]:
    """Let no rank of a spread end what it is doing before all do: an error of one is an error of all.

    One that fails speaks in the group in which others gather, or wait for the end, and they see that it does not do the
    same. Where there are several groups nobody knows in which they are, and they wait for it until their timeout.
    """
    try:
        yield
    except Exception as error:
        if spread is not None and spread.in_one_group and not is_told(error):
            failing = over_model(model, f"{doing}, which failed with {type(error).__name__}: {error}")
            with suppress(RunError):
                if failing is not None:
                    failing.has_spoken = True  # nobody is waited for in vain
                    failing(None)
        raise
    if spread is not None:
        spread(None)


@contextmanager
def heard(spread: Spread | None) -> Iterator[None]:
    """Let the ranks that wait for the first word of this one hear of an error that comes before it."""
    try:
        yield
    except Exception as error:
        if spread is not None and not spread.has_spoken:
            with suppress(RunError):
                spread(_Word("failed", f"{type(error).__name__}: {error}"))
        raise


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
    gathering = [rank for rank, word in words.items() if word.kind == "value"]
    return [f"rank {rank}: gathers a tensor, when others are done" for rank in gathering]


def among(model: nn.Module, doing: str) -> Callable[[Sequence[str]], list[str]]:
    """A function that joins this rank's errors with those of the other ranks that hold parts of the model.

    All of these have to call it.
    """
    spread = over_model(model, doing)
    return list if spread is None else lambda texts: joined(spread(tuple(texts)))


def joined(texts: Mapping[int, Sequence[str]]) -> list[str]:
    """The errors of all ranks, each with the ranks that have it."""
    ranks = {text: [rank for rank, those in texts.items() if text in those] for each in texts.values() for text in each}
    return [f"{ranks_text(those)}: {text}" for text, those in ranks.items()]
