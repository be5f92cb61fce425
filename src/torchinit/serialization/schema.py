"""Schemas: dataclasses as plain data and back, with every mistake in the data at once."""

from __future__ import annotations

import json
import math
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Final, TypeAlias, get_args

import torch

from torchinit import _limits as limits
from torchinit._text import count, did_you_mean, dtype_name, with_article
from torchinit.errors import ConfigError
from torchinit.serialization import annotations as types
from torchinit.serialization.annotations import Hint, argument_types
from torchinit.serialization.json import check_size
from torchinit.serialization.registry import ClassRegistry

Data: TypeAlias = Any
"""The values of JSON, TOML and YAML: dict, list, str, int, float, bool, None."""

INVALID: Final = object()
"""The result of reading data that hold a mistake."""


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


class Deferred(ABC):
    """An object that stands for one of another class, some of whose numbers are still text."""

    __slots__ = ()

    @abstractmethod
    def target_and_arguments(self) -> tuple[type, Mapping[str, object]]:
        """The class that it stands for, and its arguments."""


@dataclass(frozen=True, slots=True)
class Expressions:
    """The rules by which numbers may be given as text.

    ``parse`` makes a number of it, or returns it if it must wait; it raises ValueError for what is
    neither. ``build`` makes the object whose numbers must wait; it takes ``arguments`` besides those of
    the class.
    """

    parse: Callable[[str], float | str]
    build: Callable[[type, dict[str, Any]], Deferred]
    arguments: Mapping[str, Hint] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaggedUnion:
    """The content of a field of an abstract type: an object of a class in ``registry``, chosen by ``"type"``.

    A bare number stands for the class and argument in ``bare``. ``text`` allows numbers as text.
    """

    registry: ClassRegistry
    bare: tuple[type, str] | None = None
    text: Expressions | None = None


