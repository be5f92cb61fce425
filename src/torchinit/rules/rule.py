"""Rules: a selector and an initializer, which say which sites get what; the catalog of what plain data can name."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from inspect import isabstract
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from torchinit.initializers import base, composed, elementwise, mapped, matrices, tables, variance_scaling
from torchinit.initializers.elementwise import Constant, Fill, Initializer
from torchinit.initializers.expressions import Computed, constant
from torchinit.initializers.functions import Function, as_initializer, hint
from torchinit.initializers.source import is_verbatim
from torchinit.knowledge.neutral import is_scale
from torchinit.model.sites import Convention, Site
from torchinit.rules import selectors
from torchinit.rules.selectors import Selector, as_selector
from torchinit.serialization.registry import ClassRegistry, Expressions, TaggedUnion
from torchinit.serialization.schema import Schema

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


RESERVED: Final = frozenset(
    {
        "batch_axes", "bias", "bias_prob", "blocks", "buffers", "exclude", "label", "layer", "name", "optional",
        "override", "padding", "param", "regex", "role", "subclasses", "trainable", "type", "when", "where", "within",
    }
)  # fmt: skip
"""The words of a recipe entry that no initializer may use for an argument of its own."""


def _is_finished(value: object) -> bool:
    """Whether a value is an initializer of the package that recipes can name: a public dataclass that resolves."""
    if not (isinstance(value, type) and is_dataclass(value) and hasattr(value, "resolve")):
        return False
    return not (isabstract(value) or value.__name__.startswith("_"))


INITIALIZERS: Final = ClassRegistry(
    "initializer", method="resolve", group="torchinit.initializers", reserved=RESERVED, near=hint
)
"""Every initializer that a recipe can name."""

SELECTORS: Final = ClassRegistry("selector", method="matches", group="torchinit.selectors")
"""Every selector that a recipe can name in a ``where``."""

for _module in (base, composed, elementwise, mapped, matrices, tables, variance_scaling):
    for _class in [*vars(_module).values()]:
        if getattr(_class, "__module__", "") == _module.__name__ and _is_finished(_class):
            INITIALIZERS.register(_class)

INITIALIZERS.defer("torchinit.checkpoints.pretrained")  # and Loaded

for _selector in (
    selectors.All, selectors.AnyOf, selectors.Block, selectors.Dtype, selectors.Is, selectors.Kinds, selectors.Layer,
    selectors.Leaf, selectors.Name, selectors.Not, selectors.Regex, selectors.Roles, selectors.Shape, selectors.Within,
):  # fmt: skip
    SELECTORS.register(_selector)

TEXT: Final = Expressions(constant, lambda cls, values: Computed(cls, **values), {"fans": Convention})

SCHEMA: Final = Schema(
    {
        Initializer: TaggedUnion(INITIALIZERS, bare=(Constant, "val"), text=TEXT),
        Fill: TaggedUnion(INITIALIZERS),
        Selector: TaggedUnion(SELECTORS),
    }
)
"""The correspondence of rules, plans and their parts to plain data."""


@cache
def _examples() -> Mapping[str, Mapping[str, Any]]:
    return tomllib.loads(Path(__file__).with_name("examples.toml").read_text("utf-8"))


def example_of(name: str) -> dict[str, Any]:
    """The arguments of an example of an initializer, selector or adapter, and as ``name`` the glob of its sites.

    >>> example_of("Constant"), example_of("Ones")
    ({'val': 0.5, 'name': '**.weight'}, {'name': '**.weight'})
    """
    example = _examples().get(name, {})
    return {**example, "name": example.get("name", "**.weight")}
