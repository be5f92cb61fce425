"""Schemas: dataclasses as plain data and back, the classes that data may name; JSON, and checks of arguments."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from itertools import repeat
from typing import Any, TypeVar, final, get_args, get_origin

import torch

import torchinit._limits as limits
from torchinit._text import dtype_name
from torchinit.errors import ConfigError
from torchinit.serialization.reading import Data, Hint, Reader, alternatives, argument_types, arguments
from torchinit.serialization.registry import ClassRegistry, Deferred, TaggedUnion

_Value = TypeVar("_Value")


@final
class FrozenDict(Mapping[str, _Value]):
    """A mapping from ``str`` that cannot change, can be hashed, and prints as the dict that it was made of.

    Two are equal if they have the same items in the same order: where two keys match, the later one wins.

    >>> FrozenDict({"a": 1}), {FrozenDict({"a": 1}): "found"}[FrozenDict({"a": 1})]
    ({'a': 1}, 'found')
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, _Value] | None = None) -> None:
        self._items = dict(items or {})

    def __getitem__(self, key: str) -> _Value:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return repr(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and tuple(self.items()) == tuple(other.items())

    def __hash__(self) -> int:
        return hash(tuple(self.items()))


def finite_data(value: Any) -> Any:
    """Plain data without numbers that JSON cannot hold: None for NaN, text for an infinity.

    >>> finite_data({"rms": (1.0, float("nan"), float("inf"))})
    {'rms': [1.0, None, 'inf']}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, Mapping):
        return {key: finite_data(item) for key, item in value.items()}
    return [finite_data(item) for item in value] if isinstance(value, (list, tuple)) else value


class DuplicateKeyError(ValueError):
    """Duplicate keys in one table; ``keys`` has them in the order in which they came again."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys: tuple[str, ...] = tuple(keys)
        super().__init__(f"the key {self.keys[0]!r} stands twice in one table")


def reject_duplicate_keys(pairs: Iterable[tuple[str, _Value]]) -> dict[str, _Value]:
    """The dict of pairs, as a hook for ``json``, which would let the last of two win; raises DuplicateKeyError."""
    items: dict[str, _Value] = {}
    duplicates: dict[str, None] = {}
    for key, value in pairs:
        if key in items:
            duplicates[key] = None
        items[key] = value
    if duplicates:
        raise DuplicateKeyError(duplicates)
    return items


def check_size(text: str | bytes, most: int = limits.JSON_VALUES) -> None:
    """Raise ValueError for JSON or TOML that may hold more values than that, before it is parsed."""
    # Marks within texts count as well, so the most is chosen far above what honest files hold.
    marks = ("[", "{", ",") if isinstance(text, str) else (b"[", b"{", b",")
    if sum(map(text.count, marks)) > most:  # type: ignore[arg-type]  # of the type of the text
        raise ValueError(f"holds more than {most:,} values")


def unique_json(raw: bytes, most: int = limits.JSON_VALUES) -> Any:
    """The data of JSON from strangers; ValueError for duplicate keys, NaN, more values than ``most``, or no JSON."""
    check_size(raw, most)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=reject_duplicate_keys, parse_constant=refuse)
    except DuplicateKeyError as error:
        raise ValueError(f"has the key {error.keys[0]!r} twice") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error


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
