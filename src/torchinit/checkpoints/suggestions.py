"""Suggestions: arguments by which a rule would find more of a model in a file. None is applied unasked."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

import torchinit._limits as limits
from torchinit._text import abbreviate
from torchinit.checkpoints import adapters
from torchinit.checkpoints.adapters.base import Adapter
from torchinit.checkpoints.adapters.tensors import Size
from torchinit.checkpoints.formats import Checkpoint
from torchinit.checkpoints.guesses import Shapes, beginning, guess
from torchinit.checkpoints.key_mapping import NamedKeys, find_parts, replace_parts, unwrapped
from torchinit.errors import CheckpointError
from torchinit.initializers.load_report import Guess
from torchinit.model.names import glob_matches
from torchinit.model.sites import Site


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


def by_case(wanted: Iterable[str], keys: Collection[str]) -> tuple[str, str] | None:
    """A name of the model, and a key of the file that differs from it in upper and lower case only."""
    folded = {key.casefold(): key for key in keys}
    missing = (name for name in wanted if name not in keys)
    return next(((name, folded[name.casefold()]) for name in missing if name.casefold() in folded), None)


# --- shapes: adapters for a tensor of another shape ------------------------------------------------------------------

_KEYS: Final = re.compile(r"(.*[._])?w?(k|v|kv|key|value)s?(_proj|_lin|_linear)?[.](weight|bias)")
"""Names of key and value projections, whose heads may be fewer than they were."""


_POSITION: Final = re.compile(r"(?<![a-z])pos(?=[^a-z]|$|i|_?emb)")
_PREFIXES: Final = (1, 0, *range(2, 10))


def suggest_for_shape(stored: Size, shape: Size, name: str = "", site: Site | None = None) -> str:
    """The tail of a message on shapes that differ: the adapters that would do, as far as shapes and name can tell.

    With a ``site`` its layer tells, too: only a kernel has input channels, only tables and heads have rows to choose.
    """
    names = [*_for_shape(stored, shape, name, site or Site(name, shape))]
    return f"; {' or '.join(filter(None, [', '.join(names[:-1]), names[-1]]))} can adapt it" if names else ""


def _for_shape(stored: Size, shape: Size, name: str, site: Site) -> Iterator[str]:
    """The adapters as they would be written, without those of their arguments that shapes do not tell."""
    lower, relative = name.lower(), "rel" in name.lower() or "bias_table" in name.lower()
    if (_POSITION.search(lower) and not relative) or (not name and len(stored) == 3 and stored[0] == 1):
        resize = _first(_positions(stored, shape), stored, shape)
        yield from [resize.replace("(site_prefix", "(prefix=1, site_prefix")] if resize else ()
        return
    fewer = stored and shape and 0 < shape[0] < stored[0]
    if fewer and _KEYS.fullmatch(name) and _first([adapters.PoolHeads(stored[0] // shape[0])], stored, shape):
        yield "PoolHeads"
        return
    is_kernel, has_rows = _is_kernel(site), not relative and _has_rows(site)
    channels = site.layout.in_axes[0] if site.layout and site.layout.in_axes else 1
    kinds: Iterable[Iterable[Adapter]] = (
        [adapters.ResizePatches()] if is_kernel and len(shape) > 3 else [],
        [adapters.InputChannels(axis=channels)] if is_kernel else [],
        [adapters.Inflate()] if is_kernel else [],
        map(adapters.ResizeRelativeBias, (0, 3)) if relative or not name else [],
        map(adapters.Transpose, ((1, 0), (2, 1, 0), (3, 2, 0, 1), (0, 2, 1))),
        [adapters.ResizeVocabulary()] if has_rows else [],
        [adapters.Rows()] if has_rows else [],
    )
    yield from filter(None, (_first(kind, stored, shape) for kind in kinds))
    if has_rows and stored and len(stored) == len(shape) and stored[1:] == shape[1:]:  # other classes, most likely
        yield from ("Labels", "Drop")


def _positions(stored: Size, shape: Size) -> Iterator[Adapter]:
    """Resizes of a table of positions: by the special tokens that would leave squares, as many as before if may be."""
    yield from map(adapters.ResizePositions, _PREFIXES)
    moved = [(old, new) for old in _PREFIXES for new in _PREFIXES if len(shape) > 1 < len(stored)]
    for old, new in sorted(moved, key=lambda pair: stored[-2] - pair[0] != shape[-2] - pair[1]):
        yield adapters.ResizePositions(old, site_prefix=new)


def _is_kernel(site: Site) -> bool:
    """Whether a weight is a convolution's, by its layer, or by what it is called where nobody knows the layer."""
    if len(site.shape) < 3 or site.kind == "buffer":
        return False
    if any("Conv" in name for name in (site.owner.name, *site.owner.lineage)):
        return site.leaf == "weight"
    return len(site.shape) > 3 and not site.layout and site.leaf in ("", "weight", "kernel", "filter")


def _has_rows(site: Site) -> bool:
    """Whether the first axis runs over tokens or classes, of which a model may have others, as not that of a norm."""
    if (site.role or "").startswith(("attn.", "mlp.", "expert.", "moe.")):
        return False
    outputs = site.layout is None or site.layout.lookup or 0 in site.layout.out_axes
    return outputs and site.kind == "parameter" and site.neutral is None and "Norm" not in site.owner.name


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
    return [offered(*offer) for offer in offers.most_common()] + computed[:1]


def offered(adapt: str, number: int) -> str:
    """The text that offers adapters, by how many sites would be made by them."""
    return f"with adapt={adapt} {number} more would be found"


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
