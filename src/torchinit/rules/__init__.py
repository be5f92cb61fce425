"""Rules: which sites get what: selectors, the names that recipes can say, and why a rule matches nothing."""

from __future__ import annotations

from torchinit.rules.rule import SELECTORS, Recipe, Rule
from torchinit.rules.selectors import (
    All,
    AnyOf,
    Block,
    Dtype,
    Is,
    Kinds,
    Layer,
    Leaf,
    Name,
    Not,
    Regex,
    Roles,
    Selector,
    Shape,
    Within,
)

__all__ = [
    "All",
    "AnyOf",
    "Block",
    "Dtype",
    "Is",
    "Kinds",
    "Layer",
    "Leaf",
    "Name",
    "Not",
    "Recipe",
    "Regex",
    "Roles",
    "Rule",
    "SELECTORS",
    "Selector",
    "Shape",
    "Within",
]
