"""Annotations: the types of a dataclass's arguments, and the plain data that each of them stands for."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from inspect import Parameter
from itertools import repeat
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeAlias, Union, cast, get_args, get_origin, get_type_hints

import torch

Hint: TypeAlias = Any
"""A type annotation, resolved."""

_NOT_FINITE: Final = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_DTYPES: Final = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_DESCRIPTIONS: Final[dict[object, str]] = {
    float: "a number",
    int: "a whole number",
    str: "text",
    bool: "true or false",
    NoneType: "nothing",
    torch.dtype: "the name of a dtype",
}


@cache
def _parameters(cls: type) -> Mapping[str, Parameter]:
    return inspect.signature(cls).parameters


@cache
def argument_types(cls: type) -> dict[str, Hint]:
    """The arguments of a dataclass and their types; of ``*names`` the type of the field ``names``."""
    hints = get_type_hints(cls)
    return {name: hints[name] for name in _parameters(cls)}


def required(cls: type) -> tuple[str, ...]:
    """The arguments that have no default."""
    return tuple(name for name, parameter in _parameters(cls).items() if parameter.default is Parameter.empty)


def construct(cls: type, values: Mapping[str, Any]) -> Any:
    """The object with these arguments, those of a ``*names`` included."""
    star = [name for name in values if _parameters(cls)[name].kind is Parameter.VAR_POSITIONAL]
    rest = {name: value for name, value in values.items() if name not in star}
    return cls(*(values[star[0]] if star else ()), **rest)


def arguments(value: object, *, defaults: bool = True) -> dict[str, Any]:
    """The arguments that build the object again; without ``defaults``, those that differ from them."""
    parameters = _parameters(cast("Any", type(value)))
    values = {name: getattr(value, name) for name in parameters}
    return {name: item for name, item in values.items() if defaults or item != parameters[name].default}


def _origin(hint: Hint) -> object:
    return get_origin(hint)


def is_union(hint: Hint) -> bool:
    """Whether the type has alternatives: ``int | None``."""
    return _origin(hint) in (Union, UnionType)


def is_tuple(hint: Hint) -> bool:
    """Whether the type is a tuple, a list in plain data."""
    return _origin(hint) is tuple


def is_mapping(hint: Hint) -> bool:
    """Whether the type is a mapping, a table in plain data: ``Mapping[str, float]``."""
    return _origin(hint) is Mapping


def is_literal(hint: Hint) -> bool:
    """Whether the type is one of some given values."""
    return _origin(hint) is Literal


def is_number_type(hint: Hint) -> bool:
    """Whether a number may stand here: ``int | tuple[int, ...]``."""
    return hint in (int, float) or (is_union(hint) and any(map(is_number_type, get_args(hint))))


def is_integer_type(hint: Hint) -> bool:
    """Whether a number that stands here must be whole."""
    return is_number_type(hint) and float not in (hint, *get_args(hint))


def select_member(hint: Hint, test: Callable[[Hint], bool]) -> Hint | None:
    """The type itself, or the first of its alternatives, that passes the test."""
    kinds = get_args(hint) if is_union(hint) else (hint,)
    return next((kind for kind in kinds if test(kind)), None)


def item_types(hint: Hint) -> Iterator[Hint]:
    """The types of the items of a tuple; without end where it may have any length."""
    kinds = get_args(hint)
    return repeat(kinds[0]) if Ellipsis in kinds else iter(kinds)


def describe_type(hint: Hint) -> str:
    """A phrase for data of this type.

    >>> describe_type(float), describe_type(Literal["a", "b"]), describe_type(tuple[int, ...])
    ('a number', "one of 'a', 'b'", 'a list')
    """
    if is_literal(hint):
        choices = ", ".join(map(repr, get_args(hint)))
        return f"one of {choices}" if len(get_args(hint)) > 1 else choices
    return "a list" if is_tuple(hint) else _DESCRIPTIONS.get(hint, "a table")


def is_sequence(data: object) -> bool:
    """Whether the data are a list of whatever type, and not text."""
    return isinstance(data, Sequence) and not isinstance(data, (str, bytes, bytearray))


def is_scalar(data: object) -> bool:
    """Whether the data are a number, or text that may stand for one."""
    return isinstance(data, (int, float, str)) and not isinstance(data, bool)


def fits(data: object, hint: Hint) -> bool:
    """Whether the data can be read as this plain type or choice. A bool is not a number, nor is text but for "inf".

    >>> fits(1, float), fits(True, float), fits("0.02", float), fits("inf", float), fits(1.0, int)
    (True, False, False, True, False)
    """
    if is_literal(hint):
        return any(data == choice and type(data) is type(choice) for choice in get_args(hint))
    if hint is torch.dtype:
        return isinstance(data, str) and data in _DTYPES
    if hint is not float:
        return isinstance(data, hint) and (hint is bool or not isinstance(data, bool))
    if isinstance(data, str):
        return data in _NOT_FINITE
    return is_scalar(data) and not (isinstance(data, int) and data.bit_length() >= 1024)  # no float is so large


def to_python(data: Any, hint: Hint) -> Any:
    """The value that data of this plain type describe."""
    if hint is float:
        return _NOT_FINITE[data] if isinstance(data, str) else float(data)
    return _DTYPES[data] if hint is torch.dtype else data
