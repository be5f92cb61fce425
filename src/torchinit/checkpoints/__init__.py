"""Checkpoints: weights from files, read without running any code in them.

Imported when they are used, so that the cache of what was fetched does without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = [
    "Checkpoint", "Info", "Limits", "Loaded", "Pretrained", "RefusedPickleError", "fetch", "member_of",
    "open_checkpoint", "register_source",
]  # fmt: skip

if TYPE_CHECKING:
    from torchinit.checkpoints import adapters as adapters
    from torchinit.checkpoints import formats as formats
    from torchinit.checkpoints import hub as hub
    from torchinit.checkpoints.formats import Checkpoint, Info, RefusedPickleError
    from torchinit.checkpoints.hub import Limits, fetch, member_of, register_source
    from torchinit.checkpoints.open import open_checkpoint
    from torchinit.checkpoints.pretrained import Pretrained
    from torchinit.checkpoints.tensor_fill import Loaded
else:
    from torchinit._lazy import attach as _attach

    _NAMES = {
        "formats": "Checkpoint Info RefusedPickleError",
        "hub": "Limits fetch member_of register_source",
        "open": "open_checkpoint",
        "pretrained": "Pretrained",
        "tensor_fill": "Loaded",
    }
    _MODULES = "adapters formats hub"
    __getattr__, __dir__ = _attach(__name__, _NAMES, _MODULES)
