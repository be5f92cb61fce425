"""Registries: which name stands for which class."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import is_dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar, overload

from torchinit._text import did_you_mean
from torchinit.errors import ConfigError

_Class = TypeVar("_Class", bound=type)


class Registry:
    """The classes that plain data can name, all of one kind.

    ``kind`` says in messages what they are, ``method`` is what each of them must have. Packages offer
    more of them under the entry points ``group``; those are looked up only when a name is not known
    otherwise. ``reserved`` are words that no argument of a class may be called.

    >>> from dataclasses import dataclass
    >>> shapes = Registry("shape")
    >>> @shapes.register("Round", "Circular")
    ... @dataclass(frozen=True)
    ... class Circle:
    ...     radius: float
    >>> shapes.get("Circular"), shapes.name_of(Circle)
    (<class '...Circle'>, 'Round')
    >>> list(shapes), len(shapes), "Square" in shapes
    (['Circular', 'Round'], 2, False)
    """

    def __init__(self, kind: str, *, method: str = "__init__", group: str = "", reserved: Collection[str] = ()) -> None:
        self.kind = kind
        self.method = method
        self.group = group
        self.reserved = frozenset(reserved)
        self._classes: dict[str, type] = {}

    def __repr__(self) -> str:
        return f"<Registry of {len(self)} {self.kind}s>"

    def __contains__(self, name: object) -> bool:
        return name in self._classes or any(point.name == name for point in self._plugins())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._classes)

    def names(self) -> tuple[str, ...]:
        """Every registered name, sorted. Plug-ins are among them once they were used."""
        return tuple(sorted(self._classes))

    @overload
    def register(self, name: _Class, /) -> _Class: ...
    @overload
    def register(self, *names: str, force: bool = False) -> Callable[[_Class], _Class]: ...

    def register(self, *names: str | _Class, force: bool = False) -> _Class | Callable[[_Class], _Class]:
        """Makes a dataclass known, under its own name or under the names given; a decorator.

        Raises ValueError for a name that is taken (``force=True`` replaces the class instead), and
        TypeError for a class that cannot be built from plain data.
        """

        def add(cls: _Class) -> _Class:
            self._check(cls)
            called = [name for name in names if isinstance(name, str)] or [cls.__name__]
            for name in called:
                if not force and self._classes.get(name, cls) is not cls:
                    raise ValueError(
                        f"{name!r} stands for {_full(self._classes[name])} already, so not for {_full(cls)};"
                        " force=True replaces it"
                    )
            self._classes.update(dict.fromkeys(called, cls))
            return cls

        first = names[0] if names else None
        return add(first) if isinstance(first, type) else add

    def _check(self, cls: type) -> None:
        if not (isinstance(cls, type) and is_dataclass(cls) and hasattr(cls, self.method)):
            raise TypeError(f"{cls!r} is no {self.kind}: it must be a dataclass with a method {self.method!r}")
        for method in sorted(getattr(cls, "__abstractmethods__", ())):
            raise TypeError(f"{_full(cls)} is not finished: it has no method {method!r}")
        taken = self.reserved & set(cls.__dataclass_fields__)
        if taken:
            raise TypeError(f"{_full(cls)} has an argument {min(taken)!r}, which is a word of every recipe entry")

    def get(self, name: str) -> type:
        """The class that a name stands for.

        Raises KeyError with the near name if there is none, and ConfigError if the package that offers it
        cannot be loaded.
        """
        if name not in self._classes:
            self._load(name)
        if name not in self._classes:
            known = [*self._classes, *(point.name for point in self._plugins())]
            raise KeyError(f"unknown {self.kind} {name!r}{did_you_mean(name, known)}")
        return self._classes[name]

    def name_of(self, cls: type) -> str:
        """The first name of a class; raises KeyError if it has none."""
        for name, known in self._classes.items():
            if known is cls:
                return name
        raise KeyError(f"{_full(cls)} is not registered as {self.kind}")

    def _plugins(self) -> Collection[EntryPoint]:
        return entry_points(group=self.group) if self.group else ()

    def _load(self, name: str) -> None:
        for point in self._plugins():
            if point.name == name:
                try:
                    self.register(name)(point.load())
                except Exception as error:
                    raise ConfigError(
                        f"the plug-in for {self.kind} {name!r} ({point.value}) cannot be loaded: "
                        f"{type(error).__name__}: {error}"
                    ) from error
                return


def _full(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
