"""Key mapping: the names that tensors of a checkpoint have in the model; the parts of a name; tensors without one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import torchinit._limits as limits
from torchinit._text import count, did_you_mean
from torchinit.checkpoints.formats import Checkpoint
from torchinit.errors import CheckpointError, ConfigError
from torchinit.model.names import normalize
from torchinit.model.sites import Site
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


def pairs(rename: object) -> Renames:
    """Patterns and their replacements. Raises TypeError for anything else."""
    given = [*rename.items()] if isinstance(rename, Mapping) else rename
    if not (isinstance(given, (list, tuple)) and all(map(_is_pair, given))):
        raise TypeError(f"rename is a list of (pattern, replacement), but got {rename!r}")
    return tuple((old, new) for old, new in given)


def _is_pair(item: object) -> bool:
    return isinstance(item, (list, tuple)) and len(item) == 2 and all(isinstance(text, str) for text in item)


def _fault(pattern: str, new: str) -> str:
    """The mistake in a rename; empty for a sound one."""
    try:
        check_pattern(pattern, new)
    except (re.error, IndexError) as error:
        return f"{pattern!r} to {new!r} is not a rename: {error}"
    return ""


# --- dotted parts of a key -------------------------------------------------------------------------------------------


def find_parts(key: str, wanted: str) -> re.Match[str] | None:
    """The last ``wanted`` among the dotted parts of a key: what is before it, it, each number in it, what is behind.

    ``*`` in it stands for one part that is a number.
    """
    run = r"\.".join("([0-9]+)" if part == "*" else re.escape(part) for part in wanted.split("."))
    return re.fullmatch(rf"(.*\.|)({run})(\..*|)", key, re.DOTALL)


def replace_parts(key: str, old: str, new: str) -> str:
    """The key with the last ``old``, one or several whole parts of it, replaced. Raises ValueError for none."""
    before, *_, behind = _found(key, old).groups()
    return f"{before}{new}{behind}"


def numbered(key: str, pattern: str) -> tuple[int, str]:
    """The number at the ``*`` of the pattern, and the parts that it stands for. Raises ValueError for a key without."""
    found = _found(key, pattern)
    return int(found[3]), found[2]


def _found(key: str, wanted: str) -> re.Match[str]:
    found = find_parts(key, wanted)
    if found is None:
        parts, length = key.split("."), len(wanted.split("."))
        runs = [".".join(parts[start : start + length]) for start in range(len(parts) - length + 1)]
        raise ValueError(f"{key!r} has no part {wanted!r}{did_you_mean(wanted, [] if '*' in wanted else runs)}")
    return found


# --- tensors without names -----------------------------------------------------------------------------------------


def is_numbered(checkpoint: Checkpoint) -> bool:
    """Whether the tensors of a checkpoint have no names but their places in a list."""
    return [*checkpoint] == [str(at) for at in range(len(checkpoint))]


def in_order(checkpoint: Checkpoint, known: Sequence[Site]) -> NamedKeys:
    """The names of a list of tensors in a model with these sites, by number and shape of each.

    Raises CheckpointError where the list is neither all parameters, nor those that learn, nor the whole state.
    """
    # No name is there to be checked, so every shape must agree: one layer more or less moves all behind it, and two
    # layers of one shape in another order pass for each other. That their order is the model's is the user's word.
    if not is_numbered(checkpoint):
        raise CheckpointError(f"{checkpoint.name}: its tensors have names, so order='parameters' is not for them")
    shapes = [checkpoint.info(key).shape for key in checkpoint]
    views = _by_registration([view for site in known for view in site.views if view.persistent])
    place = {view.name: at for at, view in enumerate(views)}  # a tied tensor counts where it comes first
    first = {min((view.name for view in site.views), key=lambda name: place.get(name, len(place))) for site in known}
    parameters = [view for view in views if view.kind == "parameter" and view.name in first]
    learning = [site for site in parameters if not site.frozen]
    for sites in (parameters, learning, views):
        if [site.shape for site in sites] == shapes:
            key_of = {site.name: key for site, key in zip(sites, checkpoint, strict=True)}
            return NamedKeys(key_of, {key: name for name, key in key_of.items()}, {})
    lists = f"{count(len(parameters), 'parameter')}, {len(learning)} that learn, and {len(views)} in its state"
    why = f"its {count(len(shapes), 'tensor')} without names are not the model's: it has {lists}"
    if sites := next((sites for sites in (parameters, learning, views) if len(sites) == len(shapes)), []):
        at = next(at for at, site in enumerate(sites) if site.shape != shapes[at])
        why += f"; number {at} has shape {list(shapes[at])}, and {sites[at].name} {list(sites[at].shape)}"
    raise CheckpointError(f"{checkpoint.name}: {why}")


def _by_registration(views: Sequence[Site]) -> list[Site]:
    """The names of tensors in the order of ``model.parameters()``: a module before its children."""
    # They have turns in the order of Module.apply, children first; in both orders siblings come one after the other.
    turns: dict[str, int] = {}
    for view in sorted(views, key=lambda view: view.position):
        for part in accumulate(view.name.split("."), "{}.{}".format):
            turns.setdefault(part, len(turns))

    def turn(view: Site) -> list[tuple[bool, int]]:
        return [(part != view.name, turns[part]) for part in accumulate(view.name.split("."), "{}.{}".format)]

    return sorted(views, key=turn)
