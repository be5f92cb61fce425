"""Checkpoints: weights from files, read without running any code in them."""

from __future__ import annotations

from torchinit.checkpoints import hubs as _hubs  # noqa: F401  # registers hf://, torchvision:// and timm://
from torchinit.checkpoints.limits import Limits
from torchinit.checkpoints.loading import load_pretrained, load_state_dict, read_checkpoint
from torchinit.checkpoints.members import member_of
from torchinit.checkpoints.sources import fetch, register_source

__all__ = [
    "Limits",
    "fetch",
    "load_pretrained",
    "load_state_dict",
    "member_of",
    "read_checkpoint",
    "register_source",
]
