"""Tracing: what code that we do not control writes."""

from __future__ import annotations

from torchinit.tracing.observe import Observer, Watch
from torchinit.tracing.unfilled import is_unfilled

__all__ = ["Observer", "Watch", "is_unfilled"]
