"""Spelling: initializers as a reader would write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass


class Spelled:
    """A dataclass whose ``str`` is short, where its ``repr`` is exact."""

    __slots__ = ()

    def __str__(self) -> str:
        return spell(self)


def spell(value: object) -> str:
    """The value as a call without its defaults, numbers to six digits, arguments that must be given first.

    >>> from torchinit.initializers.elementwise import Constant, Normal
    >>> spell(Normal(std=0.1 + 0.2)), spell(Constant(1.0)), spell({"a": Constant(1.0)})
    ('Normal(std=0.3)', 'Constant(1)', "{'a': Constant(1)}")
    """
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple):
        return f"({', '.join(map(spell, value))})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {spell(item)}' for key, item in value.items())}}}"
    if isinstance(value, type) or not is_dataclass(value):
        return repr(value)
    if type(value).__str__ is not Spelled.__str__ and isinstance(value, Spelled):
        return str(value)
    said = [(field, getattr(value, field.name)) for field in fields(value)]
    given = [
        spell(item) if field.default is MISSING else f"{field.name}={spell(item)}"
        for field, item in said
        if item != field.default
    ]
    return f"{type(value).__name__}({', '.join(given)})"
