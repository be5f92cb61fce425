"""Guesses: the prefix or renames with which more of a model would be found in a checkpoint, each with its proof."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping

from torchinit.checkpoints.key_mapping import KeyMap, Renames, unwrapped
from torchinit.core.accounts import Guess
from torchinit.errors import ConfigError

Shapes = Mapping[str, tuple[int, ...]]

_DEPTH = 4
_SAMPLE = 256
_MANY = 32
_BEST = 4
_OLD_NAMES: Renames = (("[.]gamma$", ".weight"), ("[.]beta$", ".bias"))
"""What BERT's first checkpoints called the parameters of a LayerNorm."""


def guess(wanted: Shapes, keys: Shapes, matching: int) -> Guess | None:
    """The best guess for a model's names among a file's keys, if it finds more than ``matching`` tensors.

    Each candidate is tried on all of the file; the one that counts most is taken, the shorter one of equals. One
    that finds next to nothing is none: any two models have a bias of one length somewhere.

    >>> model, file = {"fc.weight": (2, 2)}, {"module.net.fc.weight": (2, 2)}
    >>> print(guess(model, file, 0))
    with prefix='net.' 1 of 1 match
    """
    best = max(_tried(wanted, keys), key=lambda one: one.matching, default=None)
    if best is None or best.matching <= matching or 20 * best.matching < min(len(wanted), len(keys)):
        return None
    return best


def _tried(wanted: Shapes, keys: Shapes) -> Iterator[Guess]:
    """Every candidate with the number of tensors that it finds, in name and shape; the simpler ones first."""
    old = any(key.endswith((".gamma", ".beta")) for key in keys)
    maps = dict.fromkeys(one for old_new in _moves(wanted, keys) for one in _spellings(*old_new))
    for keymap in sorted(maps, key=lambda one: (len(one.rename), bool(one.prefix))):
        yield _counted(keymap, wanted, keys)
        if old:
            yield _counted(KeyMap(keymap.prefix, (*keymap.rename, *_OLD_NAMES)), wanted, keys)


def _counted(keymap: KeyMap, wanted: Shapes, keys: Shapes) -> Guess:
    found = keymap.names(keys)
    number = sum(name in wanted and wanted[name] == keys[key] for name, key in found.keys.items())
    clashing = sum(name in wanted for name in found.clashes)
    return Guess(keymap.prefix, keymap.rename, number - clashing, len(wanted))


def _moves(wanted: Shapes, keys: Shapes) -> Iterator[tuple[str, str]]:
    """The beginnings of keys that seem to stand for beginnings of names, those with the most votes first.

    A name votes for each pair of beginnings with which a key of its shape has the same rest. Of a large model a
    sample votes: experts have thousands of names that end alike.
    """
    yield "", ""
    names = [*wanted][:: max(1, len(wanted) // _SAMPLE)]
    cuts = {name: [*splits(name)] for name in names}
    rests = {rest for pairs in cuts.values() for _, rest in pairs}
    holders: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for key, shape in keys.items():
        for start, rest in splits(unwrapped(key)):
            if rest in rests and len(holders[rest, shape]) < _MANY:
                holders[rest, shape].append(start)
    votes = Counter((old, new) for name in names for new, rest in cuts[name] for old in holders[rest, wanted[name]])
    ranked = sorted(votes.items(), key=lambda item: (-item[1], len(item[0][0]) + 2 * len(item[0][1]), item[0]))
    yield from (pair for pair, _ in ranked[:_BEST])


def _spellings(old: str, new: str) -> Iterable[KeyMap]:
    """The key maps that put one beginning in place of another; only a prefix leaves the other keys out."""
    if old == new:
        return [KeyMap()]
    try:
        renamed = KeyMap(rename=((beginning(old), new),))
    except ConfigError:  # a key with brackets in it
        return [] if new else [KeyMap(old)]
    return [renamed] if new else [KeyMap(old), renamed]


def beginning(text: str) -> str:
    """The pattern of what begins so.

    >>> beginning("net.")
    '^net[.]'
    """
    return "^" + re.sub(r"(\W)", r"[\1]", text)


def splits(name: str) -> Iterator[tuple[str, str]]:
    """A name cut after none of its parts, after the first, and so on.

    >>> [*splits("net.fc.bias")]
    [('', 'net.fc.bias'), ('net.', 'fc.bias'), ('net.fc.', 'bias')]
    """
    parts = name.split(".")
    for at in range(min(_DEPTH, len(parts))):
        start = ".".join(parts[:at])
        yield start + "." if start else "", ".".join(parts[at:])


def by_case(wanted: Iterable[str], keys: Collection[str]) -> tuple[str, str] | None:
    """A name of the model, and a key of the file that differs from it in upper and lower case only.

    >>> by_case({"Conv.weight": (1,)}, {"conv.weight": (1,)})
    ('Conv.weight', 'conv.weight')
    """
    folded = {key.casefold(): key for key in keys}
    missing = (name for name in wanted if name not in keys)
    return next(((name, folded[name.casefold()]) for name in missing if name.casefold() in folded), None)
