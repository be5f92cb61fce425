"""Checkpoints: weights from files, read without running any code in them."""

from __future__ import annotations

from torchinit.checkpoints.hub import Limits, fetch, member_of, register_source
from torchinit.checkpoints.loaded import Loaded
from torchinit.checkpoints.loaders import CheckpointLoader
from torchinit.checkpoints.loading import (
    _load_checkpoint,
    _load_checkpoint_with_prefix,
    load_checkpoint,
    load_pretrained,
    load_state_dict,
    read_checkpoint,
)
from torchinit.checkpoints.pretrained import Pretrained
from torchinit.checkpoints.readers import Checkpoint, Info, RefusedPickleError, open_checkpoint
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
