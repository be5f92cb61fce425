"""Registries: names for classes in a tree of packages, as MMEngine has them; those of initializers and of wrappers.

Where mmengine is in use, what is registered with it is found, too; nothing here imports it unasked.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from inspect import signature
from typing import Any, Final, TypeVar, cast

from torch import nn

from torchinit._text import did_you_mean
from torchinit.errors import TorchinitError
from torchinit.initializers.functions import hint
from torchinit.mmengine.log import log
from torchinit.rules.rule import INITIALIZERS

_Registered = TypeVar("_Registered", bound=Callable[..., Any])

_UNEXPECTED: Final = re.compile(r"got an unexpected keyword argument '(\w+)'")
_MISSING: Final = re.compile(r"missing \d+ required [\w-]+ arguments?: (.*)")


# Each error is torchinit's and at the same time of the type that MMEngine raises.


class InitCfgError(TorchinitError):
    """An ``init_cfg`` that cannot be carried out."""


class InitCfgTypeError(InitCfgError, TypeError):
    """A value of the wrong type, or an argument that the initializer does not have."""


class InitCfgValueError(InitCfgError, ValueError, RuntimeError):
    """A value that cannot be, or an override that is not complete; RuntimeError is torch's for a spread below 0."""


class InitCfgKeyError(InitCfgError, KeyError):
    """An entry without ``type``, or with one that nobody registered."""

    # KeyError shows the repr of its argument, quotes and all.
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class InitCfgNameError(InitCfgError, RuntimeError):
    """An override for a part that the module does not have."""


class InitCfgAssertionError(InitCfgError, AssertionError):
    """A choice that does not exist, or a parameter that was added while weights were initialized."""


class Registry:
    """Names for classes and functions, with a parent to ask and children for other packages' scopes.

    ``scope`` is the package's name, by default that of the calling module: ``"pkg.Name"`` asks the registry of that
    scope in the tree. ``get`` falls back from a registry to its ancestors, then to classes of imported modules by
    their full name. The tree ``elsewhere`` is looked through in the same way: what a package has of a name wins over
    what roots have, and what users have registered over what comes with torchinit or mmengine. Unlike in MMEngine a
    name never makes anything be imported; ``locations`` are modules that register what is in them, and are imported
    before the first look.

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
        elsewhere: Callable[[], Any] = lambda: None,
        near: Callable[[str, Sequence[str]], str] = did_you_mean,
    ) -> None:
        self.name = name
        self.scope: str = scope or str(sys._getframe(1).f_globals.get("__name__", "__main__")).partition(".")[0]
        self.aliases = aliases
        self.parent = parent
        self.children: dict[str, Registry] = {}
        self._elsewhere = elsewhere
        self._near = near
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
        """The registered classes and functions, by name."""
        return self._modules

    @property
    def root(self) -> Registry:
        """The top of the tree."""
        return self.parent.root if self.parent is not None else self

    def __repr__(self) -> str:
        rows = [f"  {name}: {cls.__module__}.{_name_of(cls)}" for name, cls in sorted(self._modules.items())]
        return "\n".join([f"Registry of {self.name} in {self.scope}: {len(rows)} names", *rows])

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

        def register(cls: _Registered) -> _Registered:
            if not callable(cls):
                raise InitCfgTypeError(f"module must be Callable, but got {type(cls)}")
            chosen = [_name_of(cls)] if names is None else names
            if taken := [] if force else [key for key in chosen if key in self._modules]:
                raise InitCfgKeyError(
                    f"{taken[0]} is already registered in {self.name} at {self._modules[taken[0]].__module__};"
                    " force=True replaces it"
                )
            self._modules.update(dict.fromkeys(chosen, cls))
            return cls

        return register if module is None else register(module)

    def get(self, key: str) -> Any:
        """Return what a name stands for, or None; raises TypeError for a key that is not a str.

        ``"scope.Name"`` looks in the registry of that scope, ``"package.module.Class"`` in imported modules.
        """
        return self.find(key)

    def find(self, key: str, scope: str = "") -> Any:
        """Return what a name stands for as :meth:`get` does, a bare name in a scope that is asked first."""
        if not isinstance(key, str):
            raise InitCfgTypeError(f"a name in a registry is a str, but got {type(key)}")
        # As MMEngine looks through one tree: from the registry of the scope upwards; the registry's own scope as a
        # prefix means it alone; where a tree lacks the scope, a bare name is looked for where the search began. A tree
        # after the other was tried, and then the root of one hid a package of the other. So all that has the name is
        # found first, and the best of it taken. tests/peers compares this with MMEngine for every scope and prefix.
        prefix, _, name = key.rpartition(".")
        is_own, trees = prefix in (self.scope, *self.aliases), self._trees()
        starts = [_in_scope(tree, prefix or scope or self.scope) for tree in trees]
        others = not prefix or (not is_own and any(start is not None for start in starts))
        found: list[tuple[Any, Any]] = []
        for tree, start in zip(trees, starts, strict=True):
            first = start if start is not None or not others else self if tree is self.root else tree
            if getattr(first, "_locations", ()):
                first.import_from_location()
            lineage = [first] if first is not None and is_own else _lineage(first)
            found += [(each, each.module_dict[name]) for each in lineage if name in each.module_dict]
        if found:
            return min(found, key=lambda pair: (_is_built_in(pair[0], pair[1], name), pair[0].parent is None))[1]
        return getattr(sys.modules.get(prefix), name, None) if prefix else None

    def import_from_location(self) -> None:
        """Import the modules of ``locations``, once."""
        while self._locations:
            import_module(self._locations.pop())

    def _trees(self) -> list[Any]:
        return [tree for tree in (self.root, self.root._elsewhere()) if tree is not None]

    def build(self, cfg: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the object that a config describes: ``type`` and the arguments."""
        build: Callable[..., Any] = self._build
        return build(cfg, *args, **{**kwargs, "registry": self})

    def resolve(self, kind: object, scope: str | None = None) -> Callable[..., Any]:
        """Return the class or function that ``type`` stands for, in a scope or else in mmengine's default one."""
        if isinstance(kind, str):
            if scope and all(_in_scope(tree, scope) is None for tree in self._trees()):
                near = did_you_mean(scope, {each for tree in self._trees() for each in _scopes(tree)})
                log(logging.WARNING, "_scope_ %r has no registry of %ss, and does nothing%s", scope, self.name, near)
            scope = scope or default_scope()
            start = _in_scope(self.root, scope) if scope else None
            cls = (self if start is None else start).find(kind, scope)
            if cls is None:
                known = sorted({name for registry in _lineage(self) for name in registry.module_dict})
                near = self._near(kind, known)
                near += "" if near.endswith("?") else "."
                raise InitCfgKeyError(
                    f"{kind} is not in the {self.scope}::{self.name} registry{near} Known are {', '.join(known)}."
                )
            return cast("Callable[..., Any]", own_version(cls))
        if callable(kind):
            return cast("Callable[..., Any]", own_version(kind))
        raise InitCfgTypeError(f"type must be a str or a callable, but got {type(kind)}")


