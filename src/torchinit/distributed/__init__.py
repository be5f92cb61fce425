"""Distributed: models whose parts lie on several ranks."""

from __future__ import annotations

from torchinit.distributed.allocation import check_styles
from torchinit.distributed.collectives import among
from torchinit.distributed.materialize import OWN_STARTS, Materialization, PlannedStart, Start, own_starts
from torchinit.distributed.own_code import own_resets
from torchinit.distributed.replicas import verify_replicas

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
