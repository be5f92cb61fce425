"""Lazy: names of a package that are imported when they are used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def attach(
    package: str, names: Mapping[str, str], modules: str = "", near: Callable[[str], str] = lambda name: ""
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the ``__getattr__`` and ``__dir__`` of a package (PEP 562).

    ``names`` are those of each module of the package, with blanks between them; ``modules`` are attributes themselves.
    ``near`` tells what a name that nobody has may have meant.
    Type checkers see neither, so the package imports the same under ``TYPE_CHECKING``; tests/test_exports.py compares.

    >>> load, _ = attach("torchinit", {"errors": "ConfigError PlanError"}, "errors")
    >>> load("ConfigError"), load("errors").__name__
    (<class 'torchinit.errors.ConfigError'>, 'torchinit.errors')
    >>> load("Config")
    Traceback (most recent call last):
    AttributeError: module 'torchinit' has no attribute 'Config'
    >>> attach("torchinit", {}, "rules noise")[0]("Keyed")
    Traceback (most recent call last):
    AttributeError: module 'torchinit' has no attribute 'Keyed'; torchinit.noise has
    """
    homes = {name: module for module, some in names.items() for name in some.split()}
    namespaces = modules.split()

    def load(name: str) -> Any:
        if name in namespaces:
            return import_module(f"{package}.{name}")
        if name not in homes:
            rooms = [] if name.startswith("_") else [f"{package}.{room}" for room in namespaces]
            hint = next((f"; {room} has" for room in rooms if name in getattr(import_module(room), "__all__", ())), "")
            hint = hint or (near(name) if rooms else "")
            message = f"module {package!r} has no attribute {name!r}{hint}"
            raise AttributeError(message, name=name, obj=sys.modules[package])
        try:
            value = getattr(import_module(f"{package}.{homes[name]}"), name)
        except AttributeError as error:  # `from package import name` would hide what is wrong in the module
            raise ImportError(f"{package}.{homes[name]} cannot be imported: {error}") from error
        setattr(sys.modules[package], name, value)  # so that the next use finds it without asking here
        return value

    special = [name for name in vars(sys.modules[package]) if name.startswith("__")]
    return load, lambda: sorted({*special, *homes, *namespaces})
