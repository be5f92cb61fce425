"""Wrappers: modules such as DistributedDataParallel, whose ``module`` is the model itself."""

from __future__ import annotations

import sys

from torch import nn

from torchinit.checkpoints import loading
from torchinit.modules.registry import Registry

MODEL_WRAPPERS = Registry("model wrapper", scope="torchinit", aliases=("mmengine",))
"""The classes of wrappers; a package's own are known once they are registered here."""

MODEL_WRAPPERS.register_module(module=nn.DataParallel)
MODEL_WRAPPERS.register_module(module=nn.parallel.DistributedDataParallel)


def is_model_wrapper(model: nn.Module, registry: Registry = MODEL_WRAPPERS) -> bool:
    """Whether the model is a wrapper of another: of a class registered in ``registry`` or below it.

    Where mmengine is imported, its wrappers are known, too.

    >>> is_model_wrapper(nn.DataParallel(nn.Linear(2, 2))), is_model_wrapper(nn.Linear(2, 2))
    (True, False)
    """
    if isinstance(model, tuple(registry.module_dict.values())):  # type: ignore[arg-type]  # they are classes
        return True
    if any(is_model_wrapper(model, child) for child in registry.children.values()):
        return True
    theirs = getattr(sys.modules.get("mmengine.model.wrappers.utils"), "is_model_wrapper", None)
    asked = theirs is not None and theirs is not is_model_wrapper and registry is MODEL_WRAPPERS
    return bool(asked and theirs and theirs(model))


def _is_loaded_through(model: nn.Module) -> bool:
    """Whether a checkpoint is loaded into what the model wraps: wrappers, and MMEngine's test-time augmentation."""
    augmented = getattr(sys.modules.get("mmengine.model"), "BaseTTAModel", None)
    return is_model_wrapper(model) or (augmented is not None and isinstance(model, augmented))


loading.WRAPPERS.append(_is_loaded_through)
