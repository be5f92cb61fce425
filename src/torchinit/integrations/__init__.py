"""Integrations: bridges to other libraries, made when those are in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["fsdp", "lightning", "torchtitan", "trainers", "transformers"]

if TYPE_CHECKING:
    from torchinit.integrations import fsdp, lightning, torchtitan, trainers, transformers
else:
    from torchinit._lazy import attach as _attach

    _NAMES: dict[str, str] = {}
    _MODULES = "fsdp lightning torchtitan trainers transformers"
    __getattr__, __dir__ = _attach(__name__, _NAMES, _MODULES)
