"""MMEngine: each side's initializers known to the other."""

from __future__ import annotations

import sys
from typing import Any

from torchinit.modules.initializers import WEIGHT_INITIALIZERS


def bridge() -> None:
    """Makes initializers that are registered with mmengine known to torchinit, and the other way round.

    It need not be called where mmengine is imported before the first lookup of a name: torchinit then asks
    mmengine's registry by itself; what it adds is that mmengine finds torchinit's. Calling it twice does no
    harm. Raises ImportError where mmengine is not installed.
    """
    from mmengine.registry import WEIGHT_INITIALIZERS as THEIRS

    for name, initializer in WEIGHT_INITIALIZERS.module_dict.items():
        if THEIRS.get(name) is None:
            THEIRS.register_module(name=name, module=initializer)


def _theirs(name: str) -> Any:
    """What a name stands for in mmengine's registry, if mmengine is in use."""
    registry = sys.modules.get("mmengine.registry")
    return registry.WEIGHT_INITIALIZERS.get(name) if registry else None


WEIGHT_INITIALIZERS.elsewhere.append(_theirs)
