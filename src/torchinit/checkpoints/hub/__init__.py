"""Hub: checkpoints from elsewhere become local files, fetched once, checked, and locked to what they were."""

from __future__ import annotations

from torchinit.checkpoints.hub import huggingface as _huggingface  # noqa: F401  # registers hf://
from torchinit.checkpoints.hub import model_zoos as _model_zoos  # noqa: F401  # registers torchvision:// and so on
from torchinit.checkpoints.hub.config import Limits
from torchinit.checkpoints.hub.index import member_of
from torchinit.checkpoints.hub.schemes import fetch, register_source

__all__ = ["Limits", "fetch", "member_of", "register_source"]
