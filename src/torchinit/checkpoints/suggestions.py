"""Suggestions: arguments by which a rule would find more of a model in a file. None is applied unasked."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

from torchinit import _limits as limits
from torchinit._text import abbreviate
from torchinit.checkpoints import adapters
from torchinit.checkpoints.adapters.base import Adapter, Size, find_parts, replace_parts
from torchinit.checkpoints.formats import Checkpoint
from torchinit.checkpoints.key_mapping import KeyMap, NamedKeys, Renames, unwrapped
from torchinit.errors import CheckpointError, ConfigError
from torchinit.initializers.load_report import Guess
from torchinit.model.names import glob_matches
from torchinit.model.sites import Site

Shapes: TypeAlias = Mapping[str, Size]


def advise(
    checkpoint: Checkpoint, names: NamedKeys, used: Collection[str], wanted: Shapes, missing: Sequence[str], found: int
) -> tuple[Guess | None, list[str]]:
    """Suggestions by which more than ``found`` sites would be had, as arguments and in words."""
    # Names are cut at each dot below: a name of a megabyte has half a million cuts.
    short = (key for key in checkpoint if len(key) <= limits.NAME_LENGTH and key.count(".") <= limits.LEVELS)
    shapes = {key: _shape(checkpoint, key) for key in short}
    if best := guess(wanted, shapes, found):
        firsts = {unwrapped(key).partition(".")[0] for key in checkpoint if "." in key}
        shared = len(firsts) == 1 and all("." in key for key in checkpoint)
        return best, [(f"Every key of the file starts with {min(firsts) + '.'!r}; " if shared else "") + str(best)]
    hints = []
    if missing and (differing := by_case(wanted, names.key_of)):
        hints = ["The model has {!r} and the file {!r}, which differ by case: give a rename".format(*differing)]
    elif missing and not found:
        keys = tuple(names.name_of) or checkpoint.keys()
        hints = [f"The file has {abbreviate(keys, 3)}; the model has {abbreviate(missing, 3)}"]
    spare = {name: shapes[key] for name, key in names.key_of.items() if key not in used and key in shapes}
    return None, hints + suggest_for_missing({name: wanted[name] for name in missing}, spare, names.key_of)


def _shape(checkpoint: Checkpoint, key: str) -> Size:
    try:
        return checkpoint.info(key).shape
    except CheckpointError:
        return ()


# --- names: a prefix or renames --------------------------------------------------------------------------------------

_DEPTH: Final = 4
_SAMPLE: Final = 256
_MANY: Final = 32
_BEST: Final = 4
_OLD_NAMES: Final[Renames] = (("[.]gamma$", ".weight"), ("[.]beta$", ".bias"))
"""The names of a LayerNorm's parameters in BERT's first checkpoints."""


def guess(wanted: Shapes, keys: Shapes, matching: int) -> Guess | None:
    """The best guess for a model's names among a file's keys, if it finds more than ``matching`` tensors.

    Each candidate is tried on all of the file; the one that counts most is taken, the shorter one of equals. One
    that finds next to nothing is dropped: any two models have a bias of one length somewhere.
    """
    best = max(_guesses(wanted, keys), key=lambda guess: guess.matching)
    return best if best.matching > matching and 20 * best.matching >= min(len(wanted), len(keys)) else None


def _guesses(wanted: Shapes, keys: Shapes) -> Iterator[Guess]:
    """Every candidate with the number of tensors that it finds, in name and shape; the simpler ones first."""
    has_old_names = any(key.endswith((".gamma", ".beta")) for key in keys)
    maps = dict.fromkeys(keymap for pair in _starts(wanted, keys) for keymap in _keymaps(*pair))
    for keymap in sorted(maps, key=lambda keymap: (len(keymap.rename), bool(keymap.prefix))):
        renames = [keymap.rename, (*keymap.rename, *_OLD_NAMES)][: 1 + has_old_names]
        for candidate in (KeyMap(keymap.prefix, rename) for rename in renames):
            names = candidate.apply(keys)
            found = sum(wanted.get(name) == keys[key] for name, key in names.key_of.items())
            clashing = sum(name in wanted for name in names.clashes)
            yield Guess(candidate.prefix, candidate.rename, found - clashing, len(wanted))


def _starts(wanted: Shapes, keys: Shapes) -> Iterator[tuple[str, str]]:
    """The beginnings of keys that seem to stand for beginnings of names, those with the most votes first."""
    # A name votes for each pair of beginnings with which a key of its shape has the same rest: "net.fc.weight" in the
    # file and "head.fc.weight" in the model for ("net.", "head."), and for ("net.fc.", "head.fc."). Every pair of a
    # name and a key would be quadratic, so keys are looked up by rest and shape. Two bounds keep a mixture of experts
    # from the same: its thousands of names end alike, so a sample of names votes, and of keys with one rest and shape
    # the first few count. It can fail where the sample misses the one part that has moved; the rest still matches.
    yield "", ""
    names = [*wanted][:: max(1, len(wanted) // _SAMPLE)]
    cuts = {name: [*splits(name)] for name in names}
    rests = {rest for pairs in cuts.values() for _, rest in pairs}
    holders: dict[tuple[str, Size], list[str]] = defaultdict(list)
    for key, shape in keys.items():
        for start, rest in splits(unwrapped(key)):
            if rest in rests and len(holders[rest, shape]) < _MANY:
                holders[rest, shape].append(start)
    votes = Counter((old, new) for name in names for new, rest in cuts[name] for old in holders[rest, wanted[name]])
    ranked = sorted(votes.items(), key=lambda item: (-item[1], len(item[0][0]) + 2 * len(item[0][1]), item[0]))
    yield from (pair for pair, _ in ranked[:_BEST])


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
    return "^" + re.sub(r"(\W)", r"[\1]", text)


def splits(name: str) -> Iterator[tuple[str, str]]:
    """A name cut after none of its parts, after the first, and so on."""
    parts = name.split(".")
    for at in range(min(_DEPTH, len(parts))):
        yield "".join(f"{part}." for part in parts[:at]), ".".join(parts[at:])


def by_case(wanted: Iterable[str], keys: Collection[str]) -> tuple[str, str] | None:
    """A name of the model, and a key of the file that differs from it in upper and lower case only."""
    folded = {key.casefold(): key for key in keys}
    missing = (name for name in wanted if name not in keys)
    return next(((name, folded[name.casefold()]) for name in missing if name.casefold() in folded), None)


# --- shapes: adapters for a tensor of another shape ------------------------------------------------------------------

_KEYS: Final = re.compile(r"(.*[._])?w?(k|v|kv|key|value)s?(_proj|_lin|_linear)?[.](weight|bias)")
"""Names of key and value projections, whose heads may be fewer than they were."""


def suggest_for_shape(stored: Size, shape: Size, name: str = "") -> str:
    """The tail of a message on shapes that differ: the adapters that would do, as far as shapes and name can tell."""
    names = [*_for_shape(stored, shape, name)]
    return f"; {' or '.join(filter(None, [', '.join(names[:-1]), names[-1]]))} can adapt it" if names else ""


def _for_shape(stored: Size, shape: Size, name: str) -> Iterator[str]:
    """The adapters as they would be written, without those of their arguments that shapes do not tell."""
    positions = "pos" in name.lower() or (len(stored) == 3 and stored[0] == 1)
    if positions and (prefixed := _first(map(adapters.ResizePositions, (1, 0, *range(2, 10))), stored, shape)):
        yield prefixed
        return
    fewer = stored and shape and 0 < shape[0] < stored[0]
    if fewer and _KEYS.fullmatch(name) and _first([adapters.PoolHeads(stored[0] // shape[0])], stored, shape):
        yield "PoolHeads"
        return
    kinds: Iterable[Iterable[Adapter]] = (
        [adapters.ResizePatches()] if len(shape) > 3 else [],
        [adapters.InputChannels()] if len(shape) > 2 else [],
        [adapters.Inflate()],
        map(adapters.ResizeRelativeBias, (0, 3)),
        map(adapters.Transpose, ((1, 0), (2, 1, 0), (3, 2, 0, 1), (0, 2, 1))),
        [adapters.ResizeVocabulary()],
        [adapters.Rows()],
    )
    yield from filter(None, (_first(kind, stored, shape) for kind in kinds))
    if stored and len(stored) == len(shape) and stored[1:] == shape[1:]:  # other classes, most likely
        yield from ("Labels", "Drop")


def _first(candidates: Iterable[Adapter], stored: Size, shape: Size) -> str:
    """The first that makes the shape, as it is written; empty if none does."""
    fitting = (adapter for adapter in candidates if _makes(adapter, {"": stored}, shape, ""))
    return next((str(adapter).removesuffix("()") for adapter in fitting), "")


def _makes(adapter: Adapter, shapes: Shapes, shape: Size, name: str) -> bool:
    """Whether an adapter makes a site of what there is."""
    try:
        adapter.check([shapes[key] for key in adapter.wants(name)], shape, name)
    except (KeyError, ValueError):
        return False
    return True


# --- divisions: adapters for sites that a file keeps as other tensors ------------------------------------------------

# Weights that are one in some models and several in others, in the order in which they are fused.
_FAMILIES: Final[tuple[tuple[str, ...], ...]] = (
    ("q", "k", "v"), ("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"),
    ("to_q", "to_k", "to_v"), ("wq", "wk", "wv"), ("gate_proj", "up_proj"), ("w1", "w3"),
)  # fmt: skip


def suggest_for_missing(missing: Shapes, spare: Shapes, names: Collection[str] = ()) -> list[str]:
    """The adapters that would make missing sites of spare keys, each with how many; none where several would do.

    ``names`` are all that the file has. What a parametrization of torch computes, but weight norm, no adapter makes.
    """
    divisions, offers, globs, computed = _Divisions(missing, spare), Counter[str](), dict[str, str](), list[str]()
    parametrized = {name.replace("parametrizations.", "").removesuffix(".original0") for name in spare}
    for name, shape in missing.items():
        fitting = {str(adapter) for adapter in divisions.candidates(name, shape) if _makes(adapter, spare, shape, name)}
        if len(fitting) == 1:
            wide = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
            if wide not in globs:
                globs[wide] = "" if any(glob_matches(wide, other) for other in names) else wide
            offers[f"{{{globs[wide] or name!r}: {fitting.pop()}}}"] += 1
        elif name in parametrized:
            computed.append(f"{name} is computed by a parametrization in the file; remove it there before saving")
    return [f"with adapt={offer} {number} more would be found" for offer, number in offers.most_common()] + computed[:1]


class _Divisions:
    """The adapters that names suggest; whether their shapes fit is not looked at."""

    # Each kind of division has an index by what a missing name tells of it, so that thousands of experts are looked
    # through once and not once for each other.

    def __init__(self, missing: Shapes, spare: Shapes) -> None:
        parts = {part for key in spare for part in key.split(".")}
        self.families = [family for family in _FAMILIES if parts.issuperset(family)]
        self.missing, self.series, self.spare_series = missing, _series(missing), _series(spare)
        self.below: dict[tuple[str, Size], list[str]] = defaultdict(list)
        for key, shape in spare.items():
            for at in (-1, *(at for at, letter in enumerate(key) if letter == ".")):
                self.below[key[: max(at, 0)], shape].append(key[at + 1 :])

    def candidates(self, name: str, shape: Size) -> Iterator[Adapter]:
        """Every candidate for a site."""
        path, _, leaf = name.rpartition(".")
        parent, _, owner = path.rpartition(".")
        yield from map(adapters.WeightNorm, (False, True))
        for family in self.families:
            yield adapters.Fuse(owner, family)
            if leaf.startswith("in_proj_"):  # of nn.MultiheadAttention
                yield adapters.Fuse(leaf, tuple(f"{part}.{leaf.removeprefix('in_proj_')}" for part in family))
        for family in (family for family in _FAMILIES if owner in family and shape):
            siblings = (f"{parent}.{part}.{leaf}".removeprefix(".") for part in family)
            rows = [(self.missing.get(sibling) or (0,))[0] for sibling in siblings]
            sizes = None if len({*rows}) == 1 else tuple(row // math.gcd(*rows) for row in rows)
            wholes = (rest.split(".") for rest in self.below.get((parent, (sum(rows), *shape[1:])), ()) if all(rows))
            yield from (adapters.Split(whole[0], family, sizes) for whole in wholes if whole[1:] == [leaf])
        into = f"{owner}.{leaf}"
        for tail, count in self.spare_series.get(path, {}).items():
            yield adapters.Stack(into, f"{owner}.*.{tail}", count)
            for family in (family for family in _FAMILIES if find_parts(tail, family[0])):
                fused = replace_parts(tail, family[0], "fused")
                stack = adapters.Stack(into, f"{owner}.*.{fused}", count)
                yield adapters.Chain((adapters.Fuse("fused", family), stack))
        for start, tail in _numbered(name):
            last = start.rpartition(".")[2]
            # As many as are missing. Of two such stacks none can be told to be the one, so more need not be tried.
            for rest in self.below.get((start, (self.series[start][tail], *shape)), [])[:2]:
                yield adapters.Unstack(f"{last}.{rest}", f"{last}.*.{tail}")


def _series(names: Iterable[str]) -> Mapping[str, Counter[str]]:
    """The ends of names behind a number, each with the count of its numbers, by the beginning before it."""
    series: dict[str, Counter[str]] = defaultdict(Counter)
    for name in names:
        for start, tail in _numbered(name):
            series[start][tail] += 1
    return series


def _numbered(name: str) -> Iterator[tuple[str, str]]:
    """The beginning of a name before each number in it, and the end behind it."""
    parts = name.split(".")
    for at, part in enumerate(parts[:-1]):
        if at and part.isdigit():
            yield ".".join(parts[:at]), ".".join(parts[at + 1 :])


def tied(missing: Sequence[Site], loaded: Sequence[Site]) -> list[str]:
    """A hint on a last layer that the file's model shares with its embedding, and this one does not."""
    hints = []
    for head in (site for site in missing if (site.owner.name, site.leaf) == ("Linear", "weight")):
        tables = [site for site in loaded if site.owner.name == "Embedding" and site.shape == head.shape]
        if len(tables) == 1:
            old, new = tables[0].name.removesuffix("weight"), head.name.removesuffix("weight")
            remedy = f"another rule, for Name({head.name!r}), with rename={[[beginning(old), new]]} takes a copy"
            hints.append(f"{head.name} may be tied to {tables[0].name} in the file's model: {remedy}")
    return hints
