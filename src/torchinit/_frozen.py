"""Frozen dataclasses that a model has thousands of, made at the cost of others; the collector, kept waiting."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields, replace
from functools import cache, update_wrapper
from typing import TYPE_CHECKING, Any, Final, TypeVar

from torch.compiler import is_dynamo_compiling

_Class = TypeVar("_Class", bound=type[Any])
_Instance = TypeVar("_Instance")

made: Final = tuple.__new__
"""Makes a named tuple, of the class and all fields, in half of the time that the class takes."""


def quickly_made(cls: _Class) -> _Class:
    """Give a frozen dataclass with slots an ``__init__`` that does the same in less than half of the time.

    Only for classes whose objects are made once a tensor. Raises TypeError for a class with default factories.

    >>> from dataclasses import dataclass
    >>> @quickly_made
    ... @dataclass(frozen=True, slots=True)
    ... class Point:
    ...     x: float
    ...     y: float = 0.0
    >>> Point(1.0)
    Point(x=1.0, y=0.0)
    """
    # What makes frozen objects dear is that each field is set by a call of ``object.__setattr__``, past the
    # ``__setattr__`` that refuses. So a new object is one of an open twin until its fields are set: a subclass of the
    # same slots in which assigning is plain. Nobody sees it: it becomes what it should be before ``__post_init__``,
    # and no field's assignment can fail. A subclass has slots of its own, so its objects are made as ever; and so are
    # all in code that torch compiles, which follows no change of a class.
    if any(field.default_factory is not MISSING for field in fields(cls)):
        raise TypeError(f"{cls.__name__} has a default factory, which quickly_made does not know")
    careful = cls.__init__
    names = [field.name for field in fields(cls)]
    check = ["    made.__post_init__()"] if hasattr(cls, "__post_init__") else []
    source = [
        f"def __init__(made, {', '.join(names)}):",
        "    if made.__class__ is not cls or is_compiling():",
        f"        return careful(made, {', '.join(names)})",
        "    become(made, '__class__', open_twin)",
        *(f"    made.{name} = {name}" for name in names),
        "    made.__class__ = cls",
        *check,
        "def __replace__(self, **changes):",
        "    if self.__class__ is not cls or is_compiling():",
        "        return replace(self, **changes)",
        "    made = new(open_twin)",
        *(f"    made.{name} = self.{name}" for name in names),
        "    for name, value in changes.items():",
        "        setattr(made, name, value)",
        "    made.__class__ = cls",
        *check,
        "    return made",
    ]
    plain = {"__setattr__": object.__setattr__, "__delattr__": object.__delattr__}  # both, or neither is fast
    twin = type(cls.__name__, (cls,), {"__slots__": (), **plain})
    scope = {"cls": cls, "careful": careful, "open_twin": twin, "become": object.__setattr__}
    scope |= {"is_compiling": is_dynamo_compiling}
    made: dict[str, Any] = {}
    exec("\n".join(source), scope | {"new": object.__new__, "replace": replace}, made)  # noqa: S102  # as dataclasses
    made["__init__"].__defaults__ = careful.__defaults__
    cls.__init__ = update_wrapper(made["__init__"], careful)
    cls.__replace__ = made["__replace__"]
    cls.__open_twin__ = twin
    return cls


def stamper(
    cls: type[_Instance], *given: str
) -> Callable[[_Instance, Iterable[tuple[object, ...]]], Iterator[_Instance]]:
    """The function that makes objects of a class that is quickly made: like a first one, but for the fields given.

    It takes that one and rows of the fields, one row an object, and checks nothing: only for classes without
    ``__post_init__``.
    """
    # A third of the time of as many calls of the class, which has to sort its arguments and to look for a compiler.
    same = [field.name for field in fields(cls) if field.name not in given]  # type: ignore[arg-type]  # a dataclass
    source = [
        "def stamp(like, rows):",
        *(f"    {name} = like.{name}" for name in same),
        f"    for {', '.join(given)} in rows:",
        "        made = new(open_twin)",
        *(f"        made.{name} = {name}" for name in (*given, *same)),
        "        made.__class__ = cls",
        "        yield made",
    ]
    scope = {"new": object.__new__, "cls": cls, "open_twin": cls.__open_twin__}  # type: ignore[attr-defined]
    exec("\n".join(source), scope)  # noqa: S102  # as dataclasses
    made: Callable[..., Iterator[_Instance]] = scope["stamp"]
    return made


def changed(instance: _Instance, **changes: object) -> _Instance:
    """The same as ``dataclasses.replace`` for an object that is quickly made; AttributeError for an unknown field."""
    made: _Instance = instance.__replace__(**changes)  # type: ignore[attr-defined]  # quickly_made defines it
    return made


class Postponable:
    """A frozen dataclass with slots, one of whose fields may be made when somebody first reads it.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True, slots=True)
    ... class Square(Postponable):
    ...     side: float
    ...     corners: tuple[float, ...] = ()
    >>> square = Square(2.0).postponed("corners", lambda: print("made") or (0.0, 2.0))
    >>> square
    made
    Square(side=2.0, corners=(0.0, 2.0))
    """

    # A slot that is empty is looked for here, by Python itself; so equality, pickling and all else that reads the field
    # makes it, and nothing can tell afterwards that it was ever missing. What makes it may hold on to nothing that
    # can change.
    __slots__ = ("_makers",)

    def postponed(self: _Instance, name: str, make: Callable[[], object]) -> _Instance:
        """The same with a field that ``make`` gives, called once."""
        return _with_makers(self, {name: cache(make)}, {})

    def maker_of(self, name: str) -> object:
        """What ``name`` is postponed by; None where it is made."""
        return getattr(getattr(self, "_makers", {}).get(name), "__wrapped__", None)

    def updated(self: _Instance, **changes: object) -> _Instance:
        """The same as ``dataclasses.replace``, but that what is postponed stays so."""
        return _with_makers(self, getattr(self, "_makers", {}), changes)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:  # which type checkers would take for any attribute
            makers = {} if name == "_makers" else getattr(self, "_makers", {})
            if name not in makers:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            object.__setattr__(self, name, makers[name]())
            object.__setattr__(self, "_makers", {other: make for other, make in makers.items() if other != name})
            return object.__getattribute__(self, name)


def _with_makers(old: _Instance, makers: dict[str, Callable[[], object]], changes: dict[str, object]) -> _Instance:
    made = object.__new__(type(old))
    makers = {name: make for name, make in makers.items() if name not in changes}
    object.__setattr__(made, "_makers", makers)
    for field in fields(old):  # type: ignore[arg-type]  # a dataclass
        if field.name not in makers:
            value = changes[field.name] if field.name in changes else getattr(old, field.name)
            object.__setattr__(made, field.name, value)
    return made


@contextmanager
def collector_paused(paused: bool = True) -> Iterator[bool]:
    """Without the collector of cycles, which is afterwards as it was: for short stretches, as decorator or block.

    It tells whether the collector was on. If it was, ``collector_paused(False)`` switches it on within.

    >>> with collector_paused():
    ...     gc.isenabled()
    False
    >>> gc.isenabled()
    True
    """
    # The collector starts whenever so many objects have been made, and goes over them and, from time to time, over all
    # that the process holds: on a model of 20,000 tensors half of the time went there, for nothing, since sites, steps
    # and records hold no cycles and stay. Other threads go without it for the same milliseconds, and so does what
    # little code of users' own runs in between (a selector, a parametrization): their garbage is then collected later.
    # Reference counts free everything else at once, as ever. Where two threads are here at a time, the first that
    # leaves switches it on for both, which costs time and nothing else.
    was_enabled = gc.isenabled()
    (gc.disable if paused else gc.enable)()
    try:
        yield was_enabled
    finally:
        if was_enabled:
            gc.enable()
        elif not paused:  # never off after a pause that found it off: that may have been another thread's, and be over
            gc.disable()
