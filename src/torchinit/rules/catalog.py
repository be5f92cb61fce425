"""Catalog: the initializers and selectors that plain data can name, and the schema that reads them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from inspect import isabstract
from pathlib import Path
from typing import Any, Final

from torchinit.initializers import base, composed, elementwise, mapped, matrices, tables, variance_scaling
from torchinit.initializers.elementwise import Constant, Fill, Initializer
from torchinit.initializers.expressions import Computed, constant
from torchinit.initializers.functions import hint
from torchinit.model.sites import Convention
from torchinit.rules import selectors
from torchinit.rules.selectors import Selector
from torchinit.serialization.registry import ClassRegistry, Expressions, TaggedUnion
from torchinit.serialization.schema import Schema

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
