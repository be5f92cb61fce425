"""Formats: files of weights detected, audited and read."""

from __future__ import annotations

from torchinit.checkpoints.formats.base import Checkpoint, Info
from torchinit.checkpoints.formats.pickle_names import RefusedPickleError

__all__ = ["Checkpoint", "Info", "RefusedPickleError"]
