"""Registries: the names by which plain data call classes, plug-ins, and what may stand where one is wanted."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from typing import Any, TypeVar, overload

from torchinit._text import did_you_mean, full_name, with_article
from torchinit.errors import ConfigError

_Class = TypeVar("_Class", bound=type)


# --- plug-ins: what other packages offer under entry points; nothing is imported before it is needed --------------


def plugins(group: str) -> Mapping[str, EntryPoint]:
    """The entry points of a group by name; of two packages that offer one name, the one that is found first counts."""
    return _found(group, tuple(sys.path))


@lru_cache(maxsize=32)  # it takes milliseconds, and layouts are looked up for each class of a model
def _found(group: str, path: tuple[str, ...]) -> Mapping[str, EntryPoint]:
    return {point.name: point for point in reversed(tuple(entry_points(group=group)))}


def load_plugin(point: EntryPoint, kind: str) -> Any:
    """The object that an entry point names; ConfigError if its package does not have it."""
    try:
        return point.load()
    except Exception as error:
        raise unloadable(point, kind, error) from error


def read_plugin(point: EntryPoint, kind: str) -> str:
    """The text of the file NAME.toml in the package that an entry point NAME names; ConfigError if there is none."""
    try:  # resources.files() would import the package
        if (spec := find_spec(point.value)) is None:
            raise ModuleNotFoundError(f"there is no package {point.value!r}")
        loader: Any = spec.loader
        folder: Traversable = loader.get_resource_reader(point.value).files()
        return folder.joinpath(f"{point.name}.toml").read_text("utf-8")
    except Exception as error:
        raise unloadable(point, kind, error) from error


def unloadable(point: EntryPoint, kind: str, error: Exception) -> ConfigError:
    """The error of a plug-in that is not what its entry point promises."""
    why = f"{type(error).__name__}: {error}"
    return ConfigError(f"the plug-in for {kind} {point.name!r} ({point.value}) cannot be loaded: {why}")


def described(point: EntryPoint) -> str:
    """Say where a plug-in is from, for one that has not been imported."""
    return f"{point.value}, of the package {point.dist.name if point.dist else '?'}"


class ClassRegistry:
    """The classes that plain data can name, all of one kind; iterates over the names, sorted.

    ``kind`` is their noun in messages, ``method`` one that each must have. Packages offer more under the entry points
    ``group``, which are among the names once they were used. ``reserved`` are words that no argument of a class may be
    called. ``near`` tells what an unknown name may have meant, as :func:`did_you_mean` does.

    >>> from dataclasses import dataclass
    >>> shapes = ClassRegistry("shape")
    >>> @shapes.register("Round", "Circular")
    ... @dataclass(frozen=True)
    ... class Circle:
    ...     radius: float
    >>> shapes.get("Circular"), shapes.name_of(Circle), list(shapes)
    (<class '...Circle'>, 'Round', ['Circular', 'Round'])
    """

    def __init__(
        self,
        kind: str,
        *,
        method: str = "__init__",
        group: str = "",
        reserved: Collection[str] = (),
        near: Callable[[str, Iterable[str]], str] = did_you_mean,
    ) -> None:
        self.kind = kind
        self.near = near
        self.method = method
        self.group = group
        self.reserved: frozenset[str] = frozenset(reserved)
        self._registered: dict[str, type] = {}
        self._deferred: list[str] = []

    def __repr__(self) -> str:
        return f"<Registry of {len(self)} {self.kind}s>"

    def __contains__(self, name: object) -> bool:
        return name in self._classes or name in plugins(self.group)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        return len(self._classes)

    @overload
    def register(self, name: _Class, /) -> _Class: ...
    @overload
    def register(self, *names: str, force: bool = False) -> Callable[[_Class], _Class]: ...

    def register(self, *names: str | _Class, force: bool = False) -> _Class | Callable[[_Class], _Class]:
        """Register a dataclass under its own name or under those given; a decorator.

        ValueError for a name that is taken, unless ``force``; TypeError for a class that plain data cannot build.
        """

        def add(cls: _Class) -> _Class:
            self._check(cls)
            own = [name for name in names if isinstance(name, str)] or [cls.__name__]
            for name in own:
                known = self._classes.get(name, cls)
                if not (force or known is cls):
                    taken = f"{name!r} stands for {full_name(known)} already, so not for {full_name(cls)}"
                    raise ValueError(f"{taken}; force=True replaces it")
            self._classes.update(dict.fromkeys(own, cls))
            return cls

        return add(names[0]) if names and isinstance(names[0], type) else add

    def defer(self, *modules: str) -> None:
        """Import these modules, which register classes, before the registry is next used: those of layers above."""
        self._deferred += modules

    @property
    def _classes(self) -> dict[str, type]:
        while self._deferred:  # each is off the list before it registers anything itself
            import_module(self._deferred.pop())
        return self._registered

    def _check(self, cls: type) -> None:
        if not (isinstance(cls, type) and is_dataclass(cls) and hasattr(cls, self.method)):
            wanted = f"{with_article(self.kind)}: it must be a dataclass with a method {self.method!r}"
            raise TypeError(f"{cls!r} is not {wanted}")
        for method in sorted(getattr(cls, "__abstractmethods__", ())):
            raise TypeError(f"{full_name(cls)} is not finished: it has no method {method!r}")
        taken = self.reserved & set(cls.__dataclass_fields__)
        if taken:
            raise TypeError(f"{full_name(cls)} has an argument {min(taken)!r}, which is a word of every recipe entry")

    def get(self, name: str) -> type:
        """The class of a name; KeyError with the near one if there is none, ConfigError if a plug-in does not load."""
        if name not in self._classes:
            offers = plugins(self.group)
            if name not in offers:
                raise KeyError(f"unknown {self.kind} {name!r}{self.near(name, [*self._classes, *offers])}")
            offered = load_plugin(offers[name], self.kind)
            try:
                self.register(name)(offered)
            except (TypeError, ValueError) as error:
                raise unloadable(offers[name], self.kind, error) from error
        return self._classes[name]

    def name_of(self, cls: type) -> str:
        """The first name of a class; raises KeyError if it has none."""
        name = next((name for name, known in self._classes.items() if known is cls), None)
        if name is None:
            raise KeyError(f"{full_name(cls)} is not registered as {self.kind}")
        return name

    def plugins(self) -> Collection[EntryPoint]:
        """What other packages offer, used or not; nothing is imported."""
        return plugins(self.group).values()


# --- what a field of an abstract type may hold ------------------------------------------------------------------


class Deferred(ABC):
    """An object that stands for one of another class, some of whose numbers are still text."""

    __slots__ = ()

    @abstractmethod
    def target_and_arguments(self) -> tuple[type, Mapping[str, object]]:
        """The class that it stands for, and its arguments."""


@dataclass(frozen=True, slots=True)
class Expressions:
    """The rules by which numbers may be given as text.

    ``parse`` makes a number of it, or returns it if it must wait; it raises ValueError for what is neither. ``build``
    makes the object whose numbers must wait; it takes ``arguments`` besides those of the class.
    """

    parse: Callable[[str], float | str]
    build: Callable[[type, dict[str, Any]], Deferred]
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaggedUnion:
    """The content of a field of an abstract type: an object of a class in ``registry``, chosen by ``"type"``.

    A bare number stands for the class and argument in ``bare``. ``text`` allows numbers as text.
    """

    registry: ClassRegistry
    bare: tuple[type, str] | None = None
    text: Expressions | None = None
