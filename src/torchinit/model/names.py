"""Names: those of parameters without what wrappers put into them, globs, and models counted from another root."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from reprlib import repr as short
from threading import RLock
from types import TracebackType
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

import torchinit._limits as limits
from torchinit._text import abbreviate, did_you_mean
from torchinit.errors import ConfigError

_T = TypeVar("_T")

WRAPPERS: Final = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""The names that DistributedDataParallel, torch.compile, FSDP and activation checkpointing give to what they wrap."""

_PARAMETRIZED: Final = re.compile(r"(^|\.)parametrizations\.([^.]+)\.original\d*$")


def normalize(name: str) -> str:
    """The name that a parameter has in the bare model, however the model is wrapped now.

    Parts that only a wrapper puts in are dropped wherever they stand, the last part excepted, and a
    parametrized tensor gets back the name it had before.

    >>> normalize("module._orig_mod.layers.0._fsdp_wrapped_module.weight")
    'layers.0.weight'
    >>> normalize("conv.parametrizations.weight.original1")
    'conv.weight'
    """
    if is_bare(name):
        return name
    return without_wrappers(_PARAMETRIZED.sub(r"\1\2", name))


def is_bare(text: str) -> bool:
    """Whether a name, or a text of many, has no part that a wrapper or a parametrization may have put in."""
    return "module." not in text and "_orig_mod." not in text and "parametrizations." not in text


def without_wrappers(name: str) -> str:
    """The name of a parameter without the parts that only a wrapper puts in.

    >>> without_wrappers("_orig_mod.conv.parametrizations.weight.original1")
    'conv.parametrizations.weight.original1'
    """
    *path, leaf = name.split(".")
    return ".".join([*(part for part in path if part not in WRAPPERS), leaf])


def module_name(path: str) -> str:
    """The name that a module has in the bare model; empty for the model itself, also where a wrapper holds it.

    >>> module_name("module._orig_mod.layers.0._fsdp_wrapped_module"), module_name("_orig_mod")
    ('layers.0', '')
    """
    return ".".join(part for part in path.split(".") if part not in WRAPPERS)


def check_glob(glob: object) -> None:
    """Raise TypeError for a glob that is not a ``str``, ValueError for an empty part and for one beyond the limits."""
    if not isinstance(glob, str):
        raise TypeError(f"a name is text, but got {glob!r}")
    if len(glob) > limits.NAME_LENGTH or sum(map(glob.count, "*?")) > limits.WILDCARDS:
        most = f"{limits.NAME_LENGTH} characters and {limits.WILDCARDS} wildcards"
        raise ValueError(f"a name has at most {most}, but got {short(glob)}")
    if "" in glob.split("."):
        raise ValueError(f"a name is dotted text such as 'layers.*.weight', but got {glob!r}")


def check_globs(argument: str, globs: object) -> None:
    """Raise TypeError or ValueError for what is not a list of globs; the text begins with the argument's name."""
    if not isinstance(globs, (list, tuple, Mapping)):
        raise TypeError(f"{argument} must be text or a list, but got {globs!r}")
    for glob in globs:
        try:
            check_glob(glob)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{argument}: {error}") from None


def glob_matches(glob: str, name: str) -> bool:
    """Whether a dotted name fits a glob.

    >>> glob_matches("a.**.b", "a.b"), glob_matches("a.**.b", "a.x.y.b"), glob_matches("conv*", "conv1")
    (True, True, True)
    """
    if "*" not in glob and "?" not in glob:
        return glob == name
    return _pattern(glob).fullmatch(name + ".") is not None


@lru_cache(maxsize=limits.RECIPE_VALUES)  # fewer, and a recipe of as many globs would compile each again for every name
def _pattern(glob: str) -> re.Pattern[str]:
    # Each part is read with the dot behind it, so that "**" is any number of such units; at the end of a
    # glob it is at least one, since 'head.**' is what lies below 'head'.
    is_below = f".{glob}".endswith(".**")
    first, *runs = map(_unit, re.split(r"(?<![^.])\*\*(?:\.|$)", glob.removesuffix("**") if is_below else glob))
    return re.compile(first + _spread(runs, r"(?:[^.]++\.)*") + r"(?:[^.]++\.)+" * is_below)


def _unit(run: str) -> str:
    """The pattern of parts, none of them ``**``, each with the dot behind it; nothing for none."""
    return "".join(_part_pattern(part) for part in run.removesuffix(".").split(".")) if run else ""


def _part_pattern(part: str) -> str:
    first, *others = (re.escape(text).replace(r"\?", "[^.]") for text in part.split("*"))
    return first + _spread(others, "[^.]*") + r"\."


def _spread(texts: list[str], between: str) -> str:
    """The texts in this order with anything between them; the last one ends what is matched."""
    # Of each text but the last the first occurrence will do: what fits behind a later one fits behind that as well. So
    # it is found once, and kept (?>...). Otherwise a name of n letters has n**k ways to fit k wildcards.
    *inner, last = texts or [""]
    kept = [f"(?>{between}?{text})" for text in inner]
    return "".join([*kept, between + last]) if texts else ""


