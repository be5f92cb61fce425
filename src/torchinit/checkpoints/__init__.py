"""Checkpoints: weights from files, read without running any code in them."""

from __future__ import annotations

from torchinit.checkpoints import hubs as _hubs  # noqa: F401  # registers torchvision://, timm:// and so on
from torchinit.checkpoints import huggingface as _huggingface  # noqa: F401  # registers hf://
from torchinit.checkpoints.limits import Limits
from torchinit.checkpoints.loaded import Loaded
from torchinit.checkpoints.members import member_of
from torchinit.checkpoints.pretrained import Pretrained
from torchinit.checkpoints.readers import Checkpoint, Info, RefusedPickleError, open_checkpoint
from torchinit.checkpoints.sources import fetch, register_source
from torchinit.core.vocabulary import INITIALIZERS

__all__ = [
    "Checkpoint",
    "Info",
    "Limits",
    "Loaded",
    "Pretrained",
    "RefusedPickleError",
    "fetch",
    "member_of",
    "open_checkpoint",
    "register_source",
]

INITIALIZERS.register(Loaded)
INITIALIZERS.register(Pretrained)
