"""MMEngine: each side's initializers known to the other."""

from __future__ import annotations

from torchinit.modules.initializers import WEIGHT_INITIALIZERS


def bridge() -> None:
    """Registers torchinit's initializers with mmengine, under the names that are free there.

    The other way needs no call: where mmengine is imported, an ``init_cfg`` finds what is registered with it
    and with the packages built on it. Calling it twice does no harm. Raises ImportError where mmengine is
    not installed.
    """
    from mmengine.registry import WEIGHT_INITIALIZERS as THEIRS

    for name, initializer in WEIGHT_INITIALIZERS.module_dict.items():
        if THEIRS.get(name) is None:
            THEIRS.register_module(name=name, module=initializer)