class Schema:
    """A mapping between objects and plain data: by the types of dataclass fields, and a vocabulary for abstract ones.

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

        One object becomes one piece of data, however often it is met. Raises ConfigError for an object whose class
        has no registered name.
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
            kinds = types.item_types(types.select_member(hint, types.is_tuple))
            return [self.write(item, kind) for item, kind in zip(value, kinds, strict=False)]
        if isinstance(value, Mapping):
            _, kind = get_args(types.select_member(hint, types.is_mapping)) or (str, None)
            return {key: self.write(item, kind) for key, item in value.items()}
        key = id(value), hint
        if key not in self.written:
            self.written[key] = value, self._object(value, hint)  # the value, too, so that no other one gets its id
        return self.written[key][1]

    def _object(self, value: Any, hint: Hint) -> Data:
        abstract = types.select_member(hint, lambda kind: kind in self.vocabularies)
        if abstract is not None:
            return self._tagged(value, self.vocabularies[abstract].registry)
        if is_dataclass(value) and not isinstance(value, type):
            return self._arguments(type(value), types.arguments(value, defaults=self.defaults))
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
        values = values or types.arguments(value, defaults=self.defaults)
        return {"type": name, **self._arguments(cls, values)}

    def _arguments(self, cls: type, values: Mapping[str, object]) -> dict[str, Data]:
        kinds = argument_types(cls)
        return {key: self.write(value, kinds.get(key)) for key, value in values.items()}


class Reader:
    """One pass over plain data, which goes on after a mistake: ``mistakes`` has them all, each with its path.

    ``source`` is what the data are called in the error.
    """

    def __init__(self, vocabularies: Mapping[Any, TaggedUnion], source: str) -> None:
        self.vocabularies = vocabularies
        self.source = source
        self.mistakes: list[str] = []
        self.spent = 0

    def spend(self, values: int) -> None:
        """Count what the data stand for beyond what they hold. Raises ConfigError for too much."""
        self.spent += values
        if self.spent > limits.RECIPE_VALUES:
            raise ConfigError(f"{self.source}: stands for more than {limits.RECIPE_VALUES:,} values")

    def mistake(self, path: str, text: str) -> Any:
        """Note a mistake; returns INVALID. With too many it is over: raises ConfigError."""
        self.mistakes.append(f"{path}: {text}" if path else text)
        if len(self.mistakes) == limits.MISTAKES:
            raise ConfigError(f"{limits.MISTAKES} mistakes in {self.source}, and perhaps more", self.mistakes)
        return INVALID

    def finish(self) -> None:
        """Raise ConfigError if there was any mistake."""
        if self.mistakes:
            raise ConfigError(f"{count(len(self.mistakes), 'mistake')} in {self.source}", self.mistakes)

    def read(self, data: Data, hint: Hint, path: str) -> Any:
        """The value of this type that the data describe, or INVALID."""
        if not self._fits(data, hint):
            choices = map(str, get_args(types.select_member(hint, types.is_literal)))
            near = did_you_mean(data, choices) if isinstance(data, str) else ""
            return self.mistake(path, f"must be {self._describe(hint)}, but got {reprlib.repr(data)}{near}")
        if types.is_union(hint):
            return self.read(data, types.select_member(hint, lambda kind: self._fits(data, kind)), path)
        if hint in self.vocabularies:
            return self._tagged(data, hint, path)
        if is_dataclass(hint) and isinstance(hint, type):
            return self.record(hint, data, path)
        if types.is_mapping(hint):
            return self._table(data, hint, path)
        return self._list(data, hint, path) if types.is_tuple(hint) else types.to_python(data, hint)

    def _fits(self, data: Data, hint: Hint) -> bool:
        """Whether the data have the outward form of this type."""
        if types.is_union(hint):
            return any(self._fits(data, kind) for kind in get_args(hint))
        if hint in self.vocabularies:
            is_bare = self.vocabularies[hint].bare is not None and types.is_scalar(data)
            return is_bare or isinstance(data, (Mapping, hint))
        if is_dataclass(hint) or types.is_mapping(hint):
            return isinstance(data, Mapping)
        return types.is_sequence(data) if types.is_tuple(hint) else types.fits(data, hint)

    def _describe(self, hint: Hint) -> str:
        if types.is_union(hint):
            return " or ".join(map(self._describe, get_args(hint)))
        if hint in self.vocabularies:
            vocabulary = self.vocabularies[hint]
            return ("a number or " if vocabulary.bare else "") + with_article(vocabulary.registry.kind)
        return types.describe_type(hint)

    def _list(self, data: Sequence[Data], hint: Hint, path: str) -> Any:
        kinds = get_args(hint)
        if Ellipsis not in kinds and len(kinds) != len(data):
            return self.mistake(path, f"must have {count(len(kinds), 'item')}, but has {len(data)}")
        pairs = zip(data, types.item_types(hint), strict=False)
        items = tuple(self.read(item, kind, f"{path}[{at}]") for at, (item, kind) in enumerate(pairs))
        return INVALID if any(item is INVALID for item in items) else items

    def _table(self, data: Mapping[str, Data], hint: Hint, path: str) -> Any:
        """A table with arbitrary keys: globs, for example."""
        before = len(self.mistakes)
        for key in [key for key in data if not isinstance(key, str)]:
            self.mistake(path, f"has the key {reprlib.repr(key)}, which must be text")
        _, kind = get_args(hint)
        items = {key: self.read(item, kind, f"{path}[{key!r}]") for key, item in data.items() if isinstance(key, str)}
        return INVALID if len(self.mistakes) > before else items

    def _tagged(self, data: Data, hint: Hint, path: str) -> Any:
        """An object whose class the data name, or that a bare number stands for."""
        vocabulary = self.vocabularies[hint]
        if vocabulary.bare is not None and types.is_scalar(data):
            return self.shorthand(*vocabulary.bare, data, path, vocabulary.text)
        if not isinstance(data, Mapping):
            return data
        cls = self.named_class(data, hint, path)
        if cls is INVALID:
            return INVALID
        value = self.record(cls, {key: data[key] for key in data if key != "type"}, path, vocabulary.text)
        if value is INVALID or isinstance(value, hint):
            return value
        wanted = with_article(hint.__name__)
        return self.mistake(join(path, "type"), f"{data['type']} is not {wanted}, which this must be")

    def named_class(self, data: Mapping[str, Data], hint: Hint, path: str) -> Any:
        """The class that ``data["type"]`` names, or INVALID."""
        name, registry = data.get("type"), self.vocabularies[hint].registry
        if path.count(".") + path.count("[") > limits.LEVELS:
            return self.mistake(path, "is nested too deeply")
        if "type" not in data:
            return self.mistake(path, f"needs 'type', the name of {with_article(registry.kind)}")
        if not isinstance(name, (str, type)):
            return self.mistake(join(path, "type"), f"must be text, but got {reprlib.repr(name)}")
        try:  # configs in Python may name the class itself
            return registry.get(name if isinstance(name, str) else registry.name_of(name))
        except KeyError as error:
            return self.mistake(join(path, "type"), error.args[0])

    def shorthand(self, cls: type, argument: str, data: Data, path: str, text: Expressions | None = None) -> Any:
        """An object of one argument, whose mistakes are at the path itself."""
        return self.record(cls, {argument: data}, path, text, at=lambda _: path)

    def record(
        self,
        cls: type,
        data: Mapping[str, Data],
        path: str,
        text: Expressions | None = None,
        *,
        at: Callable[[str], str] | None = None,
        also: Iterable[str] = (),
    ) -> Any:
        """An object of this class, or INVALID; a misspelt argument may also have meant one of ``also``."""
        at = at or (lambda key: join(path, key))
        kinds = own = argument_types(cls)
        if text is not None and any(self._is_text(item, own.get(key)) for key, item in data.items()):
            kinds = {**text.arguments, **own}
        before = len(self.mistakes)
        values = {key: self._argument(item, kinds[key], at(key), text) for key, item in data.items() if key in kinds}
        for key in [key for key in data if key not in kinds]:
            self.mistake(at(key), f"{cls.__name__} has no argument {key!r}{did_you_mean(key, [*kinds, *also])}")
        for key in [key for key in types.required(cls) if key not in data]:
            self.mistake(path, f"{cls.__name__} needs {key!r}, {self._describe(kinds[key])}")
        if len(self.mistakes) > before:
            return INVALID
        try:
            if text is not None and any(self._is_text(item, own.get(key)) for key, item in values.items()):
                return text.build(cls, values)
            return types.construct(cls, values)
        except (TypeError, ValueError) as error:
            return self.mistake(path, f"{cls.__name__}: {error}")

    def _is_text(self, data: Data, hint: Hint) -> bool:
        """Whether this is text in the place of a number."""
        return isinstance(data, str) and types.is_number_type(hint) and not self._fits(data, hint)

    def _argument(self, data: Data, hint: Hint, path: str, text: Expressions | None) -> Any:
        if text is None or not self._is_text(data, hint):
            return self.read(data, hint, path)
        try:
            number = text.parse(data)
        except ValueError as error:
            return self.mistake(path, str(error))
        return number if isinstance(number, str) else self.read(number, hint, path)


def join(path: str, key: object) -> str:
    """The path of a key below a path."""
    return f"{path}.{key}" if path else f"{key}"
