"""TI6: tensors that are one, should be one, or are computed from others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.weight_norm import WeightNorm

from torchinit._text import abbreviate
from torchinit.linting.registry import Hit, check
from torchinit.linting.target import LintTarget, is_pair_to_tie
from torchinit.model.names import normalize


@check("TI601", "error", "sites", "tie them again: to_empty(), and a copy of one of them, break ties")
def broken_tie(target: LintTarget) -> Iterator[Hit]:
    """Two weights that the model says are one, and that have memory of their own.

    What is written, or loaded, into one does not reach the other, and they drift apart in training. Known are the
    ties that a transformers model declares (``_tied_weights_keys`` with ``config.tie_word_embeddings``) and the
    aliases in a plan of the model's sketch. Never wrong where the declaration is right.
    """
    planned = ((step.site.name, view.name) for step in target.plan for view in step.site.aliases)
    for name, other in dict.fromkeys([*_declared(target.model), *planned]):
        first, second = target.by_name.get(name), target.by_name.get(other)
        if first and second and first is not second:
            yield Hit(first.name, f"should be one tensor with {second.name}, and is not")


def _declared(model: nn.Module) -> Iterator[tuple[str, str]]:
    for path, module in model.named_modules():
        keys = getattr(module, "_tied_weights_keys", None)
        if keys and getattr(getattr(module, "config", None), "tie_word_embeddings", False):
            for pair in _pairs(module, keys):
                name, source = (normalize(f"{path}.{end}".lstrip(".")) for end in pair)
                yield name, source


def _pairs(module: Any, keys: object) -> Iterator[tuple[str, str]]:
    """The ties of a transformers model: a table of names since 5, before that the names tied to the embedding."""
    if isinstance(keys, Mapping):
        yield from keys.items()
        return
    table = getattr(module.get_input_embeddings(), "weight", None)
    names = [name for name, tensor in module.named_parameters(remove_duplicate=False) if tensor is table]
    outputs = [key for key in keys if key.endswith("weight")] if isinstance(keys, (list, tuple, set)) else []
    yield from ((key, names[0]) for key in outputs if names)


@check("TI602", "warning", "values", "tie them (head.weight = embedding.weight), or draw them apart")
def equal_not_tied(target: LintTarget) -> Iterator[Hit]:
    """An embedding and a layer that hold the same drawn values in memory of their own.

    They were one, or were meant to be: a copy of the model's parts or ``to_empty`` breaks the tie and leaves the
    values. Decided bit by bit among 20 or more values that come in no order. Loaded values are left out.
    """
    declared = set(map(frozenset, _declared(target.model)))
    for twins in target.twins:
        names = [twin.name for twin in twins]
        if is_pair_to_tie(twins) and frozenset(names[:2]) not in declared:
            yield Hit(names[0], f"holds the same values as {', '.join(names[1:])}, in memory of its own")


@check("TI603", "error", "values", "write through the parametrization: remove it first, or use a torchinit rule")
def lost_in_parametrization(target: LintTarget) -> Iterator[Hit]:
    """A weight under ``torch.nn.utils.weight_norm`` that was written where the next call computes it anew.

    The hook computes ``weight`` from ``weight_g`` and ``weight_v`` before each call, so what is written to
    ``weight`` is lost. Decided by comparing it with what the hook would compute, within a thousandth of its largest
    value. Under the newer ``parametrizations.weight_norm`` only a plan or a trace shows such a write.
    """
    for linted in target.tensors:
        holder = linted.holders[0]
        module, leaf = holder.place.module, holder.leaf
        hooked = any(isinstance(hook, WeightNorm) and hook.name == leaf for hook in module._forward_pre_hooks.values())
        stale = module.__dict__.get(leaf)
        if hooked and isinstance(stale, Tensor) and holder.computed_as:
            computed = holder.computed_as.value
            apart = float((stale.detach() - computed).abs().max())
            if apart > 1e-6 + 1e-3 * float(computed.abs().max()):
                text = f"will be computed from {leaf}_g and {leaf}_v, which are up to {apart:.3g} apart from it"
                yield Hit(linted.name, text)


@check("TI604", "warning", "trace", "initialize it through one of its layers")
def tie_drawn_twice(target: LintTarget) -> Iterator[Hit]:
    """A tied weight that was filled or drawn more than once, through the layers that share it.

    The last one wins, whatever the others meant. A warning where they differ, a note where they are alike. Exact,
    where the trace is; a layer's own initialization does not count.
    """
    for linted in target.tensors:
        writes = [write for write in linted.writes if write.overwrites and not write.is_default]
        times = sum(write.count for write in writes)
        if linted.site.aliases and times > 1:
            kinds = list(dict.fromkeys(write.what for write in writes))
            names = abbreviate([view.name for view in linted.site.aliases])
            text = f"is also {names}, and was drawn {times} times: {', '.join(kinds)}"
            yield Hit(linted.name, text, "warning" if len(kinds) > 1 else "note")
