"""Checkpoints: weights from files, read without running any code in them."""

from __future__ import annotations

from torchinit.checkpoints.formats import Checkpoint, Info, RefusedPickleError
from torchinit.checkpoints.hub import Limits, fetch, member_of, register_source
from torchinit.checkpoints.open import open_checkpoint
from torchinit.checkpoints.pretrained import Pretrained
from torchinit.checkpoints.tensor_fill import Loaded
from torchinit.rules.catalog import INITIALIZERS

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
