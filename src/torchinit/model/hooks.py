"""Hooks: modules whose own code changes the keys or tensors of a checkpoint while they are loaded."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from torchinit.model.names import WRAPPERS


def has_load_hooks(module: nn.Module) -> bool:
    """Whether code from outside torch takes part when ``load_state_dict`` comes to this module.

    That is a ``_load_from_state_dict`` of its own, or a hook before it. What torch brings along does not count: norms
    that fill in a counter, weight norm, FSDP. Nor does a wrapper, whose hooks only put its part into names or take it
    out.

    >>> has_load_hooks(nn.BatchNorm1d(2)), has_load_hooks(nn.utils.spectral_norm(nn.Linear(2, 2)))
    (False, False)
    """
    if module._modules and WRAPPERS.issuperset(module._modules.keys()):
        return False
    hooks = (getattr(hook, "hook", hook) for hook in module._load_state_dict_pre_hooks.values())
    return not all(map(_is_of_torch, (module._load_from_state_dict, *hooks)))


def _is_of_torch(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    home: str = getattr(function, "__module__", None) or type(function).__module__
    return home.partition(".")[0] == "torch"