# All names of a model come from its tree of modules, by `named_modules` and its like, so the tree is what is changed.
# For `under` plain modules are put above the model. For `inside` the module of that name stands at the root while the
# context lasts, under a name that only wrappers have and that `normalize` drops; its parent keeps it as an attribute,
# so that code which says `self.net` finds it. To rename sites was tried: there are twenty places that ask a model for
# names, and all of them (keys of draws, own code, ranks, checkpoints, fingerprints) have to say the same. A copy of the
# modules above it would be another module to FSDP2, to what traces code, and to code that sets attributes. One thread
# at a time has a model so, and a callback has it as it was. What can go wrong: other code that runs meanwhile, of a
# module or a function that initializes, or in another thread, and lists the modules of the model or of its parent does
# not see it there.

_LOCKS: Final[WeakKeyDictionary[nn.Module, RLock]] = WeakKeyDictionary()


class Counted:
    """A context in which the names of a model are counted from another root, that it gives.

    First ``inside``, the path of a module, is taken off the names that begin with it; then ``under`` is put before all.
    Whether both are as they should be, :meth:`check` tells.

    >>> with Counted(nn.Sequential(nn.Linear(2, 2)), under="layers.3", inside="0") as root:
    ...     print([name for name, _ in root.named_parameters()], normalize("layers.3.module.bias"))
    ['layers.3.module.weight', 'layers.3.module.bias'] layers.3.bias
    """

    def __init__(self, model: nn.Module, under: str = "", inside: str = "") -> None:
        self.model: nn.Module = model
        self.root: nn.Module = model
        self._path: str = ""
        self._before: list[tuple[nn.Module, dict[str, nn.Module | None]]] = []
        self._error: ConfigError | TypeError | None = None
        try:
            under, inside = _checked("under", under), _checked("inside", inside)
            if inside:
                with _LOCKS.setdefault(model, RLock()):
                    self._path = self._find(inside)
        except (ConfigError, TypeError) as error:
            self._error = error
            return
        for part in reversed(under.split(".") if under else ()):
            outer = nn.Module()
            outer._modules[part] = self.root
            self.root = outer

    def check(self) -> None:
        """Raise what is wrong with ``under`` or ``inside``, where all ranks can hear of it."""
        if self._error is not None:
            raise self._error

    def __enter__(self) -> nn.Module:
        if self._path:
            _LOCKS[self.model].acquire()
            try:
                self._move()
            except BaseException:
                self.__exit__(None, None, None)
                raise
        return self.root

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._path:
            try:
                self._restore()
            finally:
                _LOCKS[self.model].release()

    def outside(self, callback: Callable[[_T], None] | None) -> Callable[[_T], None] | None:
        """The callback, for which the modules are where they belong."""
        if callback is None or not self._path:
            return callback

        def called(value: _T) -> None:
            self._restore()
            try:
                callback(value)
            finally:
                self._move()

        return called

    def _move(self) -> None:
        """Put the module at the root, at its turn there, as draws without a seed go by it."""
        above, _, leaf = self._path.rpartition(".")
        parent, first, children = self.model.get_submodule(above), self._path.partition(".")[0], self.model._modules
        mark = next(name for name in sorted(WRAPPERS, reverse=True) if name not in children)
        self._before = [(each, dict(each._modules)) for each in (parent, self.model)]
        vars(parent)[leaf] = inner = parent._modules.pop(leaf)
        children.clear()
        for name, module in self._before[1][1].items():
            if name == first:
                children[mark] = inner
            if module is not inner:
                children[name] = module

    def _restore(self) -> None:
        """Put all back in its order, with what code has done to the modules meanwhile."""
        leaf = self._path.rpartition(".")[2]
        inner = self._before[0][1][leaf] if self._before else None
        for module, before in self._before:
            if before.get(leaf) is inner:
                vars(module).pop(leaf, None)
            now = {name: child for name, child in module._modules.items() if name in before or child is not inner}
            module._modules.clear()
            module._modules.update(before | now)
        self._before = []

    def _find(self, inside: str) -> str:
        """The path of the module that is meant, wrappers included; ConfigError where it cannot be taken off."""
        model, paths = self.model, dict[str, str]()
        modules = dict(model.named_modules(remove_duplicate=False))
        for path in modules:
            paths.setdefault(module_name(path), path)
        paths.pop("", None)
        named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        names = {normalize(name) for name, _ in named}
        taken = {name for name in names if name.startswith(f"{inside}.")}
        if inside not in paths or not taken:
            what = "holds no parameter or buffer" if inside in paths else f"is not a module of {type(model).__name__}"
            raise ConfigError(f"inside: {inside!r} {what}{did_you_mean(inside, paths)}")
        if both := {name.removeprefix(f"{inside}.") for name in taken} & (names - taken):
            raise ConfigError(f"inside: without {inside!r} two tensors have one name: {abbreviate(sorted(both))}")
        if isinstance(modules[paths[inside].rpartition(".")[0]], torch.jit.ScriptModule):
            raise ConfigError(f"inside: {inside!r} is part of a ScriptModule; initialize the model before torch.jit")
        return paths[inside]


def _checked(argument: str, path: object) -> str:
    """A dotted path, or an empty one, without wrappers' parts; else ConfigError or TypeError."""
    if not isinstance(path, str):
        raise TypeError(f"{argument} must be text such as 'layers.3', but got {path!r}")
    if (path and "" in path.split(".")) or "*" in path or "?" in path:
        raise ConfigError(f"{argument} must be a dotted name such as 'layers.3', but got {path!r}")
    bare = module_name(path)
    if path and not bare:
        raise ConfigError(f"{argument}: {path!r} is the name of a wrapper, which is left out of names anyway")
    return bare
