"""Tracing: what code that we do not control writes."""

from __future__ import annotations

from torchinit.tracing.capture import capture
from torchinit.tracing.lines import line_of_user
from torchinit.tracing.locks import Lock, lock
from torchinit.tracing.observe import Event, Observer, Watch
from torchinit.tracing.recorder import trace
from torchinit.tracing.seeded import seeded
from torchinit.tracing.unfilled import holds_no_values, is_unfilled, unfilled
from torchinit.tracing.writes import Trace, Write

__all__ = [
    "Event",
    "Lock",
    "Observer",
    "Trace",
    "Watch",
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
