"""Distributed: models whose parts lie on several ranks."""

from __future__ import annotations

from torchinit.distributed.materialization import Materialization
from torchinit.distributed.replicas import verify_replicas

__all__ = ["Materialization", "verify_replicas"]
