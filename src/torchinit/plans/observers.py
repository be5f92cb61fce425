"""Observers: those who are told of the writes of runs, and those under whose names runs draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch.utils._python_dispatch import _disable_current_modes

from torchinit.model.shards import Shard
from torchinit.noise import Noise
from torchinit.plans.plan import Step

Parts: TypeAlias = tuple[Shard, ...]
"""The parts of one site that are here."""


class RunObserver(Protocol):
    """An observer of runs, told of each write, since draws go around torch's dispatcher; it may raise before any."""

    def before_run(self, step: Step, parts: Sequence[Shard]) -> None:
        """Hear of a step that will be written; of all of them, before anything is written."""

    def written(self, step: Step, parts: Sequence[Shard]) -> None:
        """Hear of a step that has just been written."""


@runtime_checkable
class KeyingObserver(RunObserver, Protocol):
    """An observer within which nothing draws from torch's generator: runs draw from its noise, under its names."""

    noise: Noise

    def named(self, parts: Parts) -> Parts:
        """The parts of a site under the name that its next draw has: another one each time."""


_WITNESSES: ContextVar[tuple[RunObserver, ...]] = ContextVar("torchinit_witnesses", default=())


def run_observers() -> tuple[RunObserver, ...]:
    """The observers of this thread's runs."""
    return _WITNESSES.get()


def noise_in_use(noise: Noise) -> Noise:
    """The noise that a run with this one draws from: where it is torch's generator, that of the innermost observer."""
    return keying.noise if (keying := keying_observer(noise)) else noise


def keying_observer(noise: Noise) -> KeyingObserver | None:
    """The innermost observer under whose names a run with this noise draws, if there is one."""
    inner = reversed(run_observers()) if noise.is_stateful else ()
    return next((each for each in inner if isinstance(each, KeyingObserver)), None)


@contextmanager
def observing_runs(witness: RunObserver) -> Iterator[None]:
    """Tell an observer of all runs of this thread."""
    token = _WITNESSES.set((*run_observers(), witness))
    try:
        yield
    finally:
        _WITNESSES.reset(token)


def unobserved(*, watched: bool) -> AbstractContextManager[None]:
    """Without torch's modes, which would tell of the same writes once more; nothing changes if nobody is watching."""
    # A step is one write to the observers, whatever draws it: a kernel that no dispatcher sees, or ten operations.
    return _without_modes() if watched else nullcontext()


@contextmanager
def _without_modes() -> Iterator[None]:
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield
