"""Pretrained: what a model of transformers is made of, tied weights and other models, as its weights are asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Final

from torch import Tensor, nn

from torchinit.model.sites import Site, group_sites
from torchinit.model.traversal import HeldTensor, walk_tensors
from torchinit.tracing.locks import Snapshot, snapshot

HOOK: Final = "_initialize_weights"
"""The method of a PreTrainedModel that is called for each of its modules, itself last, and asks ``_init_weights``."""


def ties_of(model: nn.Module) -> Mapping[str, str]:
    """The names of a model that transformers ties to others, sooner or later, with these."""
    ties: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return ties


def held_and_tied(model: nn.Module) -> tuple[list[HeldTensor], list[HeldTensor]]:
    """The tensors of a model, and apart from them those that are tied already: the rule is that of their table."""
    ties, every = ties_of(model), walk_tensors(model)
    keys = {entry.name: entry.key for entry in every}
    tied = {name for name in ties.keys() & keys if name != ties[name] and keys[name] == keys.get(ties[name])}
    return [entry for entry in every if entry.name not in tied], [entry for entry in every if entry.name in tied]


def groups_of(model: nn.Module) -> list[tuple[Site, list[HeldTensor]]]:
    """The sites of a model, each with all that holds its tensor."""
    held, tied = held_and_tied(model)
    return [(site, [*group, *(one for one in tied if one.key == group[0].key)]) for site, group in group_sites(held)]


def models_within(model: nn.Module) -> Iterator[nn.Module]:
    """The models below a model that transformers asks for their own weights, the outermost."""
    for child in model.children():
        if hasattr(child, HOOK):
            yield child
        else:
            yield from models_within(child)


def is_under_construction(model: nn.Module) -> bool:
    """Whether a constructor of a subclass is going to go on, with layers of its own."""
    frame: FrameType | None = sys._getframe()
    constructors = 0
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__init__" and code.co_argcount and frame.f_locals.get(code.co_varnames[0]) is model:
            constructors += 1
        frame = frame.f_back
    return constructors > 1


def is_changed(tensor: Tensor, was: Snapshot) -> bool:
    """Whether a tensor was written, by its sample, or by torch's count of writes where that is not all of it."""
    now = snapshot(tensor)
    whole = now.content is not None and len(now.content) == tensor.numel() * tensor.element_size()
    return now.content != was.content or (not whole and now.version != was.version)
