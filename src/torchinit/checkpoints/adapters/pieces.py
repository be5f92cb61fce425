"""Pieces: sites that a file keeps in another division, known by names and shapes, and the adapters that would do."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from torchinit.checkpoints.adapters.adapter import Adapter, Size
from torchinit.checkpoints.adapters.chains import Chain
from torchinit.checkpoints.adapters.experts import Stack, Unstack
from torchinit.checkpoints.adapters.fusion import Fuse, Split

_FAMILIES: Final = (
    ("q", "k", "v"),
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
)
"""What is one weight in some models and several in others, in the order in which it is fused."""

Shapes = Mapping[str, Size]
Offer = tuple[str, Adapter]
"""The end of a glob, and the adapter for it."""


def pieces(missing: Shapes, spare: Shapes) -> list[str]:
    """What would make sites that the file lacks of keys of it that no site is called, each with how many.

    Where several things would do for a site nothing is said of it. None of it is done unasked.

    >>> pieces({"h.0.qkv.weight": (6, 2), "h.0.qkv.bias": (6,)}, {f"h.0.{part}.weight": (2, 2) for part in "qkv"})
    ["with adapt={'**.qkv.weight': Fuse('qkv', ('q', 'k', 'v'))} 1 more would be found"]
    """
    below, stacks = _below(spare), _stacks(spare)
    series = Counter(series for name in missing for series in _series(name))
    known = {part for key in spare for part in key.split(".")}
    families = [family for family in _FAMILIES if known.issuperset(family)]
    found: Counter[str] = Counter()
    for name, shape in missing.items():
        offers = (
            *_fused(name, families),
            *_split(name, missing, below),
            *_stacked(name, below),
            *_unstacked(name, shape, stacks, series),
        )
        fitting = {str(adapter): (glob, adapter) for glob, adapter in offers if _makes(adapter, name, shape, spare)}
        if len(fitting) == 1:
            ((told, (glob, _)),) = fitting.items()
            found[f"with adapt={{'**.{glob}': {told}}}"] += 1
    return [f"{how} {number} more would be found" for how, number in found.most_common()]


def _makes(adapter: Adapter, name: str, shape: Size, spare: Shapes) -> bool:
    try:
        return adapter.makes([spare[key] for key in adapter.wants(name)], name) == shape
    except (KeyError, ValueError):
        return False


def _below(keys: Shapes) -> dict[str, list[list[str]]]:
    """For everything that names begin with, what follows it, in parts."""
    found: dict[str, list[list[str]]] = defaultdict(list)
    for key in keys:
        parts = key.split(".")
        for at in range(len(parts)):
            found[".".join(parts[:at])].append(parts[at:])
    return found


def _stacks(keys: Shapes) -> Mapping[tuple[str, Size], list[str]]:
    """For everything that names begin with, and every shape, what follows it."""
    found: dict[tuple[str, Size], list[str]] = defaultdict(list)
    for key, shape in keys.items():
        for at, letter in enumerate(key):
            if letter == ".":
                found[key[:at], shape].append(key[at + 1 :])
    return found


def _fused(name: str, families: Iterable[tuple[str, ...]]) -> Iterator[Offer]:
    *_, owner, leaf = ["", *name.split(".")]
    for family in families:
        yield f"{owner}.{leaf}", Fuse(owner, family)
        if leaf.startswith("in_proj_"):  # of nn.MultiheadAttention
            yield leaf, Fuse(leaf, tuple(f"{part}.{leaf.removeprefix('in_proj_')}" for part in family))


def _split(name: str, missing: Shapes, below: Mapping[str, list[list[str]]]) -> Iterator[Offer]:
    *parents, owner, leaf = ["", *name.split(".")]
    for family in (family for family in _FAMILIES if owner in family):
        shapes = [missing.get(".".join([*parents, part, leaf])[1:], ()) for part in family]
        rows = [shape[0] for shape in shapes if shape]
        if len(rows) == len(family) and all(rows):
            sizes = None if len({*rows}) == 1 else tuple(row // math.gcd(*rows) for row in rows)
            for rest in below.get(".".join(parents)[1:], ()):
                if len(rest) == 2 and rest[1] == leaf:
                    yield f"{owner}.{leaf}", Split(rest[0], family, sizes)


def _stacked(name: str, below: Mapping[str, list[list[str]]]) -> Iterator[Offer]:
    *parents, owner, leaf = ["", *name.split(".")]
    into = f"{owner}.{leaf}"
    held = [rest for rest in below.get(".".join([*parents, owner])[1:], ()) if rest[0].isdigit()]
    count = len({rest[0] for rest in held})
    for parts in (rest[1:] for rest in held if rest[0] == "0"):
        yield into, Stack(into, ".".join([owner, "*", *parts]), count)
        for family in (family for family in _FAMILIES if family[0] in parts):
            fuse = Fuse("fused", family)
            yield into, Chain((fuse, Stack(into, ".".join([owner, "*", *_renamed(parts, family[0])]), count)))


def _renamed(parts: list[str], old: str) -> list[str]:
    return ["fused" if part == old else part for part in parts]


def _unstacked(
    name: str,
    shape: Size,
    stacks: Mapping[tuple[str, Size], list[str]],
    series: Mapping[tuple[str, str], int],
) -> Iterator[Offer]:
    for start, tail in _series(name):
        owner = start.rpartition(".")[2]
        held = stacks.get((start, (series[start, tail], *shape)), [])  # as many as are missing
        for rest in held[:2]:  # of two nobody can tell which is meant, and of more neither
            yield f"{owner}.*.{tail}", Unstack(f"{owner}.{rest}", f"{owner}.*.{tail}")


def _series(name: str) -> Iterator[tuple[str, str]]:
    """What comes before a number in the name, and what after it."""
    parts = name.split(".")
    for at, part in enumerate(parts[:-1]):
        if at and part.isdigit():
            yield ".".join(parts[:at]), ".".join(parts[at + 1 :])
