"""Formats: what a file of weights is, whether it is sound, and how its tensors are read."""

from __future__ import annotations

from torchinit.checkpoints.formats.base import Checkpoint, Info
from torchinit.checkpoints.formats.pickle_audit import RefusedPickleError

__all__ = ["Checkpoint", "Info", "RefusedPickleError"]
