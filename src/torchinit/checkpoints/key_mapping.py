"""Key mapping: the names that the tensors of a checkpoint have in the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torchinit._limits as limits
from torchinit.errors import CheckpointError, ConfigError
from torchinit.model.names import normalize
from torchinit.rules.regex import check_pattern, substitute

_T = TypeVar("_T")

Renames = tuple[tuple[str, str], ...]
"""Regular expressions and what to put in place of what they find, one after the other."""


@dataclass(frozen=True, slots=True)
class NamedKeys:
    """A file's keys with their names in the model, either by the other, and the several keys of a name that clash."""

    key_of: Mapping[str, str]
    name_of: Mapping[str, str]
    clashes: Mapping[str, list[str]]


@dataclass(frozen=True, slots=True)
class KeyMap:
    """From a key of the file to a name of the model: the prefix cut off, the renames in turn, the wrappers dropped.

    ``prefix`` chooses the keys that begin with it. The renames are ``(pattern, replacement)`` as for ``re.sub``,
    so ``("^", "backbone.")`` adds a prefix and ``("^model[.]", "net.")`` replaces one. Each is tried on the key as
    it stands, and if that changes nothing, on the key without what wrappers put in.

    >>> KeyMap("backbone", (("gamma$", "weight"),)).apply(["backbone.module.norm.gamma", "head.weight"]).key_of
    {'norm.weight': 'backbone.module.norm.gamma'}
    """

    prefix: str = ""
    rename: Renames = ()

    def __post_init__(self) -> None:
        wrong = [text for pattern, new in self.rename if (text := _fault(pattern, new))]
        if wrong:
            raise ConfigError(f"rename: {'; '.join(wrong)}")

    @property
    def start(self) -> str:
        """The prefix with the dot behind it."""
        return self.prefix if not self.prefix or self.prefix.endswith(".") else f"{self.prefix}."

    def apply(self, keys: Iterable[str]) -> NamedKeys:
        """The names of all keys. A key that is called so as it stands comes before one that is after unwrapping."""
        names: dict[str, str] = {}
        groups: tuple[dict[str, list[str]], dict[str, list[str]]] = ({}, {})
        for key in keys:
            if named := self._named(key):
                names[key], as_it_stands = named
                groups[as_it_stands].setdefault(names[key], []).append(key)
        keys_of = groups[False] | groups[True]
        clashes = {name: several for name, several in keys_of.items() if len(several) > 1}
        return NamedKeys({name: several[0] for name, several in keys_of.items()}, names, clashes)

    def _named(self, key: str) -> tuple[str, bool] | None:
        """The name of the key, and whether no wrapper had to be dropped for it; None outside of the prefix."""
        # A prefix or pattern may be meant for the key as the file has it, wrappers and all, or for the name without
        # them. The first is tried first, so that what is written exactly means exactly that.
        plain = unwrapped(key)
        start, own = self.start, True
        if not key.startswith(start):
            start, own = unwrapped(f"{start}x")[:-1], False
            if plain == key or not start or not plain.startswith(start):
                return None
            key = plain
        key = key[len(start) :]
        for pattern, new in self.rename:
            if len(key) > limits.NAME_LENGTH:
                raise CheckpointError(f"a name of {len(key):,} letters is too long for a rename: {key[:40]!r}...")
            renamed = substitute(pattern, new, key)
            if renamed == key and (bare := unwrapped(key)) != key:
                renamed = substitute(pattern, new, bare)
                own = own and renamed == bare
            key = renamed
        name = unwrapped(key)
        return name, own and name == key


def unwrapped(key: str) -> str:
    """A key without the parts that wrappers put in; what a parametrization is computed from keeps its name."""
    before, mark, rest = key.partition("parametrizations.")
    return normalize(before + "x")[:-1] + mark + rest if mark else normalize(key)


def revised(state: Mapping[str, _T], keys: Iterable[Sequence[str]]) -> dict[str, _T]:
    """The entries under keys to which MMEngine's ``revise_keys`` have been applied, one after the other.

    Raises TypeError for anything but a list of pairs, ConfigError for a pattern that cannot be compiled.
    """
    renamed, pairs = dict(state), [tuple(pair) if isinstance(pair, (list, tuple)) else (pair,) for pair in keys]
    if odd := [pair for pair in pairs if len(pair) != 2 or not isinstance(pair[0], (str, re.Pattern))]:
        raise TypeError(f"revise_keys is a list of (pattern, replacement), but got {odd[0]!r} in it")
    wrong = [why for old, new in pairs if isinstance(old, str) and isinstance(new, str) and (why := _fault(old, new))]
    if wrong:
        raise ConfigError(f"revise_keys: {'; '.join(wrong)}")
    for pattern, new in pairs:  # what is compiled, or called, comes from a program and not from a stranger
        change = substitute if isinstance(pattern, str) and isinstance(new, str) else re.sub
        renamed = {change(pattern, new, key): value for key, value in renamed.items()}
    return renamed


def _fault(pattern: str, new: str) -> str:
    """The mistake in a rename; empty for a sound one."""
    try:
        check_pattern(pattern, new)
    except (re.error, IndexError) as error:
        return f"{pattern!r} to {new!r} is not a rename: {error}"
    return ""