# Registries of ours and of mmengine's are looked through alike. One without entries is false, hence `is None`.


def _lineage(registry: Any) -> Iterator[Any]:
    while registry is not None:
        yield registry
        registry = registry.parent


def _in_scope(registry: Any, scope: str) -> Any:
    """Return the registry of a scope, here or below, None if there is none."""
    if scope in (registry.scope, *getattr(registry, "aliases", ())):
        return registry
    below = (_in_scope(child, scope) for child in registry.children.values())
    return next((child for child in below if child is not None), None)


def own_version(cls: Any) -> Any:
    """Return torchinit's class where this is mmengine's own of the same name, as configs in Python have it."""
    ours = sys.modules.get("torchinit.mmengine.initializers")
    return getattr(ours, cls.__name__, cls) if getattr(cls, "__module__", "") == "mmengine.model.weight_init" else cls


def _scopes(registry: Any) -> Iterator[str]:
    yield from (registry.scope, *getattr(registry, "aliases", ()))
    for child in registry.children.values():
        yield from _scopes(child)


def build_from_cfg(cfg: dict[str, Any], registry: Registry, default_args: dict[str, Any] | None = None) -> Any:
    """Return the object that a config describes.

    ``type`` is a registered name, a class or a function; ``_scope_`` the package whose registry is asked. Raises
    TypeError for a config that is not a dict or has arguments that do not fit, KeyError for an unknown ``type``.

    >>> build_from_cfg({"type": dict, "a": 1}, Registry("thing", scope="mine"))
    {'a': 1}
    """
    if not _is_config(cfg):
        raise InitCfgTypeError(f"cfg must be a dict, but got {type(cfg)}")
    if not isinstance(registry, Registry):
        raise InitCfgTypeError(f"registry must be a Registry, but got {type(registry)}")
    if not (default_args is None or _is_config(default_args)):
        raise InitCfgTypeError(f"default_args must be a dict or None, but got {type(default_args)}")
    args = {**(default_args or {}), **cfg}
    if "type" not in args:
        raise InitCfgKeyError(f'`cfg` must contain the key "type", but got {cfg}{did_you_mean("type", args)}')
    scope, kind = args.pop("_scope_", None), args.pop("type")
    cls = registry.resolve(kind, scope)
    try:
        return cls(**args)
    except TypeError as error:
        if wrong := _wrong_arguments(str(error), cls, args):
            name = kind if isinstance(kind, str) else _name_of(kind)
            near = registry._near(name, ()) if getattr(cls, "__module__", "") == "torch.nn.init" else ""
            raise InitCfgTypeError(f"{name} {wrong}{near}") from error
        raise


