"""The bridge to mmengine: the registries, and the real one where it is in use; nothing here imports it unasked."""

from __future__ import annotations

import logging
import sys
from typing import Any

from torch import nn

from torchinit.mmengine.registry import Registry


def registered(key: str) -> Any:
    """What a name stands for among the initializers of mmengine and the packages built on it, None if for nothing.

    ``"pkg.Name"`` asks that package's registry, a bare name that of the default scope, if one is set; both
    then ask mmengine's own. Unlike in MMEngine a name from a config makes no module be imported.
    """
    registries = sys.modules.get("mmengine.registry")
    if registries is None:
        return None
    root = registries.WEIGHT_INITIALIZERS
    head, dot, name = key.rpartition(".")
    scope = registries.DefaultScope.get_current_instance()
    at = _below(root, head if dot else "" if scope is None else str(scope.scope_name))
    if at is None and not dot:
        at = root
    while at is not None and name not in at.module_dict:
        at = at.parent
    return at.module_dict[name] if at is not None else None


def _below(registry: Any, scope: str) -> Any:
    """The registry of a scope, here or below, None if there is none."""
    if registry.scope == scope:
        return registry
    # `is not None`: a registry without entries is false.
    below = (_below(child, scope) for child in registry.children.values())
    return next((found for found in below if found is not None), None)


WEIGHT_INITIALIZERS = Registry("weight initializer", scope="torchinit", aliases=("mmengine",), elsewhere=registered)
"""The initializers that an ``init_cfg`` can name. Register your own: ``@WEIGHT_INITIALIZERS.register_module()``."""

MODEL_WRAPPERS = Registry("model wrapper", scope="torchinit", aliases=("mmengine",))
"""The classes of wrappers; a package's own are known once they are registered here."""

MODEL_WRAPPERS.register_module(module=nn.DataParallel)
MODEL_WRAPPERS.register_module(module=nn.parallel.DistributedDataParallel)


def bridge() -> None:
    """Register torchinit's initializers with mmengine, under the names that are free there.

    The other way needs no call: where mmengine is imported, an ``init_cfg`` finds what is registered with it
    and with the packages built on it. Calling it twice does no harm. Raises ImportError where mmengine is
    not installed.
    """
    from mmengine.registry import WEIGHT_INITIALIZERS as THEIRS

    for name, initializer in WEIGHT_INITIALIZERS.module_dict.items():
        if THEIRS.get(name) is None:
            THEIRS.register_module(name=name, module=initializer)


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


def is_loaded_through(model: nn.Module) -> bool:
    """Whether a checkpoint is loaded into what the model wraps: wrappers, and MMEngine's test-time augmentation.

    >>> is_loaded_through(nn.DataParallel(nn.Linear(2, 2)))
    True
    """
    augmented = getattr(sys.modules.get("mmengine.model"), "BaseTTAModel", None)
    return is_model_wrapper(model) or (augmented is not None and isinstance(model, augmented))


def mm_logger() -> logging.Logger | None:
    """The current logger of mmengine; None where none has been made.

    >>> mm_logger() is None
    True
    """
    theirs = getattr(sys.modules.get("mmengine.logging"), "MMLogger", None)
    return theirs.get_current_instance() if theirs is not None and theirs._instance_dict else None
