"""Registries: names for classes in a tree of packages, as MMEngine has them, and the errors of an ``init_cfg``.

Each error is torchinit's and at the same time of the type that MMEngine raises.

::

    TorchinitError
    └── InitCfgError
        ├── InitCfgTypeError (TypeError)            a value of the wrong type, an unknown argument
        ├── InitCfgValueError (ValueError)          a value that cannot be, an incomplete override
        │   └── InitCfgRangeError (RuntimeError)    a spread below 0, bounds in the wrong order
        ├── InitCfgKeyError (KeyError)              no type, or one that nobody registered
        ├── InitCfgNameError (RuntimeError)         an override for a part that the module does not have
        └── InitCfgAssertionError (AssertionError)  a choice that there is not, a parameter added on the way
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from inspect import signature
from typing import Any, Final, TypeVar

from torchinit._text import did_you_mean
from torchinit.errors import TorchinitError

_Registered = TypeVar("_Registered", bound=Callable[..., Any])

Lookup = Callable[[str], Any]
"""Finds what a name stands for somewhere else; None where it is not known there either."""


class InitCfgError(TorchinitError):
    """An ``init_cfg`` that cannot be carried out."""


class InitCfgTypeError(InitCfgError, TypeError):
    """A value of the wrong type, or an argument that the initializer does not have."""


class InitCfgValueError(InitCfgError, ValueError):
    """A value that cannot be, or an override that is not complete."""


class InitCfgRangeError(InitCfgValueError, RuntimeError):
    """A spread below 0, or bounds in the wrong order, for which torch raises RuntimeError."""


class InitCfgKeyError(InitCfgError, KeyError):
    """An entry without ``type``, or with one that nobody registered."""

    # KeyError shows the repr of its argument, quotes and all.
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class InitCfgNameError(InitCfgError, RuntimeError):
    """An override for a part that the module does not have."""


class InitCfgAssertionError(InitCfgError, AssertionError):
    """A choice that there is not, or a parameter that was added while weights were initialized."""


class Registry:
    """Names for classes and functions, with a parent to ask and children for other packages' scopes.

    ``scope`` is the package's name: ``"pkg.Name"`` asks the registry of that scope in the tree. It is the
    package of the calling module where it is not given. ``get`` falls back from a registry to its
    ancestors, then to ``elsewhere`` of the root, then to classes of modules that are imported, by their full name.
    What users have registered elsewhere wins over what torchinit has of that name.
    A name never makes anything be imported; ``locations`` are modules that register what is in them, and
    are imported before the first look.

    >>> shapes = Registry("shape", scope="mine")
    >>> @shapes.register_module()
    ... class Circle:
    ...     def __init__(self, radius=1):
    ...         self.radius = radius
    >>> shapes.build({"type": "Circle", "radius": 2}).radius
    2
    """

    def __init__(
        self,
        name: str,
        build_func: Callable[..., Any] | None = None,
        parent: Registry | None = None,
        scope: str | None = None,
        locations: Sequence[str] = (),
        *,
        aliases: tuple[str, ...] = (),
        elsewhere: Lookup = lambda _: None,
    ) -> None:
        self.name = name
        self.scope: str = scope or str(sys._getframe(1).f_globals.get("__name__", "__main__")).partition(".")[0]
        self.aliases = aliases
        self.parent = parent
        self.children: dict[str, Registry] = {}
        self._elsewhere = elsewhere
        self._locations = list(locations)
        self._modules: dict[str, Callable[..., Any]] = {}
        self._build: Callable[..., Any] = build_func or (parent._build if parent else build_from_cfg)
        if parent is not None:
            if self.scope in parent.children:
                raise InitCfgAssertionError(f"scope {self.scope!r} exists in the {parent.name} registry already")
            parent.children[self.scope] = self

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    @property
    def module_dict(self) -> Mapping[str, Callable[..., Any]]:
        """What is registered here, by name."""
        return self._modules

    @property
    def root(self) -> Registry:
        """The top of the tree."""
        return self.parent.root if self.parent else self

    def __repr__(self) -> str:
        rows = [(name, f"{what.__module__}.{_name_of(what)}") for name, what in sorted(self._modules.items())]
        width = max((len(name) for name, _ in rows), default=0)
        head = f"Registry of {self.name} in {self.scope}: {len(rows)} names"
        return "\n".join([head, *(f"  {name.ljust(width)}  {what}" for name, what in rows)])

    # --- registering -------------------------------------------------------------------------------------

    def register_module(
        self,
        name: str | list[str] | tuple[str, ...] | None = None,
        force: bool = False,
        module: Callable[..., Any] | None = None,
    ) -> Any:
        """Register a class or function under its own name, a name, or several; a decorator without ``module``.

        Raises KeyError for a name that is taken unless ``force``, TypeError for arguments of other types.
        """
        if not isinstance(force, bool):
            raise InitCfgTypeError(f"force must be a boolean, but got {type(force)}")
        names = [name] if isinstance(name, str) else name
        if names is not None and not (isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names)):
            raise InitCfgTypeError(f"name must be None, a str or a sequence of str, but got {type(name)}")

        def register(what: _Registered) -> _Registered:
            if not callable(what):
                raise InitCfgTypeError(f"module must be Callable, but got {type(what)}")
            chosen = [_name_of(what)] if names is None else names
            for taken in [] if force else [key for key in chosen if key in self._modules]:
                there = self._modules[taken].__module__
                raise InitCfgKeyError(
                    f"{taken} is already registered in {self.name} at {there}; force=True replaces it"
                )
            self._modules.update(dict.fromkeys(chosen, what))
            return what

        return register if module is None else register(module)

    # --- finding -----------------------------------------------------------------------------------------

    def get(self, key: str) -> Any:
        """What a name stands for, or None; raises TypeError for what is no str.

        ``"scope.Name"`` looks in the registry of that scope, ``"package.module.Class"`` in imported modules.
        """
        if not isinstance(key, str):
            raise InitCfgTypeError(f"a name in a registry is a str, but got {type(key)}")
        while self._locations:
            import_module(self._locations.pop())
        own = self._find(key)
        if own is None or _is_built_in(own):
            theirs = self.root._elsewhere(key)
            if theirs is not None and (own is None or not _is_built_in(theirs)):
                return theirs
        module, _, name = key.rpartition(".")
        return own or (getattr(sys.modules.get(module), name, None) if module else None)

    def _find(self, key: str) -> Any:
        scope, _, name = key.partition(".")
        if not name:
            return next((at._modules[key] for at in self._chain() if key in at._modules), None)
        if scope in (self.scope, *self.aliases):
            return self._modules.get(name)
        there = self.root.search(scope)
        return there.get(name) if there else None

    def _chain(self) -> Iterator[Registry]:
        """This registry and those above it."""
        at: Registry | None = self
        while at is not None:
            yield at
            at = at.parent

    def search(self, scope: str) -> Registry | None:
        """The registry of a scope, here or below."""
        if scope in (self.scope, *self.aliases):
            return self
        return next((there for child in self.children.values() if (there := child.search(scope))), None)

    def build(self, cfg: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The object that a config describes: ``type`` and the arguments."""
        build: Callable[..., Any] = self._build
        return build(cfg, *args, **{**kwargs, "registry": self})

    def resolve(self, kind: object, scope: str | None = None) -> Callable[..., Any]:
        """The class or function that ``type`` stands for, in a scope if one is given."""
        if isinstance(kind, str):
            found = (self.get(f"{scope}.{kind}") if scope else None) or self.get(kind)
            if found is None:
                known = sorted({name for at in self._chain() for name in at._modules})
                raise InitCfgKeyError(
                    f"{kind} is not in the {self.scope}::{self.name} registry{did_you_mean(kind, known)} "
                    f"Known are {', '.join(known)}."
                )
            return found  # type: ignore[no-any-return]  # whatever was registered
        if callable(kind):
            return kind
        raise InitCfgTypeError(f"type must be a str or a callable, but got {type(kind)}")


