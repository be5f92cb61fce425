"""MMEngine: what is registered with it, where it is in use; it is never imported from here."""

from __future__ import annotations

import sys
from typing import Any


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
    at = _below(root, head) if dot else _below(root, _default_scope(registries))
    if at is None and not dot:
        at = root
    while at is not None and name not in at.module_dict:
        at = at.parent
    return at.module_dict[name] if at is not None else None


def _default_scope(registries: Any) -> str:
    current = registries.DefaultScope.get_current_instance()
    return "" if current is None else str(current.scope_name)


def _below(registry: Any, scope: str) -> Any:
    """The registry of a scope, here or below, None if there is none."""
    if registry.scope == scope:
        return registry
    # `is not None`: a registry without entries is false.
    below = (_below(child, scope) for child in registry.children.values())
    return next((found for found in below if found is not None), None)
