"""Layers by name: which names in an ``init_cfg`` stand for nothing here, and what may have been meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from torch import nn

from torchinit.core.plans import Rule
from torchinit.core.selectors import Layer, Leaf
from torchinit.core.sites import layer_class
from torchinit.errors import count, did_you_mean
from torchinit.modules.survey import Survey


def in_vain(survey: Survey, module: nn.Module, rules: Sequence[Rule]) -> Iterator[str]:
    """What to tell of the names of a list of layers, some of which match: of the others the planner tells.

    A name is in vain if no class is called so, here or anywhere, or if the modules that it matches have
    parameters, and neither a weight nor a bias.
    """
    names = _names(rules[0]) if rules else None
    whose = f"{type(module).__name__}'s init_cfg"
    if names is None or (names and rules[0].optional):
        return
    if not names:
        yield f"an entry of {whose} has neither a layer nor an override: it initializes nothing"
    by_name = _modules_by_name(survey, module) if names else {}
    for name in names:
        if name not in by_name:
            near = did_you_mean(name, by_name) if len(names) > 1 and name not in _known_classes() else ""
            if near:
                yield f"layer {name!r} of {whose} matches no module{near}"
        elif not any(map(_has_something, by_name[name])):
            others = sorted({leaf for one in by_name[name] for leaf, _ in one.named_parameters(recurse=False)})
            if others:
                yield (
                    f"layer {name!r} of {whose} matches {count(len(by_name[name]), 'module')}"
                    f" without weight or bias; name its parameters instead: name='**.{others[0]}'"
                )


def _names(rule: Rule) -> tuple[str, ...] | None:
    """The layers of a rule; None of one that is for a whole module, or for parameters of other names."""
    parts = getattr(rule.where, "of", ())
    layers = (part for part in parts if isinstance(part, Layer) and not part.subclasses)
    return next((layer.names for layer in layers if Leaf("weight") in parts), None)


def _modules_by_name(survey: Survey, module: nn.Module) -> dict[str, list[nn.Module]]:
    found: dict[str, dict[int, nn.Module]] = {}
    for turn in survey.turns(module):
        one = survey.modules[turn]
        cls = layer_class(cast("Any", type(one)))
        for name in {cls.name, *cls.bases}:
            found.setdefault(name, {})[id(one)] = one
    return {name: list(modules.values()) for name, modules in found.items()}


def _has_something(module: nn.Module) -> bool:
    return any(
        leaf in vars(module) or hasattr(type(module), leaf) or leaf in module._parameters or leaf in module._buffers
        for leaf in ("weight", "bias")
        if not isinstance(vars(module).get(leaf), bool)
    )


def _known_classes() -> set[str]:
    """The names of all module classes that are imported: a list may name layers that this model does not have."""
    found: set[str] = set()
    waiting: list[type] = [nn.Module]
    while waiting:
        cls = waiting.pop()
        found.add(cls.__name__)
        waiting += cls.__subclasses__()
    return found
