"""Poison: memory that torch hands out empty, filled with what no model means to hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def poisoned() -> Iterator[None]:
    """Within it ``torch.empty`` gives NaN, and the largest number where numbers are whole; forgotten memory shows.

    What it does is torch's own: ``torch.utils.deterministic.fill_uninitialized_memory``. The settings are put
    back at the end. They are torch's for the whole process, so no other thread should build a model meanwhile.

    >>> with poisoned():
    ...     torch.empty(2)
    tensor([nan, nan])
    """
    settings: Any = torch.utils.deterministic  # whose properties no stub tells of
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = fill
