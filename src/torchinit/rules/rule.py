"""Rules: a selector and an initializer, which say which sites get what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Final, TypeAlias

from torchinit.initializers.elementwise import Initializer
from torchinit.initializers.functions import Function, as_initializer
from torchinit.initializers.source import is_verbatim
from torchinit.knowledge.neutral import is_scale
from torchinit.model.sites import Site
from torchinit.rules.selectors import Selector, as_selector

Value: TypeAlias = bool | int | float | str
"""The value of an argument of a recipe."""

_NONE: Final[Mapping[str, Value]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, init=False)
class Rule:
    """A selector and an initializer: one entry of a recipe.

    ``where`` may be a ``str``, the glob of :class:`torchinit.Name`, or a list of such; ``init`` a function of a tensor:
    one of ``torch.nn.init`` becomes the initializer that draws the same, any other is run when the rule is carried out.
    ``optional`` allows the rule to match nothing. ``padding=False`` lets it write the padding row of an
    embedding, which is zero otherwise. ``buffers=True`` lets it match buffers as well as parameters. ``fitting=True``
    leaves alone what the initializer is not for: norms, elementwise scales, and shapes that it cannot fill.
    ``origin`` is the place in a config that it comes from, for messages, ``scheme`` the scheme, and
    ``arguments`` what the arguments of its recipe were.

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
    arguments: Mapping[str, Value] = field(compare=False, repr=False)

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
        arguments: Mapping[str, Value] = _NONE,
    ) -> None:
        values = as_selector(where), as_initializer(init), label, optional, padding, buffers, origin, scheme, fitting
        for argument, value in zip(fields(self), (*values, arguments), strict=True):
            object.__setattr__(self, argument.name, value)

    def __str__(self) -> str:
        return self.label or f"{self.where} -> {self.init}"

    def matches(self, site: Site) -> bool:
        """Whether the rule is for the site."""
        return self.admits(site) and self.where.matches(site)

    def admits(self, site: Site) -> bool:
        """Whether the rule may be for the site, whatever it selects."""
        # A checkpoint's rule takes sites as they are, buffers and biases too; a drawing one must ask for buffers.
        if is_verbatim(self.init):
            return site.persistent
        return (site.kind == "parameter" or self.buffers) and not (self.fitting and is_scale(site))


Recipe: TypeAlias = tuple[Rule, ...]
"""Rules in order; where two match, the later one wins."""
