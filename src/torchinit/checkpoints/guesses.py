"""Guesses: a prefix or renames under which a file's keys would be a model's names, each proven on the whole file."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import count, takewhile
from typing import Final, TypeAlias, TypeVar

import torchinit._limits as limits
from torchinit.checkpoints.adapters.tensors import Size
from torchinit.checkpoints.key_mapping import KeyMap, Renames, unwrapped
from torchinit.errors import CheckpointError, ConfigError
from torchinit.initializers.load_report import Guess
from torchinit.rules.regex import substitute

Shapes: TypeAlias = Mapping[str, Size]
Parts: TypeAlias = tuple[str, ...]

_Name = TypeVar("_Name")

_DEPTH: Final = 4
_SAMPLE: Final = 256
_MANY: Final = 32
_BEST: Final = 4
_OLD_NAMES: Final[Renames] = (("[.]gamma$", ".weight"), ("[.]beta$", ".bias"))
"""The names of a LayerNorm's parameters in BERT's first checkpoints."""


def guess(wanted: Shapes, keys: Shapes, matching: int) -> Guess | None:
    """The best guess for a model's names among a file's keys, if it finds more than ``matching`` tensors.

    Each candidate is tried on all of the file; the one that counts most is taken, the simpler one of equals. Others
    that find as many, of other keys, are its rivals. A rename must find more than half of what there is to find. A
    prefix that finds next to nothing is dropped: any two models have a bias of one length somewhere.
    """
    likely = likely_guesses(wanted, keys, matching)
    return replace(likely[0], rivals=tuple(rival.arguments for rival in likely[1:])) if likely else None


def likely_guesses(wanted: Shapes, keys: Shapes, matching: int) -> list[Guess]:
    """The guesses that find most, the simplest one for each set of keys; none where they are not likely."""
    keys = {key: shape for key, shape in keys.items() if len(key) <= limits.NAME_LENGTH}  # no rename takes longer ones
    proven = [_proven(keymap, wanted, keys) for keymap in _by_start(wanted, keys)]
    best = max(proven, key=lambda proof: proof.count)
    if best.count < len(wanted):
        start = best.keymap if 2 * best.count > min(len(wanted), len(keys)) else KeyMap()
        proven += [_proven(keymap, wanted, keys) for keymap in _by_edits(start, wanted, keys)]
    most, least = max(proof.count for proof in proven), min(len(wanted), len(keys))
    likely = _simplest(sorted(proven, key=lambda proof: bool(proof.keymap.prefix)), most) if most > matching else []
    likely = [keymap for keymap in likely if 2 * most > least or (20 * most >= least and not keymap.rename)]
    return [Guess(keymap.prefix, keymap.rename, most, len(wanted)) for keymap in likely]


@dataclass(frozen=True, slots=True)
class _Proof:
    """The names and keys that a key map brings together, in shape too; ``count`` is less by the names that clash."""

    keymap: KeyMap
    found: frozenset[tuple[str, str]]
    count: int


def _proven(keymap: KeyMap, wanted: Shapes, keys: Shapes) -> _Proof:
    try:
        names = keymap.apply(keys)
    except CheckpointError:  # a name became too long
        return _Proof(keymap, frozenset(), 0)
    found = frozenset(pair for pair in names.key_of.items() if wanted.get(pair[0]) == keys[pair[1]])
    return _Proof(keymap, found, len(found) - sum(name in wanted for name in names.clashes))


def _simplest(proofs: Iterable[_Proof], most: int) -> list[KeyMap]:
    """The key map with the fewest renames for each set of keys, of those that find so many."""
    simplest: dict[frozenset[tuple[str, str]], KeyMap] = {}
    for proof in sorted(proofs, key=lambda proof: len(proof.keymap.rename)):
        if proof.count == most:
            simplest.setdefault(proof.found, proof.keymap)
    return [*simplest.values()]


# --- beginnings ------------------------------------------------------------------------------------------------------


def _by_start(wanted: Shapes, keys: Shapes) -> Iterator[KeyMap]:
    """The key maps that exchange beginnings, the simpler ones first."""
    has_old_names = any(key.endswith((".gamma", ".beta")) for key in keys)
    maps = dict.fromkeys(keymap for pair in _starts(wanted, keys) for keymap in _keymaps(*pair))
    for keymap in sorted(maps, key=lambda keymap: (len(keymap.rename), bool(keymap.prefix))):
        yield keymap
        if has_old_names:
            yield replace(keymap, rename=(*keymap.rename, *_OLD_NAMES))


def _starts(wanted: Shapes, keys: Shapes) -> Iterator[tuple[str, str]]:
    """The beginnings of keys that seem to stand for beginnings of names, those with the most votes first."""
    # A name votes for each pair of beginnings with which a key of its shape has the same rest: "net.fc.weight" in the
    # file and "head.fc.weight" in the model for ("net.", "head."), and for ("net.fc.", "head.fc."). Every pair of a
    # name and a key would be quadratic, so keys are looked up by rest and shape. Two bounds keep a mixture of experts
    # from the same: its thousands of names end alike, so a sample of names votes, and of keys with one rest and shape
    # the first few count. It can fail where the sample misses the one part that has moved; the rest still matches.
    # Pairs with as many votes as the first are all tried: they are the rivals, of which each takes a part of the file.
    yield "", ""
    names = _sample(wanted)
    cuts = {name: [*splits(name)] for name in names}
    rests = {rest for pairs in cuts.values() for _, rest in pairs}
    holders: dict[tuple[str, Size], list[str]] = defaultdict(list)
    for key, shape in keys.items():
        for start, rest in splits(unwrapped(key)):
            if rest in rests and len(holders[rest, shape]) < _MANY:
                holders[rest, shape].append(start)
    votes = Counter((old, new) for name in names for new, rest in cuts[name] for old in holders[rest, wanted[name]])
    ranked = sorted(votes.items(), key=lambda item: (-item[1], item[0][0].count(".") + 2 * item[0][1].count(".")))
    tied = sum(count == ranked[0][1] and 20 * count >= len(names) for _, count in ranked)
    yield from (pair for pair, _ in ranked[: max(_BEST, min(tied, _MANY))])


def _sample(names: Collection[_Name]) -> list[_Name]:
    return [*names][:: max(1, len(names) // _SAMPLE)]


def _keymaps(old: str, new: str) -> Iterable[KeyMap]:
    """The key maps that put one beginning in place of another; only a prefix leaves the other keys out."""
    if old == new:
        return [KeyMap()]
    try:
        renamed = KeyMap(rename=((beginning(old), new),))
    except ConfigError:  # a key with brackets in it
        return [] if new else [KeyMap(old)]
    return [renamed] if new else [KeyMap(old), renamed]


def beginning(text: str) -> str:
    """The pattern of names that begin so."""
    return "^" + _literal(text)


def _literal(text: str) -> str:
    """The pattern of a text: TOML and Python agree on brackets, so a backslash is for what cannot stand in them."""
    return re.sub(r"\W", lambda found: f"\\{found[0]}" if found[0] in "[]^\\" else f"[{found[0]}]", text)


def splits(name: str) -> Iterator[tuple[str, str]]:
    """A name cut after none of its parts, after the first, and so on."""
    parts = name.split(".")
    for at in range(min(_DEPTH, len(parts))):
        yield "".join(f"{part}." for part in parts[:at]), ".".join(parts[at:])


# --- parts in the middle ---------------------------------------------------------------------------------------------

_NUMBER: Final = "#"
_WIDEST: Final = 4  # parts that one edit may put in or leave out
_LONGEST: Final = 24
_PATTERNS: Final = 2048
_EDITS: Final = 12
_ROUNDS: Final = 3
_BRANCHES: Final = 8

# Names differ by parts that were put in, left out or exchanged: "q.weight" and "q.base_layer.weight". A name that is
# missing and a key that nobody takes vote for the edit that makes one of the other, where they have one shape and the
# same parts before and behind: the more of these, the better. Blocks are alike, so it is not names that vote but their
# patterns, with a sign for the number of the block; and patterns are looked up by what stands before and behind, which
# is linear in the file. An edit becomes a rename as it is, or next to the parts at which it was seen: what is put in
# needs such a place. One after the other is kept if it finds more, on two keys of each pattern, and the caller proves
# what comes of it on all. It can fail where two edits in one name hide each other and neither is at the beginning of
# all. Shapes do not tell q, k and v apart; where their names do not either, nothing is offered.


@dataclass(frozen=True, slots=True)
class _Group:
    """The names of one pattern, and their shapes."""

    names: list[str]
    shapes: set[Size]


@dataclass(frozen=True, slots=True)
class _Edit:
    """Parts that stand in a key where others stand in a name; at the end of both or before it."""

    old: Parts
    new: Parts
    at_end: bool


_Place: TypeAlias = tuple[Parts, Parts]
"""The parts before an edit and behind it."""


def _by_edits(start: KeyMap, wanted: Shapes, keys: Shapes) -> list[KeyMap]:
    """The key maps that exchange parts anywhere, after one that exchanges beginnings, or none, or what all share."""
    few = {name: keys[name] for group in _patterns(keys).values() for name in (group.names[0], group.names[-1])}
    old, new = (_shared(map(unwrapped, names)) for names in (keys, wanted))
    bases = dict.fromkeys((start, KeyMap(), *(_keymaps(old, new) if old or new else ())))
    best = [_proven(base, wanted, few) for base in bases]
    every = list(best)
    for _ in range(_ROUNDS):
        for at, proof in enumerate([*best]):
            for rename in _edits(proof.keymap, wanted, few):
                maps = (replace(base.keymap, rename=(*base.keymap.rename, rename)) for base in (proof, best[at]))
                alone, joined = (_proven(keymap, wanted, few) for keymap in maps)
                every += [alone, joined]
                if joined.count > best[at].count:
                    best[at] = joined
                elif joined.count < best[at].count and alone.count > proof.count and len(best) < _BRANCHES:
                    best.append(alone)  # of the two only one can be: rivals, each of which goes on by itself
    return _simplest(every, max(proof.count for proof in every))[:_BRANCHES]


def _shared(names: Iterable[str]) -> str:
    """The parts with which all names begin; at least the leaf is left."""
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return "".join(f"{column[0]}." for column in takewhile(lambda column: len({*column}) == 1, columns))


def _edits(base: KeyMap, wanted: Shapes, keys: Shapes) -> list[tuple[str, str]]:
    """The edits that find more after a key map, as renames, those that find most first."""
    names = base.apply(keys)
    taken = {name for name, key in names.key_of.items() if wanted.get(name) == keys[key]}
    missing = _patterns({name: shape for name, shape in wanted.items() if name not in taken})
    spare = _patterns({name: keys[key] for name, key in names.key_of.items() if name not in taken})
    places: dict[_Edit, set[_Place]] = defaultdict(set)
    votes = Counter[_Edit]()
    owners: dict[_Edit, set[str]] = defaultdict(set)
    for pattern, other, (before, behind) in _nearest(missing, spare):
        new, old = (parts[len(before) : len(parts) - len(behind)] for parts in (pattern, other))
        fits = missing[pattern].shapes & spare[other].shapes and _NUMBER not in new
        if fits and (behind or _is_leaf_renamed(old, new)):
            edit = _Edit(old, new, not behind)
            places[edit].add((before, behind))
            votes[edit] += len(spare[other].names)
            owners[edit].update(name.rpartition(".")[0] for name in spare[other].names)
    groups = _patterns({name: keys[key] for name, key in names.key_of.items()})
    now = sum(_fits(group, group.names[-1], wanted) for group in groups.values())
    ways: dict[_Edit, tuple[int, str, str]] = {}
    for edit, _ in votes.most_common(_MANY):
        for way in _renames(edit, places[edit]):
            then = sum(_fits(group, substitute(*way, group.names[-1]), wanted) for group in groups.values())
            ways[edit] = max(ways.get(edit, (0, "", "")), (then - now, *way), key=lambda way: way[0])
    # One layer in place of another may be chance, a pooler for a head: what is exchanged must be so in several layers.
    alone = {edit for edit in ways if len(owners[edit]) < 2 and 2 * ways[edit][0] <= len(keys)}
    chance = {edit for edit in alone if edit.old and edit.new}
    sure = [edit for edit, way in ways.items() if way[0] and edit not in chance and not _is_open(edit, ways)]
    return [ways[edit][1:] for edit in sorted(sure, key=lambda edit: -ways[edit][0])][:_EDITS]


def _is_leaf_renamed(old: Parts, new: Parts) -> bool:
    """Whether one leaf may be another by another name; weight_v is not the weight, nor is a running mean a shift."""
    if len(old) != 1 or len(new) != 1 or old[0] in new[0] or new[0] in old[0]:
        return False
    known = {*old, *new} <= {"weight", "bias"}
    return not known and not any(leaf.startswith(("running_", "original", "num_batches")) for leaf in (*old, *new))


def _is_open(edit: _Edit, ways: Mapping[_Edit, tuple[int, str, str]]) -> bool:
    """Whether several parts may each be any of several others, "q" and "k" for "query" and "key", and no name tells."""
    even = [other for other, way in ways.items() if way[0] == ways[edit][0] and other != edit]
    others = [other for other in even if other.old == edit.old and _likeness(other) >= _likeness(edit)]
    return bool(others) and any(other.new == edit.new for other in even)


def _likeness(edit: _Edit) -> float:
    return SequenceMatcher(None, ".".join(edit.old), ".".join(edit.new)).ratio()


def _patterns(names: Shapes) -> dict[Parts, _Group]:
    """Names by their parts, with a sign in place of the first number; of very many patterns the first."""
    groups: dict[Parts, _Group] = {}
    for name, shape in names.items():
        parts = name.split(".")
        at = next((at for at, part in enumerate(parts) if part.isdecimal()), len(parts))
        pattern = (*parts[:at], *[_NUMBER] * (at < len(parts)), *parts[at + 1 :])
        if len(pattern) <= _LONGEST and (pattern in groups or len(groups) < _PATTERNS):
            group = groups.setdefault(pattern, _Group([], set()))
            group.names.append(name)
            group.shapes.add(shape)
    return groups


def _nearest(missing: Collection[Parts], spare: Iterable[Parts]) -> Iterator[tuple[Parts, Parts, _Place]]:
    """The patterns of keys that have most in common with one of a name, before and behind, and what that is."""
    frames = {pattern: [*_frames(pattern)] for pattern in _sample(missing)}
    known = {frame for every in frames.values() for frame in every}
    holders: dict[_Place, list[Parts]] = defaultdict(list)
    for other in spare:
        for frame in known.intersection(_frames(other)):
            holders[frame].append(other)
    for pattern, every in frames.items():
        nearest = max((sum(map(len, frame)) for frame in every if frame in holders), default=0)
        for frame in every:
            if nearest and sum(map(len, frame)) == nearest:
                yield from ((pattern, other, frame) for other in holders.get(frame, ())[:_MANY])


def _frames(pattern: Parts) -> Iterator[_Place]:
    """What stands before and behind a few parts of a pattern, or none."""
    for at in range(len(pattern) + 1):
        for end in range(at, min(at + _WIDEST, len(pattern)) + 1):
            yield pattern[:at], pattern[end:]


def _fits(group: _Group, name: str, wanted: Shapes) -> int:
    """The number of keys of a group that are sites if one of them, called so, is."""
    return len(group.names) * (wanted.get(name) in group.shapes)


def _renames(edit: _Edit, places: Collection[_Place]) -> Iterator[tuple[str, str]]:
    """The ways to write an edit as a rename: anywhere, and next to the parts at which it was seen."""
    befores, behinds = ([*map(_by_number, ends)] for ends in zip(*places, strict=True))
    for left, right in ((False, False), (False, True), (True, False), (True, True)):
        if not (edit.old or left or right) or (left and () in befores) or (edit.at_end and right):
            continue
        pieces = [_edge({len(parts) - left for parts in befores}, "^")]
        if left:
            pieces += [_either({parts[-1] for parts in befores}), ("[.]", ".")]
        pieces += [(_one(part) + "[.]", "") for part in edit.old] + [("", f"{part}.") for part in edit.new]
        if right:
            pieces += [_either({parts[0] for parts in behinds}), _edge({len(parts) - 1 for parts in behinds}, "$")]
        pattern, new = _written(pieces)
        yield (f"{pattern.removesuffix('[.]')}$", new.removesuffix(".")) if edit.at_end else (pattern, new)


def _by_number(parts: Parts) -> Parts:
    return tuple(_NUMBER if part.isdecimal() else part for part in parts)


def _edge(lengths: set[int], mark: str) -> tuple[str, str | None]:
    """What comes before the first part, or after the last: where there is nothing more, a dot, or either."""
    if lengths == {0}:
        return mark, ""
    return (f"({mark}|[.])", None) if 0 in lengths else ("[.]", ".")


def _either(parts: set[str]) -> tuple[str, str | None]:
    """A part that stays as it is, one of several."""
    if len(parts) == 1 and _NUMBER not in parts:
        return _one(min(parts)), min(parts)
    return f"({'|'.join(map(_one, sorted(parts)))})", None


def _one(part: str) -> str:
    return "[0-9]+" if part == _NUMBER else _literal(part)


def _written(pieces: Sequence[tuple[str, str | None]]) -> tuple[str, str]:
    """A pattern and its replacement, in which the pieces without a text of their own are put in again by number."""
    numbers = count(1)
    texts = (f"\\g<{next(numbers)}>" if text is None else text.replace("\\", r"\\") for _, text in pieces)
    new = re.sub(r"\\g<(\d+)>(?!\d)", r"\\\1", "".join(texts))
    return "".join(pattern for pattern, _ in pieces), new
