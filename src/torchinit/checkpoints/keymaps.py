"""Key maps: what the tensors of a checkpoint are called in the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torchinit.core.names import normalize
from torchinit.errors import ConfigError

Renames = tuple[tuple[str, str], ...]
"""Regular expressions and what to put in place of what they find, one after the other."""


@dataclass(frozen=True, slots=True)
class KeyMap:
    """From a key of the file to a name of the model: the prefix cut off, the renames in turn, the wrappers dropped.

    ``prefix`` chooses the keys that begin with it. The renames are ``(pattern, replacement)`` as for ``re.sub``,
    so ``("^", "backbone.")`` adds a prefix and ``("^model[.]", "net.")`` replaces one.

    >>> KeyMap("backbone", (("gamma$", "weight"),)).name("backbone.module.norm.gamma")
    'norm.weight'
    >>> KeyMap("backbone").name("head.weight") is None
    True
    """

    prefix: str = ""
    rename: Renames = ()

    def __post_init__(self) -> None:
        wrong = [text for pattern, new in self.rename if (text := _fault(pattern, new))]
        if wrong:
            raise ConfigError(f"rename: {wrong[0]}")

    @property
    def start(self) -> str:
        """The prefix with the dot behind it."""
        return self.prefix if not self.prefix or self.prefix.endswith(".") else f"{self.prefix}."

    def name(self, key: str) -> str | None:
        """What the key is called in the model; None where it lies outside of the prefix."""
        return None if (bare := self.bare(key)) is None else unwrapped(bare)

    def bare(self, key: str) -> str | None:
        """The key after prefix and renames, wrappers and all."""
        if not key.startswith(self.start):
            return None
        key = key[len(self.start) :]
        for pattern, new in self.rename:
            key = re.sub(pattern, new, key)
        return key

    def table(self, keys: Iterable[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
        """The file's key for each name, and the names that several keys would have.

        A key that is called so without a wrapper dropped comes before those that are called so after it.
        """
        groups: dict[str, list[str]] = {}
        exact: dict[str, str] = {}
        for key in keys:
            bare = self.bare(key)
            if bare is not None:
                groups.setdefault(unwrapped(bare), []).append(key)
                if bare == unwrapped(bare):
                    exact.setdefault(bare, key)
        clashes = {name: held for name, held in groups.items() if len(held) > 1 and name not in exact}
        clashes |= {name: held for name, held in groups.items() if sum(self.bare(key) == name for key in held) > 1}
        return {name: exact.get(name, held[0]) for name, held in groups.items()}, clashes


def unwrapped(key: str) -> str:
    """A key without the parts that wrappers put in; what a parametrization is computed from keeps its name.

    >>> unwrapped("module._orig_mod.fc.weight"), unwrapped("fc.parametrizations.weight.original0")
    ('fc.weight', 'fc.parametrizations.weight.original0')
    """
    before, mark, rest = key.partition("parametrizations.")
    return normalize(before + "x")[:-1] + mark + rest if mark else normalize(key)


def revised(state: Mapping[str, object], keys: Iterable[tuple[str, str]]) -> dict[str, object]:
    """The entries under keys to which MMEngine's ``revise_keys`` have been applied, one after the other.

    >>> revised({"module.fc.weight": 1}, [("^module[.]", "")])
    {'fc.weight': 1}
    """
    made = dict(state)
    for pattern, new in keys:
        made = {re.sub(pattern, new, key): value for key, value in made.items()}
    return made


def _fault(pattern: str, new: str) -> str:
    """What is wrong with a rename."""
    try:
        re.compile(pattern)
        re.sub(pattern, new, "")
        re.compile(pattern).sub(new, "a.b.c.weight")
    except (re.error, IndexError) as error:
        return f"{pattern!r} to {new!r} is no rename: {error}"
    return ""
