"""Checkpoints: weights from files, read without running any code in them."""

from __future__ import annotations

from torchinit.checkpoints import hubs as _hubs  # noqa: F401  # registers torchvision://, timm:// and so on
from torchinit.checkpoints import huggingface as _huggingface  # noqa: F401  # registers hf://
from torchinit.checkpoints.formats import Checkpoint, Info, RefusedPickleError
from torchinit.checkpoints.limits import Limits
from torchinit.checkpoints.loaders import CheckpointLoader
from torchinit.checkpoints.loading import (
    _load_checkpoint,
    _load_checkpoint_with_prefix,
    load_checkpoint,
    load_pretrained,
    load_state_dict,
    read_checkpoint,
)
from torchinit.checkpoints.members import member_of
from torchinit.checkpoints.open import open_checkpoint
from torchinit.checkpoints.pretrained import Pretrained
from torchinit.checkpoints.sources import fetch, register_source
from torchinit.checkpoints.tensor_fill import Loaded
from torchinit.core.vocabulary import INITIALIZERS

__all__ = [
    "Checkpoint",
    "CheckpointLoader",
    "Info",
    "Limits",
    "Loaded",
    "Pretrained",
    "RefusedPickleError",
    "_load_checkpoint",
    "_load_checkpoint_with_prefix",
    "fetch",
    "load_checkpoint",
    "load_pretrained",
    "load_state_dict",
    "member_of",
    "open_checkpoint",
    "read_checkpoint",
    "register_source",
]

INITIALIZERS.register(Loaded)
INITIALIZERS.register(Pretrained)
