"""Witnesses: who is told of what a run writes, since its draws go around torch's dispatcher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch
from torch.utils._python_dispatch import _disable_current_modes

from torchinit.model.shards import Shard
from torchinit.plans.plan import Step


class Witness(Protocol):
    """Is told of each write of a run, and may raise before there is any."""

    def announced(self, step: Step, parts: Sequence[Shard]) -> None:
        """What will be written where; of all steps, before anything is written."""

    def written(self, step: Step, parts: Sequence[Shard]) -> None:
        """What has just been written where."""


_PRESENT: ContextVar[tuple[Witness, ...]] = ContextVar("torchinit_witnesses", default=())


def witnesses() -> tuple[Witness, ...]:
    """Those who are present."""
    return _PRESENT.get()


@contextmanager
def present(witness: Witness) -> Iterator[None]:
    """Lets somebody be told of all runs of this thread."""
    token = _PRESENT.set((*_PRESENT.get(), witness))
    try:
        yield
    finally:
        _PRESENT.reset(token)


@contextmanager
def unobserved(*, watched: bool) -> Iterator[None]:
    """Without torch's modes, which would tell of the same writes once more; nothing changes if nobody is watching."""
    if not watched:
        yield
        return
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield
