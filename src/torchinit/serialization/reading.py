"""Reading: objects out of plain data, by the types of their arguments, with every mistake in the data at once.

A type annotation is looked into once, and becomes a :class:`Kind`, which tells what may stand in its place.
"""

from __future__ import annotations

import inspect
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import cache, partial
from inspect import Parameter
from itertools import cycle
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeAlias, Union, cast, get_args, get_origin, get_type_hints

import torch

import torchinit._limits as limits
from torchinit._text import count, did_you_mean, with_article
from torchinit.errors import ConfigError
from torchinit.serialization.registry import Expressions, TaggedUnion

Hint: TypeAlias = Any
"""A type annotation, resolved."""

Data: TypeAlias = Any
"""The values of JSON, TOML and YAML: dict, list, str, int, float, bool, None."""

INVALID: Final = object()
"""The result of reading data that hold a mistake."""

_NOT_FINITE: Final = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_DTYPES: Final = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


# --- arguments of dataclasses --------------------------------------------------------------------------------


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


def alternatives(hint: Hint) -> tuple[Hint, ...]:
    """The members of a union, or the type itself."""
    origin: Any = get_origin(hint)
    return get_args(hint) if origin in (Union, UnionType) else (hint,)


def is_number_type(hint: Hint) -> bool:
    """Whether a number may stand here: ``int | tuple[int, ...]``."""
    return not {int, float}.isdisjoint(alternatives(hint))


def is_integer_type(hint: Hint) -> bool:
    """Whether a number that stands here must be whole."""
    return is_number_type(hint) and float not in alternatives(hint)


# --- kinds of data -------------------------------------------------------------------------------------------


def is_sequence(data: object) -> bool:
    """Whether the data are a list of whatever type, and not text."""
    return isinstance(data, Sequence) and not isinstance(data, (str, bytes, bytearray))


def _is_scalar(data: object) -> bool:
    return isinstance(data, (int, float, str)) and not isinstance(data, bool)


def _is_float(data: object) -> bool:
    """Whether the data are a number. A bool is none, nor is text but for "inf", nor what no float can be."""
    if isinstance(data, str):
        return data in _NOT_FINITE
    return _is_scalar(data) and not (isinstance(data, int) and data.bit_length() >= 1024)


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """The data that may stand where an object of a type is wanted, and the object that they describe."""

    describe: Callable[[Reader], str]
    fits: Callable[[Data, Reader], bool]
    read: Callable[[Data, str, Reader], Any]
    choices: tuple[object, ...] = ()
    is_number: bool = False


def _plain(text: str, fits: Callable[[Data], bool], value: Callable[[Any], Any] = lambda data: data) -> Kind:
    """A kind that is the same for all readers."""
    return Kind(lambda _: text, lambda data, _: fits(data), lambda data, path, reader: value(data))


_PLAIN: Final[dict[object, Kind]] = {
    float: _plain("a number", _is_float, lambda data: _NOT_FINITE[data] if isinstance(data, str) else float(data)),
    int: _plain("a whole number", lambda data: isinstance(data, int) and not isinstance(data, bool)),
    str: _plain("text", lambda data: isinstance(data, str)),
    bool: _plain("true or false", lambda data: isinstance(data, bool)),
    NoneType: _plain("nothing", lambda data: data is None),
    torch.dtype: _plain(
        "the name of a dtype", lambda data: isinstance(data, str) and data in _DTYPES, _DTYPES.__getitem__
    ),
}


@cache
def kind_of(hint: Hint) -> Kind:
    """The kind of data for a type annotation.

    >>> reader = Reader({}, "data")
    >>> [kind_of(float | None).fits(data, reader) for data in (1, "inf", None, "1", True)]
    [True, True, True, False, False]
    >>> kind_of(Literal["a", "b"] | tuple[int, ...]).describe(reader)
    "one of 'a', 'b' or a list"
    """
    return replace(_kind_of(hint), is_number=is_number_type(hint))


def _kind_of(hint: Any) -> Kind:
    origin, arguments = get_origin(hint), get_args(hint)
    if alternatives(hint) != (hint,):
        # The first member that fits is read, so the order of a union counts: of int | float a whole number stays one.
        # Only the outermost form is looked at: of two kinds of tables, or of lists, always the first would be read, and
        # its mistakes told, so no annotation may have two of them.
        kinds = [kind_of(each) for each in alternatives(hint)]
        return Kind(
            lambda reader: " or ".join(kind.describe(reader) for kind in kinds),
            lambda data, reader: any(kind.fits(data, reader) for kind in kinds),
            lambda data, path, reader: next(kind for kind in kinds if kind.fits(data, reader)).read(data, path, reader),
            next((kind.choices for kind in kinds if kind.choices), ()),
        )
    if origin is Literal:
        text = ("one of " if len(arguments) > 1 else "") + ", ".join(map(repr, arguments))
        is_one = _plain(text, lambda data: any(type(data) is type(each) and data == each for each in arguments))
        return replace(is_one, choices=arguments)
    if origin is tuple:
        kinds = [kind_of(each) for each in arguments if each is not Ellipsis]
        read = partial(_read_list, kinds, None if Ellipsis in arguments else len(kinds))
        return replace(_plain("a list", is_sequence), read=read)
    if origin is Mapping:
        is_table = _plain("a table", lambda data: isinstance(data, Mapping))
        return replace(is_table, read=partial(_read_table, kind_of(arguments[1]), arguments[0]))
    return _PLAIN[hint] if hint in _PLAIN else _object(hint)


@cache
def _argument_kinds(cls: type) -> Mapping[str, Kind]:
    return {name: kind_of(hint) for name, hint in argument_types(cls).items()}


