"""TI3: values that are equal where chance would never make them so, and units without any."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from torchinit._text import count, some
from torchinit.linting.registry import Hit, check
from torchinit.linting.statistics import is_shuffled
from torchinit.linting.target import LintedTensor, LintTarget, Twins, is_pair_to_tie


@check(
    "TI301",
    "same-in-layers",
    "error",
    "values",
    "draw each layer anew: a copy of a layer, or one seed for all, made them equal",
)
def same_in_layers(target: LintTarget) -> Iterator[Hit]:
    """Parameters of different layers that hold the same drawn values.

    ``copy.deepcopy`` of an initialized layer makes them (``nn.TransformerEncoder`` clones its layer), or a
    generator that is seeded anew for each. Layers that start equal get different gradients only from their inputs.
    Decided bit by bit among tensors of one shape whose 20 or more values come in no order (turning points, six
    standard errors): chance does not make two of those. Between the blocks of one stack and between the layers of
    one module it is an error. Elsewhere it is a warning: the teacher of a student starts as its copy. Loaded values
    are left out.
    """
    leaves: dict[tuple[str, ...], list[str]] = defaultdict(list)
    alike: dict[tuple[str, ...], bool] = {}
    for twins in target.twins:
        if not is_pair_to_tie(twins):
            owners, leaf = _split([twin.name for twin in twins])
            leaves[owners].append(leaf)
            alike[owners] = _are_siblings(owners, leaf) or _are_blocks(twins)
    for owners, same in leaves.items():
        text = f"holds the same drawn values as {some(owners[1:])}: {some(same)}"
        yield Hit(owners[0], text, "error" if alike[owners] else "warning")


def _are_siblings(owners: Sequence[str], leaf: str) -> bool:
    """Whether they stand side by side in one module: numbered, or as layers that hold the parameter themselves."""
    parents = {owner.rpartition(".")[0] for owner in owners}
    numbered = all(owner.rpartition(".")[2].isdigit() for owner in owners)
    return len(parents) == 1 and (numbered or "." not in leaf)


def _are_blocks(twins: Twins) -> bool:
    return len({twin.site.block and twin.site.block[0] for twin in twins}) == len(twins)


def _split(names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The names without the parts that all of them end with, and those parts."""
    paths = [name.split(".") for name in names]
    shared = 0
    while shared < min(map(len, paths)) - 1 and len({path[-1 - shared] for path in paths}) == 1:
        shared += 1
    owners = tuple(".".join(path[: len(path) - shared]) for path in paths)
    return owners, ".".join(paths[0][len(paths[0]) - shared :]) or names[0]


@check(
    "TI302", "same-in-blocks", "error", "values", "draw the whole tensor at once, or each part under a name of its own"
)
def same_in_blocks(target: LintTarget) -> Iterator[Hit]:
    """Blocks, or single rows, of one tensor that hold the same drawn values.

    The q, k and v of a fused weight, the experts of a stack or the shards of ranks that all draw from one seed come
    out so; units that start equal stay equal. Decided by a digest of every row and every column; the block's values
    must come in no order and hold so many digits that chance makes no two alike (binary digits of a row > 2·log2(n)
    + 30). Blocks that fill the whole tensor are an error, some equal rows a warning: sub-pixel convolutions start
    so on purpose (ICNR). Loaded values are left out.
    """
    for linted in target.drawn:
        stats = linted.statistics
        if stats.varied and stats.shuffled and len(linted.site.shape) > 1:
            yield from _repeats(linted, 0, "row", stats.rows, stats.zero_rows)
            yield from _repeats(linted, 1, "column", stats.columns, stats.zero_columns)


def _repeats(linted: LintedTensor, axis: int, noun: str, digests: Tensor, zero: Tensor) -> Iterator[Hit]:
    number = len(digests)
    kinds, which, counts = torch.unique(digests, return_inverse=True, return_counts=True)
    repeated = (counts[which] > 1) & ~zero
    if linted.values is None or not bool(repeated.any()):
        return
    first = int(repeated.nonzero()[0])
    second = int((which == which[first]).nonzero()[1])
    step = second - first
    block = linted.values.narrow(axis, first, step)
    if not is_shuffled(block.movedim(axis, 0)) or not _has_many_digits(block, step, number):
        return
    if number % step == 0 and torch.equal(digests[:-step], digests[step:]):
        yield Hit(linted.name, f"the {number} {noun}s are {number // step} equal blocks of {step}")
    else:
        copies = int(repeated.sum()) - len(kinds[counts > 1])
        yield Hit(linted.name, f"{count(copies, noun)} of {number} repeat others: {second} is {first}", "warning")


def _has_many_digits(block: Tensor, rows: int, number: int) -> bool:
    """Whether a row holds so many binary digits that among this number of rows chance makes no two alike."""
    digits = -math.log2(torch.finfo(block.dtype).eps) if block.is_floating_point() else 23
    return block.numel() // rows * digits > 2 * math.log2(number) + 30


@check("TI303", "dead-rows", "warning", "values", "draw them, or leave them at zero on purpose")
def dead_rows(target: LintTarget) -> Iterator[Hit]:
    """Units of a weight that are zero throughout, while others are not.

    Such a unit gives out its bias alone, and behind a ReLU it may never learn. Units are counted along the output
    axis of the layer, entries of a table along its rows, the padding row left out. Where so many values are zero
    that chance makes such rows (n · z^length > 1e-6, for sparse initialization) nothing is said. Loaded values are
    left out.
    """
    for linted in target.drawn:
        stats, site = linted.statistics, linted.site
        if not linted.is_matrix or site.layout is None or not stats.varied:
            continue
        axis = 0 if site.layout.lookup else site.layout.out_axes[0]
        pads = site.zero_row is not None and axis == 0
        if axis > 1 or (pads and not linted.is_whole):
            continue
        dead = (stats.zero_rows if axis == 0 else stats.zero_columns).clone()
        if pads:
            dead[site.zero_row] = False
        number, units = int(dead.sum()), len(dead)
        length = stats.numel // units
        share = (stats.zeros - number * length) / max(1, stats.numel - number * length)
        if number and units * share**length < 1e-6:
            names = some([str(at) for at in dead.nonzero().flatten().tolist()])
            yield Hit(linted.name, f"{number} of {count(units, 'unit')} are zero throughout: {names}")
