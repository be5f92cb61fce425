"""Arguments: what a recipe leaves open, what a caller gives for it, and the numbers and entries that depend on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from torchinit._text import did_you_mean
from torchinit.errors import ConfigError
from torchinit.initializers.expressions import RESERVED_NAMES, bind, constant, parse
from torchinit.rules.rule import RESERVED, SCHEMA, Value
from torchinit.serialization.reading import INVALID, Data, Reader, is_sequence, join


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a recipe: its default (None: it must be given), its meaning, and what it may be.

    A number lies within ``bounds``, and is whole if its default is; a default may also be an expression over the facts
    of a site and the arguments before it. Text is one of ``choices``.

    >>> Argument(0.02, "standard deviation", bounds=(0, 1)).check("std", 2)
    Traceback (most recent call last):
    ValueError: must lie in [0, 1], but got 2 (std: standard deviation)
    """

    default: Value | None = None
    meaning: str = ""
    bounds: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.default is not None and not self.is_expression:
            self.check("its default", self.default)

    @property
    def is_expression(self) -> bool:
        """Whether the default is worked out for each site."""
        return isinstance(self.default, str) and not self.choices

    def check(self, name: str, value: object) -> Value:
        """The value, if the argument may have it; raises ValueError."""
        what = f" ({name}: {self.meaning})" if self.meaning else ""
        if self.choices:
            if isinstance(value, str) and value in self.choices:
                return value
            one_of = ", ".join(map(repr, self.choices))
            raise ValueError(f"must be one of {one_of}, but got {value!r}{did_you_mean(str(value), self.choices)}")
        if isinstance(self.default, bool):
            if isinstance(value, bool):
                return value
            raise ValueError(f"must be true or false, but got {value!r}{what}")
        if isinstance(value, str) and isinstance(value := constant(text := value), str):
            raise ValueError(f"{text!r} asks for a fact of each site, but an argument is one number{what}")
        if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
            raise ValueError(f"must be a number, but got {value!r}{what}")
        value = int(value) if isinstance(value, Integral) else float(value)  # those of NumPy, too
        if isinstance(self.default, int) and not float(value).is_integer():
            raise ValueError(f"must be a whole number, but got {value!r}{what}")
        low, high = self.bounds or (-math.inf, math.inf)
        if not low <= value <= high:
            raise ValueError(f"must lie in [{low:g}, {high:g}], but got {value!r}{what}")
        return value


@dataclass(slots=True)
class Given:
    """The arguments that a caller gives to all recipes that it names; ``verb`` and its ``keywords`` are for messages.

    >>> Given({"beta": 1}).finish()
    Traceback (most recent call last):
    torchinit.errors.ConfigError: there is no argument 'beta': this recipe takes none
    """

    values: Mapping[str, Value] = field(default_factory=dict)
    verb: str = ""
    keywords: tuple[str, ...] = ()
    known: set[str] = field(default_factory=set)

    @classmethod
    def to(cls, verb: str, keywords: Iterable[str], arguments: Mapping[str, Value] | None, named: Any) -> Given:
        """What a verb was given, in ``arguments`` or as keywords that it does not have itself; raises TypeError."""
        arguments = {} if arguments is None else arguments
        if not isinstance(arguments, Mapping):
            raise TypeError(f"arguments must be a mapping of names to values, but got {arguments!r}")
        if twice := sorted(arguments.keys() & named.keys()):
            raise TypeError(f"{verb}() got the argument {twice[0]!r} twice, as a keyword and in arguments")
        return cls({**arguments, **named}, verb if named else "", tuple(keywords))

    def finish(self) -> None:
        """Raise TypeError for a keyword that nobody takes, ConfigError for another such argument."""
        for name in [name for name in self.values if name not in self.known]:
            near = did_you_mean(str(name), [*self.known, *(self.keywords if self.verb else ())])
            takes = f"{' This' if near else ': this'} recipe takes {', '.join(sorted(self.known)) or 'none'}"
            if self.verb:
                raise TypeError(f"{self.verb}() got an unexpected keyword argument {name!r}{near}{takes}")
            raise ConfigError(f"there is no argument {name!r}{near}{takes}")


class RecipeReader(Reader):
    """A reader of recipes, whose expressions and conditions may ask for arguments."""

    def __init__(self, source: str, given: Given | None = None) -> None:
        super().__init__(SCHEMA.vocabularies, source)
        self.given: Given = given or Given()
        self._declared: Mapping[str, Argument] = {}
        self._values: Mapping[str, Value] = {}

    def bind(self, text: str) -> str:
        return bind(text, self._values) if self._values else text

    def arguments_of(self, data: Data, path: str) -> Mapping[str, Argument]:
        """The arguments that a recipe declares, a table or a default each."""
        if not isinstance(data, Mapping):
            self.mistake(path, f"must be a table, but got {data!r}")
            return {}
        declared: dict[str, Argument] = {}
        for name, item in data.items():
            if not str(name).isidentifier() or name in RESERVED | RESERVED_NAMES:
                self.mistake(join(path, name), "cannot be the name of an argument: it is a word of recipes already")
                continue
            table = item if isinstance(item, Mapping) else {"default": item}
            argument = self.record(Argument, table, join(path, name))
            if argument is INVALID:
                continue
            try:
                if argument.is_expression:
                    parse(bind(argument.default, {**self._values, **dict.fromkeys(declared, 1)}))
                declared[name] = argument
            except ValueError as error:
                self.mistake(join(path, name), str(error))
        return declared

    @contextmanager
    def scope(
        self, declared: Mapping[str, Argument], fixed: Mapping[str, Data], path: str
    ) -> Iterator[Mapping[str, Value]]:
        """Read what belongs to a recipe with these arguments; gives their values, ``fixed`` those of its entry."""
        before, values = (self._declared, self._values), dict[str, Value]()
        for name, argument in declared.items():
            at, value = join(path, name), argument.default
            values[name] = 1  # for what is read on after a mistake
            try:
                if argument.is_expression:
                    value = bind(str(value), {**self._values, **values})
                if name in fixed:
                    is_expression = isinstance(fixed[name], str) and not argument.choices
                    value = argument.check(name, self.bind(fixed[name]) if is_expression else fixed[name])
                elif name in self._declared:
                    value = self._values[name]
                elif name in self.given.values:
                    at = join("arguments", name)
                    value = argument.check(name, self.given.values[name])
                if value is None:
                    raise ValueError(f"must be given: {argument.meaning}")
            except ValueError as error:
                self.mistake(at, str(error))
            else:
                values[name] = value
            if name not in fixed:
                self.given.known.add(name)
        self._declared, self._values = {**self._declared, **declared}, {**self._values, **values}
        try:
            yield values
        finally:
            self._declared, self._values = before

    def holds(self, when: Data, path: str) -> bool:
        """Whether the arguments are as a condition says: ``{variant = ["a", "b"]}``."""
        if not isinstance(when, Mapping):
            self.mistake(path, f"must be a table of arguments, but got {when!r}")
            return False
        holds = True
        for name, item in when.items():
            argument = self._declared.get(name)
            if argument is None:
                self.mistake(join(path, name), f"the recipe has no such argument{did_you_mean(name, self._declared)}")
                continue
            wanted = item if is_sequence(item) else [item]
            try:
                holds &= self._values[name] in [argument.check(name, value) for value in wanted]
            except ValueError as error:
                self.mistake(join(path, name), str(error))
        return holds