def _read_list(kinds: Sequence[Kind], size: int | None, data: Sequence[Data], path: str, reader: Reader) -> Any:
    if size is not None and len(data) != size:
        return reader.mistake(path, f"must have {count(size, 'item')}, but has {len(data)}")
    pairs = zip(data, cycle(kinds), strict=False)
    items = tuple(reader.item(item, kind, f"{path}[{at}]") for at, (item, kind) in enumerate(pairs))
    return INVALID if any(item is INVALID for item in items) else items


def _read_table(kind: Kind, keys: Hint, data: Mapping[Any, Data], path: str, reader: Reader) -> Any:
    """A table with arbitrary keys: globs, for example; where any ``keys`` may stand, numbers, too, as text."""
    before = len(reader.mistakes)
    kinds = (str, int) if keys is Any else (str,)
    for key in [key for key in data if not isinstance(key, kinds)]:
        reader.mistake(path, f"has the key {reprlib.repr(key)}, which must be text")
    texts = {str(key): item for key, item in data.items() if isinstance(key, kinds)}
    items = {key: reader.item(item, kind, f"{path}[{key!r}]") for key, item in texts.items()}
    return INVALID if len(reader.mistakes) > before else items


def _object(hint: Any) -> Kind:
    """An object of a dataclass, or of one that the data name, where the reader has a vocabulary for the type."""

    def describe(reader: Reader) -> str:
        words = reader.vocabularies.get(hint)
        return ("a number or " * bool(words.bare) + with_article(words.registry.kind)) if words else "a table"

    def fits(data: Data, reader: Reader) -> bool:
        if words := reader.vocabularies.get(hint):
            # The type last, since Python 3.11 takes long to tell whether an object follows a protocol.
            return isinstance(data, Mapping) or (words.bare is not None and _is_scalar(data)) or isinstance(data, hint)
        return isinstance(data, Mapping if is_dataclass(hint) else hint)

    def read(data: Data, path: str, reader: Reader) -> Any:
        if words := reader.vocabularies.get(hint):
            return reader.tagged(data, hint, words, path)
        return reader.record(cast("type", hint), data, path) if is_dataclass(hint) else data

    return Kind(describe, fits, read)


# --- one pass --------------------------------------------------------------------------------------------------


class Reader:
    """One pass over plain data, called ``source`` in errors; it goes on after a mistake: ``mistakes`` has them all."""

    def __init__(self, vocabularies: Mapping[Any, TaggedUnion], source: str) -> None:
        self.vocabularies = vocabularies
        self.source: str = source
        self.mistakes: list[str] = []
        self.spent: int = 0

    def spend(self, values: int) -> None:
        """Count what the data stand for beyond what they hold. Raises ConfigError for too much."""
        self.spent += values
        if self.spent > limits.RECIPE_VALUES:
            raise ConfigError(f"{self.source}: stands for more than {limits.RECIPE_VALUES:,} values")

    def bind(self, text: str) -> str:
        """Text in a number's place, before it is read."""
        return text

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
        return self.item(data, kind_of(hint), path)

    def item(self, data: Data, kind: Kind, path: str) -> Any:
        """The value that data of a kind describe, or INVALID."""
        if kind.fits(data, self):
            return kind.read(data, path, self)
        near = did_you_mean(data, map(str, kind.choices)) if isinstance(data, str) else ""
        return self.mistake(path, f"must be {kind.describe(self)}, but got {reprlib.repr(data)}{near}")

    def tagged(self, data: Data, hint: type, words: TaggedUnion, path: str) -> Any:
        """An object whose class the data name, or that a bare number stands for."""
        if words.bare is not None and _is_scalar(data):
            return self.shorthand(*words.bare, data, path, words.text)
        if not isinstance(data, Mapping):
            return data
        cls = self.named_class(data, hint, path)
        if cls is INVALID:
            return INVALID
        value = self.record(cls, {key: data[key] for key in data if key != "type"}, path, words.text)
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
        at = at or partial(join, path)
        kinds = own = _argument_kinds(cls)
        if text is not None and any(self._is_text(item, own.get(key)) for key, item in data.items()):
            kinds = {**{name: kind_of(hint) for name, hint in text.arguments.items()}, **own}
        before = len(self.mistakes)
        values = {key: self._argument(item, kinds[key], at(key), text) for key, item in data.items() if key in kinds}
        for key in [key for key in data if key not in kinds]:
            self.mistake(at(key), f"{cls.__name__} has no argument {key!r}{did_you_mean(key, [*kinds, *also])}")
        for key in [key for key in required(cls) if key not in data]:
            self.mistake(path, f"{cls.__name__} needs {key!r}, {kinds[key].describe(self)}")
        if len(self.mistakes) > before:
            return INVALID
        try:
            if text is not None and any(self._is_text(item, own.get(key)) for key, item in values.items()):
                return text.build(cls, values)
            return construct(cls, values)
        except (TypeError, ValueError) as error:
            return self.mistake(path, f"{cls.__name__}: {error}")

    def _is_text(self, data: Data, kind: Kind | None) -> bool:
        """Whether this is text in the place of a number."""
        return isinstance(data, str) and kind is not None and kind.is_number and not kind.fits(data, self)

    def _argument(self, data: Data, kind: Kind, path: str, text: Expressions | None) -> Any:
        if text is not None and self._is_text(data, kind):
            try:
                data = text.parse(self.bind(data))
            except ValueError as error:
                return self.mistake(path, str(error))
            if isinstance(data, str):
                return data
        return self.item(data, kind, path)


def join(path: str, key: object) -> str:
    """The path of a key below a path."""
    return f"{path}.{key}" if path else f"{key}"
