"""Names: the qualified name of a parameter, without what wrappers put into it."""

from __future__ import annotations

import re

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What DistributedDataParallel, torch.compile, FSDP and activation checkpointing call what they wrap."""

_PARAMETRIZED = re.compile(r"(^|\.)parametrizations\.([^.]+)\.original\d*$")


def normalize(name: str) -> str:
    """The name that a parameter has in the bare model, however the model is wrapped now.

    Parts that only a wrapper puts in are dropped wherever they stand, the last part excepted, and a
    parametrized tensor gets back the name it had before.

    >>> normalize("module._orig_mod.layers.0._fsdp_wrapped_module.weight")
    'layers.0.weight'
    >>> normalize("conv.parametrizations.weight.original1")
    'conv.weight'
    """
    if "module." not in name and "_orig_mod." not in name and "parametrizations." not in name:
        return name
    *path, leaf = _PARAMETRIZED.sub(r"\1\2", name).split(".")
    return ".".join([*(part for part in path if part not in WRAPPERS), leaf])
