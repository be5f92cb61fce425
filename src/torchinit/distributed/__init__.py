"""Distributed: models whose parts lie on several ranks."""

from __future__ import annotations

from torchinit.distributed.materialization import OWN_STARTS, Materialization, PlannedStart, Start, own_starts
from torchinit.distributed.replicas import verify_replicas
from torchinit.distributed.resets import own_resets
from torchinit.distributed.styles import check_styles
from torchinit.distributed.together import among

__all__ = [
    "OWN_STARTS",
    "Materialization",
    "PlannedStart",
    "Start",
    "among",
    "check_styles",
    "own_resets",
    "own_starts",
    "verify_replicas",
]
