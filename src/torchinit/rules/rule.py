"""Rules: a selector and an initializer, which say which sites get what; and why a rule matches none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import TypeAlias

from torchinit._text import count, did_you_mean
from torchinit.initializers.elementwise import Initializer
from torchinit.initializers.functions import Function, as_initializer
from torchinit.initializers.source import is_verbatim
from torchinit.knowledge.neutral import is_scale
from torchinit.model.sites import Site
from torchinit.rules.selectors import Layer, Leaf, Name, Selector, Within, as_selector


@dataclass(frozen=True, slots=True, init=False)
class Rule:
    """A selector and an initializer: one entry of a recipe.

    ``where`` may be a ``str``, the glob of :class:`torchinit.Name`, or a list of such; ``init`` a function of a tensor:
    one of ``torch.nn.init`` becomes the initializer that draws the same, any other is run when the rule is carried out.
    ``optional`` allows the rule to match nothing. ``padding=False`` lets it write the padding row of an
    embedding, which is zero otherwise. ``buffers=True`` lets it match buffers as well as parameters. ``fitting=True``
    leaves alone what the initializer is not for: norms, elementwise scales, and shapes that it cannot fill.
    ``origin`` is the place in a config that it comes from, for messages, ``scheme`` the scheme.

    >>> from torch import nn
    >>> from torchinit import Name, Normal, Orthogonal
    >>> print(Rule(Name("head.**"), Normal(std=0.02)))
    Name('head.**') -> Normal(std=0.02)
    >>> Rule("fc.weight", nn.init.orthogonal_) == Rule(Name("fc.weight"), Orthogonal())
    True
    """

    where: Selector
    init: Initializer
    label: str
    optional: bool
    padding: bool
    buffers: bool
    origin: str = field(compare=False, repr=False)
    scheme: str = field(compare=False, repr=False)
    fitting: bool

    def __init__(
        self,
        where: Selector | str | Sequence[str],
        init: Initializer | Function,
        label: str = "",
        optional: bool = False,
        padding: bool = True,
        buffers: bool = False,
        origin: str = "",
        scheme: str = "",
        fitting: bool = False,
    ) -> None:
        values = (as_selector(where), as_initializer(init), label, optional, padding, buffers, origin, scheme, fitting)
        for argument, value in zip(fields(self), values, strict=True):
            object.__setattr__(self, argument.name, value)

    def __str__(self) -> str:
        return self.label or f"{self.where} -> {self.init}"

    def matches(self, site: Site) -> bool:
        """Whether the rule is for the site."""
        # A checkpoint's rule takes sites as they are, buffers and biases too; a drawing one must ask for buffers.
        if is_verbatim(self.init):
            return site.persistent and self.where.matches(site)
        if self.fitting and is_scale(site):
            return False
        return (site.kind == "parameter" or self.buffers) and self.where.matches(site)


Recipe: TypeAlias = tuple[Rule, ...]
"""Rules in order; where two match, the later one wins."""


def explain_unmatched(rule: Rule, known: Sequence[Site]) -> str:
    """Say why a rule matches none of the sites, with the near name."""
    if rule.fitting:
        return f"{rule.init} finds no weight of a layer that mixes its inputs among {count(len(known), 'site')}"
    views = [view for site in known for view in site.views]
    for part in _parts(rule.where):
        if not any(part.matches(view) for view in views):
            return f"{part} matches none of {_candidates(part, views)}"
    if not rule.buffers and any(rule.where.matches(view) for view in views):
        return f"{rule.where} matches only buffers; set buffers = true to write them"
    return f"{rule.where} matches none of {count(len(known), 'site')}, though each part of it matches some"


def _parts(where: Selector) -> tuple[Selector, ...]:
    of = getattr(where, "of", None)
    return tuple(part for inner in of for part in _parts(inner)) if of else (where,)


def _candidates(part: Selector, views: Sequence[Site]) -> str:
    """The number of candidates that the selector was tried on, and the near one."""
    owners = {view.owner_name: view.owner for view in views}
    if isinstance(part, Layer):
        counts = Counter(name for owner in owners.values() for name in {owner.name, *owner.bases})
        near = _near(part.names, counts)
        if near:
            modules = counts[near.split("'")[1]]
            near = f"{near[:-1]} ({count(modules, 'module')})?"
        return count(len(owners), "module") + near
    if isinstance(part, Within):
        return count(len(owners), "module") + did_you_mean(part.module, owners)
    if isinstance(part, Leaf):
        return count(len(views), "name") + _near(part.names, {view.leaf for view in views})
    if isinstance(part, Name):
        return count(len(views), "name") + _near(part.globs, [view.name for view in views])
    return count(len(views), "site")


def _near(names: Sequence[str], known: Iterable[str]) -> str:
    return did_you_mean(names[0], known) if names else ""
