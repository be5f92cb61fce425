"""Misses: why a rule matched nothing, and what may have been meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from torchinit._text import count, did_you_mean
from torchinit.model.sites import LayerClass, Site
from torchinit.rules.rule import Rule
from torchinit.rules.selectors import Layer, Leaf, Name, Selector, Within


def nothing(rule: Rule, known: Sequence[Site]) -> str:
    """Why a rule matched nothing, with the near name.

    >>> from torchinit.initializers.elementwise import Normal
    >>> nothing(Rule(Name("haed.weight"), Normal()), [Site("head.weight", (2, 2))])
    "Name('haed.weight') matches none of 1 name; did you mean 'head.weight'?"
    """
    if rule.fitting:
        return f"{rule.init} finds no weight of a layer that mixes its inputs among {count(len(known), 'site')}"
    views = [view for site in known for view in site.views]
    for part in _parts(rule.where):
        if not any(part.matches(view) for view in views):
            return f"{part} matches none of {_among(part, views)}"
    if not rule.buffers and any(rule.where.matches(view) for view in views):
        return f"{rule.where} matches only buffers; set buffers = true to write them"
    return f"{rule.where} matches none of {count(len(known), 'site')}, though each part of it matches some"


def _parts(where: Selector) -> tuple[Selector, ...]:
    of = getattr(where, "of", None)
    return tuple(part for inner in of for part in _parts(inner)) if of else (where,)


def _among(part: Selector, views: Sequence[Site]) -> str:
    """What the selector was tried on, and the near one of it."""
    if isinstance(part, Layer):
        owners = {view.owner_name: view.owner for view in views}
        return count(len(owners), "module") + _near_layer(part, owners.values())
    if isinstance(part, Within):
        modules = {view.owner_name for view in views}
        return count(len(modules), "module") + did_you_mean(part.module, modules)
    if isinstance(part, Leaf):
        leaves = {view.leaf for view in views}
        return count(len(views), "name") + _near(part.names, leaves)
    if isinstance(part, Name):
        return count(len(views), "name") + _near(part.globs, [view.name for view in views])
    return count(len(views), "site")


def _near(said: Sequence[str], known: Iterable[str]) -> str:
    return did_you_mean(said[0], known) if said else ""


def _near_layer(layer: Layer, owners: Iterable[LayerClass]) -> str:
    called = Counter(name for owner in owners for name in {owner.name, *owner.bases})
    hint = did_you_mean(layer.names[0] if layer.names else "", called)
    if not hint:
        return ""
    number = called[hint.split("'")[1]]
    return f"{hint.removesuffix('?')} ({count(number, 'module')})?"