def build_from_cfg(cfg: dict[str, Any], registry: Registry, default_args: dict[str, Any] | None = None) -> Any:
    """The object that a config describes.

    ``type`` is a registered name, a class or a function; ``_scope_`` names the package whose registry is
    asked. Raises TypeError for a config that is no dict or has arguments that do not fit, and KeyError
    where the type is missing or unknown.

    >>> build_from_cfg({"type": dict, "a": 1}, Registry("thing", scope="mine"))
    {'a': 1}
    """
    if not isinstance(cfg, dict):
        raise InitCfgTypeError(f"cfg must be a dict, but got {type(cfg)}")
    if not isinstance(registry, Registry):
        raise InitCfgTypeError(f"registry must be a Registry, but got {type(registry)}")
    if not (default_args is None or isinstance(default_args, dict)):
        raise InitCfgTypeError(f"default_args must be a dict or None, but got {type(default_args)}")
    args = {**(default_args or {}), **cfg}
    if "type" not in args:
        raise InitCfgKeyError(f'`cfg` must contain the key "type", but got {cfg}{did_you_mean("type", args)}')
    scope, kind = args.pop("_scope_", None), args.pop("type")
    found = registry.resolve(kind, scope)
    try:
        return found(**args)
    except TypeError as error:
        if wrong := _wrong_arguments(str(error), found, args):
            raise InitCfgTypeError(f"{kind if isinstance(kind, str) else _name_of(kind)} {wrong}") from error
        raise


def _wrong_arguments(text: str, what: Callable[..., Any], args: Mapping[str, Any]) -> str:
    """What Python means by the text of its TypeError, with the near names; nothing where it is about something else."""
    unexpected, missing = _UNEXPECTED.search(text), _MISSING.search(text)
    known = _arguments(what) if unexpected or missing else set()
    lacking = re.findall(r"'(\w+)'", missing[1]) if missing else []
    if not known.issuperset(lacking) or (unexpected and unexpected[1] not in args):
        return ""  # raised by what it calls in turn
    if odd := [name for name in args if name not in known] if known else []:
        return "; ".join(f"has no argument {name!r}{did_you_mean(name, known - args.keys())}" for name in odd)
    return f"needs {' and '.join(map(repr, lacking))}" if lacking else ""


_UNEXPECTED: Final = re.compile(r"got an unexpected keyword argument '(\w+)'")
_MISSING: Final = re.compile(r"missing \d+ required [\w-]+ arguments?: (.*)")


def _arguments(what: Callable[..., Any]) -> set[str]:
    """The names that a class or function takes, and those that it hands on to its bases."""
    bases = (*getattr(what, "__mro__", ()), *getattr(what, "takes_also", ()))
    makers = [vars(base)["__init__"] for base in bases if "__init__" in vars(base)]
    found = [signature(maker).parameters.values() for maker in makers or [what]]
    return {one.name for each in found for one in each if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)} - {
        "self"
    }


def _is_built_in(what: object) -> bool:
    """Whether something that is registered comes with torchinit or with mmengine, and not from a user."""
    return str(getattr(what, "__module__", "")).partition(".")[0] in ("torchinit", "mmengine")


def _name_of(what: Callable[..., Any]) -> str:
    return getattr(what, "__name__", str(what))
