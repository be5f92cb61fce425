"""Registries: the names by which plain data call classes, and what may stand where one of them is wanted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, overload

from torchinit._text import did_you_mean, full_name, with_article
from torchinit.serialization.plugins import load_plugin, unloadable

_Class = TypeVar("_Class", bound=type)


class ClassRegistry:
    """The classes that plain data can name, all of one kind; iterates over the names, sorted.

    ``kind`` is their noun in messages, ``method`` one that each of them must have. Packages offer
    more of them under the entry points ``group``; those are looked up only when a name is not known
    otherwise, and are among the names once they were used. ``reserved`` are words that no argument of a class may be
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
        return name in self._classes or any(point.name == name for point in self.plugins())

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        return len(self._classes)

    @overload
    def register(self, name: _Class, /) -> _Class: ...
    @overload
    def register(self, *names: str, force: bool = False) -> Callable[[_Class], _Class]: ...

    def register(self, *names: str | _Class, force: bool = False) -> _Class | Callable[[_Class], _Class]:
        """Register a dataclass under its own name or under the names given; a decorator.

        Raises ValueError for a name that is taken (``force=True`` replaces the class instead), and
        TypeError for a class that cannot be built from plain data.
        """

        def add(cls: _Class) -> _Class:
            self._check(cls)
            own = [name for name in names if isinstance(name, str)] or [cls.__name__]
            for name in own:
                if not force and self._classes.get(name, cls) is not cls:
                    raise ValueError(
                        f"{name!r} stands for {full_name(self._classes[name])} already, so not for {full_name(cls)};"
                        " force=True replaces it"
                    )
            self._classes.update(dict.fromkeys(own, cls))
            return cls

        first = names[0] if names else None
        return add(first) if isinstance(first, type) else add

    def defer(self, *modules: str) -> None:
        """Import these modules, which register classes, before the registry is next used.

        So a layer above can own classes that data below can name, whichever of the two was imported.
        """
        self._deferred += modules

    @property
    def _classes(self) -> dict[str, type]:
        while self._deferred:  # each is off the list before it registers anything itself
            import_module(self._deferred.pop())
        return self._registered

    def _check(self, cls: type) -> None:
        if not (isinstance(cls, type) and is_dataclass(cls) and hasattr(cls, self.method)):
            kind = with_article(self.kind)
            raise TypeError(f"{cls!r} is not {kind}: it must be a dataclass with a method {self.method!r}")
        for method in sorted(getattr(cls, "__abstractmethods__", ())):
            raise TypeError(f"{full_name(cls)} is not finished: it has no method {method!r}")
        taken = self.reserved & set(cls.__dataclass_fields__)
        if taken:
            raise TypeError(f"{full_name(cls)} has an argument {min(taken)!r}, which is a word of every recipe entry")

    def get(self, name: str) -> type:
        """The class that a name stands for.

        Raises KeyError with the near name if there is none, and ConfigError if the package that offers it
        cannot be loaded.
        """
        if name not in self._classes:
            self._load(name)
        if name not in self._classes:
            known = [*self._classes, *(point.name for point in self.plugins())]
            raise KeyError(f"unknown {self.kind} {name!r}{self.near(name, known)}")
        return self._classes[name]

    def name_of(self, cls: type) -> str:
        """The first name of a class; raises KeyError if it has none."""
        name = next((name for name, known in self._classes.items() if known is cls), None)
        if name is None:
            raise KeyError(f"{full_name(cls)} is not registered as {self.kind}")
        return name

    def plugins(self) -> Collection[EntryPoint]:
        """What other packages offer, used or not; nothing is imported."""
        return entry_points(group=self.group) if self.group else ()

    def _load(self, name: str) -> None:
        for point in [point for point in self.plugins() if point.name == name][:1]:
            offered = load_plugin(point, self.kind)
            try:
                self.register(name)(offered)
            except (TypeError, ValueError) as error:
                raise unloadable(point, self.kind, error) from error


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

    ``parse`` makes a number of it, or returns it if it must wait; it raises ValueError for what is
    neither. ``build`` makes the object whose numbers must wait; it takes ``arguments`` besides those of
    the class.
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
