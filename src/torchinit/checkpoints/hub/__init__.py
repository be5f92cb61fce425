"""Hub: checkpoints from elsewhere become local files, fetched once, checked, and locked to what they were."""

from __future__ import annotations

from torchinit.checkpoints.hub.schemes import fetch, register_source
from torchinit.checkpoints.hub.urls import Limits, member_of

__all__ = ["Limits", "fetch", "member_of", "register_source"]