def _is_config(value: object) -> bool:
    """Whether something is a dict, or a Config of mmengine, which is none."""
    return isinstance(value, (dict, getattr(sys.modules.get("mmengine.config"), "Config", ())))


def _wrong_arguments(text: str, cls: Callable[..., Any], args: Mapping[str, Any]) -> str:
    """Explain Python's TypeError, with the near names; return nothing where it is about something else."""
    unexpected, missing = _UNEXPECTED.search(text), _MISSING.search(text)
    known = _parameters_of(cls) if unexpected or missing else set()
    lacking = re.findall(r"'(\w+)'", missing[1]) if missing else []
    if not known.issuperset(lacking) or (unexpected and unexpected[1] not in args):
        return ""  # raised by what it calls in turn
    if odd := [name for name in args if name not in known] if known else []:
        return "; ".join(f"has no argument {name!r}{did_you_mean(name, known - args.keys())}" for name in odd)
    return f"needs {' and '.join(map(repr, lacking))}" if lacking else ""


def _parameters_of(cls: Callable[..., Any]) -> set[str]:
    """Return the names that a class or function takes, and those that it hands on to its bases."""
    bases = (*getattr(cls, "__mro__", ()), *getattr(cls, "takes_also", ()))
    makers = [vars(base)["__init__"] for base in bases if "__init__" in vars(base)]
    parameters = [each for maker in makers or [cls] for each in signature(maker).parameters.values()]
    return {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)} - {"self"}


def _is_built_in(registry: Any, cls: object, name: str) -> bool:
    """Whether a root has what torchinit or mmengine itself registers under a name, and not what a user does."""
    comes_with = str(getattr(cls, "__module__", "")).partition(".")[0] in ("torchinit", "mmengine")
    return registry.parent is None and comes_with and getattr(cls, "__name__", "") in (name, f"{name}Init")


def _name_of(cls: Callable[..., Any]) -> str:
    return getattr(cls, "__name__", str(cls))


# --- mmengine beside torchinit ---------------------------------------------------------------------------------


def default_scope() -> str:
    """The scope that mmengine, where it is in use, asks first."""
    registries = sys.modules.get("mmengine.registry")
    current = None if registries is None else registries.DefaultScope.get_current_instance()
    return "" if current is None else str(current.scope_name)


WEIGHT_INITIALIZERS = Registry(
    "weight initializer",
    scope="torchinit",
    aliases=("mmengine",),
    elsewhere=lambda: getattr(sys.modules.get("mmengine.registry"), "WEIGHT_INITIALIZERS", None),
    near=lambda name, known: hint(name, [*known, *INITIALIZERS]),
)
"""The initializers that an ``init_cfg`` can name. Register your own: ``@WEIGHT_INITIALIZERS.register_module()``."""

MODEL_WRAPPERS = Registry("model wrapper", scope="torchinit", aliases=("mmengine",))
"""The classes of wrappers; a package's own are known once they are registered here."""

MODEL_WRAPPERS.register_module(module=nn.DataParallel)
MODEL_WRAPPERS.register_module(module=nn.parallel.DistributedDataParallel)


def bridge() -> None:
    """Register torchinit's initializers with mmengine, under the names that are free there.

    The other way needs no call: where mmengine is imported, an ``init_cfg`` finds what is registered with it
    and with the packages built on it. Calling it twice does no harm. Raises ImportError where mmengine is
    not installed.
    """
    from mmengine.registry import WEIGHT_INITIALIZERS as THEIRS

    for name, initializer in WEIGHT_INITIALIZERS.module_dict.items():
        if THEIRS.get(name) is None:
            THEIRS.register_module(name=name, module=initializer)


def is_model_wrapper(model: nn.Module, registry: Registry = MODEL_WRAPPERS) -> bool:
    """Whether the model is a wrapper of another: of a class registered in ``registry`` or below it.

    Where mmengine is imported, its wrappers are known, too.

    >>> is_model_wrapper(nn.DataParallel(nn.Linear(2, 2))), is_model_wrapper(nn.Linear(2, 2))
    (True, False)
    """
    if isinstance(model, tuple(registry.module_dict.values())):  # type: ignore[arg-type]  # they are classes
        return True
    theirs = getattr(sys.modules.get("mmengine.model.wrappers.utils"), "is_model_wrapper", None)
    # Where torchinit stands in for mmengine's own function, that is this one.
    if theirs is not None and theirs is not is_model_wrapper and registry is MODEL_WRAPPERS and theirs(model):
        return True
    return any(is_model_wrapper(model, child) for child in registry.children.values())


def is_loaded_through(model: nn.Module) -> bool:
    """Whether a checkpoint is loaded into what the model wraps: wrappers, and MMEngine's test-time augmentation."""
    return is_model_wrapper(model) or isinstance(model, getattr(sys.modules.get("mmengine.model"), "BaseTTAModel", ()))
