"""Schemas: dataclasses as plain data and back, the classes that data may name; checks of arguments."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from itertools import repeat
from typing import Any, get_args, get_origin

import torch

from torchinit._text import dtype_name
from torchinit.errors import ConfigError
from torchinit.serialization.json import check_size
from torchinit.serialization.reading import Data, Hint, Reader, alternatives, argument_types, arguments
from torchinit.serialization.registry import ClassRegistry, Deferred, TaggedUnion


def check_number(name: str, value: object, *, least: float = -math.inf, finite: bool = True) -> float:
    """The value as a float; raises TypeError if it is not a number, ValueError if it is NaN, infinite or too small."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, but got {value!r}")
    if math.isnan(value):
        raise ValueError(f"{name} must not be NaN")
    if finite and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, but got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least:g}, but got {value!r}")
    return float(value)


def is_integer(value: object, least: int = 1) -> bool:
    """Whether the value is an ``int``, not a ``bool``, that is not below ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_str(name: str, value: object) -> None:
    """Raise TypeError unless the value is a ``str`` or None."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be text, but got {value!r}")


def check_bool(name: str, value: object) -> None:
    """Raise TypeError unless the value is a ``bool``."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be true or false, but got {value!r}")


def check_choice(name: str, value: object, choices: object) -> None:
    """Raise ValueError unless the value is one of a Literal's."""
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, but got {value!r}")


def check_integers(value: object, *names: str, least: int = 1) -> None:
    """Raise ValueError unless these attributes of an object are whole numbers that are not below ``least``."""
    for name in names:
        if not is_integer(number := getattr(value, name), least):
            raise ValueError(f"{name} must be a whole number of at least {least}, but got {number!r}")


def parse(
    text: str, noun: str, version: str = "", *, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> dict[str, Data]:
    """The table that JSON holds, without its ``format``; raises ConfigError if it holds none, or one of another format.

    >>> parse('{"format": "points-1", "x": 1}', "a point", "points-1")
    {'x': 1}
    """
    try:
        check_size(text)
        data = json.loads(text, object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"this is not {noun}: {error}") from None
    if version and not (isinstance(data, dict) and data.pop("format", None) == version):
        raise ConfigError(f"this is not {noun}: it does not say 'format': {version!r}")
    if not isinstance(data, dict):
        raise ConfigError(f"this is not {noun}: it must be a table, but is {reprlib.repr(data)}")
    return data


class Schema:
    """A mapping between objects and plain data: by the types of dataclass fields, and a vocabulary for abstract ones.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Point:
    ...     x: float
    ...     labels: tuple[str, ...] = ()
    >>> schema = Schema({})
    >>> schema.encode(Point(1.5, ("a",)), Point)
    {'x': 1.5, 'labels': ['a']}
    >>> schema.decode({"x": 1.5, "labels": ["a"]}, Point, "point")
    Point(x=1.5, labels=('a',))
    >>> schema.decode({"x": True, "label": "a"}, Point, "point")
    Traceback (most recent call last):
    torchinit.errors.ConfigError: 2 mistakes in point
      x: must be a number, but got True
      label: Point has no argument 'label'; did you mean 'labels'?
    """

    def __init__(self, vocabularies: Mapping[Any, TaggedUnion]) -> None:
        self.vocabularies: dict[Any, TaggedUnion] = dict(vocabularies)

    def add(self, hint: Hint, vocabulary: TaggedUnion) -> None:
        """From now on fields of this abstract type hold what the vocabulary names."""
        self.vocabularies[hint] = vocabulary

    def decode(self, data: Data, hint: Hint, source: str) -> Any:
        """The object of this type that the data describe; raises ConfigError with every mistake."""
        reader = Reader(self.vocabularies, source)
        value = reader.read(data, hint, "")
        reader.finish()
        return value

    def encode(self, value: Any, hint: Hint, *, defaults: bool = True) -> Data:
        """The object as plain data; ``defaults=False`` leaves out what the class would fill in anyway.

        One object is one piece of data, however often it is met. ConfigError where a class has no registered name.
        """
        return _Writer(self.vocabularies, defaults).write(value, hint)


class _Writer:
    """One pass over objects, in which each becomes data once."""

    def __init__(self, vocabularies: Mapping[Any, TaggedUnion], defaults: bool) -> None:
        self.vocabularies = vocabularies
        self.defaults = defaults
        self.written: dict[tuple[int, Hint], tuple[object, Data]] = {}

    def write(self, value: Any, hint: Hint) -> Data:
        """The data of a value that is of this type."""
        if value is None or type(value) in (str, int, bool):
            return value
        if isinstance(value, torch.dtype):
            return dtype_name(value)
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, tuple):
            kinds = _arguments_of(hint, tuple)
            pairs = zip(value, repeat(kinds[0]) if Ellipsis in kinds else kinds, strict=False)
            return [self.write(item, kind) for item, kind in pairs]
        if isinstance(value, Mapping):
            _, kind = _arguments_of(hint, Mapping) or (str, None)
            return {key: self.write(item, kind) for key, item in value.items()}
        key = id(value), hint
        if key not in self.written:
            self.written[key] = value, self._object(value, hint)  # the value, too, so that no other one gets its id
        return self.written[key][1]

    def _object(self, value: Any, hint: Hint) -> Data:
        abstract = next((kind for kind in alternatives(hint) if kind in self.vocabularies), None)
        if abstract is not None:
            return self._tagged(value, self.vocabularies[abstract].registry)
        if is_dataclass(value) and not isinstance(value, type):
            return self._arguments(type(value), arguments(value, defaults=self.defaults))
        if not isinstance(value, (str, int)):
            raise ConfigError(f"{value!r} cannot be written as data: it is there in memory only")
        return value

    def _tagged(self, value: object, registry: ClassRegistry) -> Data:
        cls, values = value.target_and_arguments() if isinstance(value, Deferred) else (type(value), {})
        try:
            name = registry.name_of(cls)
        except KeyError as error:
            shown = value if is_dataclass(value) else cls.__name__
            raise ConfigError(f"{shown} cannot be written as data: {error.args[0]}") from None
        values = values or arguments(value, defaults=self.defaults)
        return {"type": name, **self._arguments(cls, values)}

    def _arguments(self, cls: type, values: Mapping[str, object]) -> dict[str, Data]:
        kinds = argument_types(cls)
        return {key: self.write(value, kinds.get(key)) for key, value in values.items()}


def _arguments_of(hint: Hint, origin: object) -> tuple[Hint, ...]:
    """What the first member of this origin holds."""
    return next((get_args(kind) for kind in alternatives(hint) if get_origin(kind) is origin), ())
