"""Tracing: what foreign code writes and draws."""

from __future__ import annotations

from torchinit.tracing.capture import capture
from torchinit.tracing.observer import Event as Event
from torchinit.tracing.observer import Observer as Observer
from torchinit.tracing.recorder import trace
from torchinit.tracing.regions import Lock, lock
from torchinit.tracing.regions import MemoryIndex as MemoryIndex
from torchinit.tracing.seeded import seeded
from torchinit.tracing.source_lines import line_of_user as line_of_user
from torchinit.tracing.trace import Trace, Write
from torchinit.tracing.uninitialized import holds_no_values as holds_no_values
from torchinit.tracing.uninitialized import is_unfilled as is_unfilled
from torchinit.tracing.uninitialized import unfilled as unfilled
from torchinit.tracing.uninitialized import unfilled_among as unfilled_among

__all__ = ["Lock", "Trace", "Write", "capture", "lock", "seeded", "trace"]
