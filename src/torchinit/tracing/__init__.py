"""Tracing: what foreign code writes and draws."""

from __future__ import annotations

from torchinit.tracing.capture import capture
from torchinit.tracing.locks import Lock, lock
from torchinit.tracing.observer import Event, Observer
from torchinit.tracing.recorder import trace
from torchinit.tracing.regions import MemoryIndex
from torchinit.tracing.seeded import seeded
from torchinit.tracing.source_lines import line_of_user
from torchinit.tracing.trace import Trace, Write
from torchinit.tracing.uninitialized import holds_no_values, is_unfilled, unfilled

__all__ = [
    "Event",
    "Lock",
    "MemoryIndex",
    "Observer",
    "Trace",
    "Write",
    "capture",
    "holds_no_values",
    "is_unfilled",
    "line_of_user",
    "lock",
    "seeded",
    "trace",
    "unfilled",
]
