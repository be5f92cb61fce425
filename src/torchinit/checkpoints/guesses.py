"""Guesses: the prefix or rename with which more of a model would be found in a checkpoint, each with its proof."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torchinit.checkpoints.keymaps import Renames, unwrapped

Shapes = Mapping[str, tuple[int, ...]]

_DEPTH = 4
_MANY = 64
_OLD_NAMES: Renames = (("[.]gamma$", ".weight"), ("[.]beta$", ".bias"))
"""What BERT's first checkpoints called the parameters of a LayerNorm."""


@dataclass(frozen=True, slots=True)
class Guess:
    """Arguments of a checkpoint rule and how many tensors would match with them, in name and shape.

    >>> print(Guess("prefix='backbone.'", 320, 320))
    with prefix='backbone.' 320 of 320 match
    """

    arguments: str
    matching: int
    wanted: int

    def __str__(self) -> str:
        return f"with {self.arguments} {self.matching} of {self.wanted} match"


def guess(wanted: Shapes, keys: Shapes, matching: int) -> Guess | None:
    """The best guess for a model's names among a file's keys, if it finds more than ``matching`` tensors.

    >>> model, file = {"fc.weight": (2, 2)}, {"net.fc.weight": (2, 2)}
    >>> print(guess(model, file, 0))
    with prefix='net.' 1 of 1 match
    """
    found = [*_prefixes(wanted, keys), *_renames(wanted, keys)]
    best = max(found, key=lambda one: one.matching, default=None)
    return best if best is not None and best.matching > matching else None


def _prefixes(wanted: Shapes, keys: Shapes) -> Iterator[Guess]:
    """A prefix of the file in place of one of the model; each pair is backed by the tensors that agree on it."""
    holders: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        for start, rest in _splits(key):
            holders[rest].append(start)
    votes: Counter[tuple[str, str]] = Counter()
    for name, shape in wanted.items():
        for new, rest in _splits(name):
            for old in holders.get(rest, ())[:_MANY]:
                votes[old, new] += keys[old + rest] == shape
    ranked = sorted(votes.items(), key=lambda item: (-item[1], len(item[0][0]) + 2 * len(item[0][1]), item[0]))
    for (old, new), number in ranked[:1]:
        yield Guess(_arguments(old, new), number, len(wanted))


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """A name cut after none of its parts, after the first, and so on."""
    parts = name.split(".")
    for at in range(min(_DEPTH, len(parts))):
        start = ".".join(parts[:at])
        yield start + "." if start else "", ".".join(parts[at:])


def _arguments(old: str, new: str) -> str:
    if not new:
        return f"prefix={old!r}" if old else "neither prefix nor rename"
    if not old:
        return f"rename=[('^', {new!r})]"
    return f"prefix={old!r} and rename=[('^', {new!r})]"


def _renames(wanted: Shapes, keys: Shapes) -> Iterator[Guess]:
    """Old names in place of new ones."""
    old = {name: name for name in map(unwrapped, keys)}
    for name in old:
        for pattern, new in _OLD_NAMES:
            last = pattern[3:-1]
            if name.endswith(f".{last}"):
                old[name] = name.removesuffix(last) + new[1:]
    if any(name != renamed for name, renamed in old.items()):
        number = sum(renamed in wanted for renamed in old.values())
        yield Guess(f"rename={list(_OLD_NAMES)}", number, len(wanted))


def by_case(wanted: Shapes, keys: Shapes) -> tuple[str, str] | None:
    """A name of the model, and a key of the file that differs from it in upper and lower case only.

    >>> by_case({"Conv.weight": (1,)}, {"conv.weight": (1,)})
    ('Conv.weight', 'conv.weight')
    """
    folded = {key.casefold(): key for key in keys}
    missing = (name for name in wanted if name not in keys)
    return next(((name, folded[name.casefold()]) for name in missing if name.casefold() in folded), None)
