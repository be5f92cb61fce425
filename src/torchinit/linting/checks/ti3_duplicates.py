"""TI3: values that are equal where chance would never make them so, and units without any."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from torchinit._text import abbreviate, count
from torchinit.initializers.matrices import dirac_ones
from torchinit.initializers.statistics import is_shuffled
from torchinit.linting.registry import Hit, check
from torchinit.linting.target import LintedTensor, LintTarget, is_pair_to_tie


@check("TI301", "error", "values", "draw each layer anew: a copy of a layer, or one seed for all, made them equal")
def same_in_layers(target: LintTarget) -> Iterator[Hit]:
    """Parameters of different layers that hold the same drawn values.

    ``copy.deepcopy`` of an initialized layer makes them (``nn.TransformerEncoder`` clones its layer), or a
    generator that is seeded anew for each. Layers that start equal get different gradients only from their inputs.
    Decided bit by bit among tensors of one shape whose 20 or more values come in no order (turning points, six
    standard errors): chance does not make two of those. An error between the blocks of one stack and the layers of
    one module, elsewhere a warning: the teacher of a student starts as its copy. Loaded values are left out.
    """
    leaves: dict[tuple[str, ...], list[str]] = defaultdict(list)
    alike: dict[tuple[str, ...], bool] = {}
    for twins in target.twins:
        if not is_pair_to_tie(twins):
            owners, leaf = _split([twin.name for twin in twins])
            leaves[owners].append(leaf)
            blocks = {twin.site.block and twin.site.block[0] for twin in twins}
            alike[owners] = _are_siblings(owners, leaf) or len(blocks) == len(twins)
    for owners, same in leaves.items():
        text = f"holds the same drawn values as {abbreviate(owners[1:])}: {abbreviate(same)}"
        yield Hit(owners[0], text, "error" if alike[owners] else "warning")


def _are_siblings(owners: Sequence[str], leaf: str) -> bool:
    """Whether they stand side by side in one module: numbered, or as layers that hold the parameter themselves."""
    parents = {owner.rpartition(".")[0] for owner in owners}
    numbered = all(owner.rpartition(".")[2].isdigit() for owner in owners)
    return len(parents) == 1 and (numbered or "." not in leaf)


def _split(names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The names without the parts that all of them end with, and those parts."""
    ends = zip(*(name.split(".")[:0:-1] for name in names), strict=False)  # the last parts come first
    leaf = ".".join([parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, ends)][::-1])
    return tuple(name.removesuffix(f".{leaf}") if leaf else name for name in names), leaf or names[0]


@check("TI302", "error", "values", "draw the whole tensor at once, or each part under a name of its own")
def same_in_blocks(target: LintTarget) -> Iterator[Hit]:
    """Blocks, or single rows, of one tensor that hold the same drawn values.

    The q, k and v of a fused weight, the experts of a stack or the shards of ranks that all draw from one seed come
    out so; units that start equal stay equal. Decided by a digest of every row and every column; the block's values
    must come in no order and hold so many digits that chance makes no two alike (binary digits of a row > 2·log2(n)
    + 30). Blocks that fill the whole tensor are an error, some equal rows a warning: sub-pixel convolutions start
    so on purpose (ICNR). Loaded values are left out.
    """
    for linted in target.drawn:
        if linted.is_drawn and len(linted.site.shape) > 1:
            yield from _repeats(linted, 0, "row", linted.statistics.rows)
            yield from _repeats(linted, 1, "column", linted.statistics.columns)


def _repeats(linted: LintedTensor, axis: int, noun: str, digests: Tensor) -> Iterator[Hit]:
    # The first row that has an equal one, and the next equal to it, give the length of the block between them; the
    # whole tensor is made of such blocks if its digests, shifted by that length, are the same. A block that does not
    # begin at the first repeated row, or blocks that are mixed with others, are told of as single rows, a warning.
    number = len(digests)
    kinds, which, counts = torch.unique(digests, return_inverse=True, return_counts=True)
    repeated = (counts[which] > 1) & (digests != 0)
    if linted.values is None or not bool(repeated.any()):
        return
    first = int(repeated.nonzero()[0])
    second = int((which == which[first]).nonzero()[1])
    step = second - first
    block = linted.values.narrow(axis, first, step)
    digits = block.numel() // step * (-math.log2(torch.finfo(block.dtype).eps) if block.is_floating_point() else 23)
    if not is_shuffled(block.movedim(axis, 0)) or digits <= 2 * math.log2(number) + 30:
        return
    if number % step == 0 and torch.equal(digests[:-step], digests[step:]):
        yield Hit(linted.name, f"the {number} {noun}s are {number // step} equal blocks of {step}")
    else:
        copies = int(repeated.sum()) - len(kinds[counts > 1])
        yield Hit(linted.name, f"{count(copies, noun)} of {number} repeat others: {second} is {first}", "warning")


@check("TI303", "warning", "values", "draw them, or leave them at zero on purpose")
def dead_rows(target: LintTarget) -> Iterator[Hit]:
    """Units of a weight that are zero throughout, while others are not.

    Such a unit gives out its bias alone, and behind a ReLU it may never learn. Units are counted along the output
    axis of the layer, entries of a table along its rows. Left out are padding rows, loaded values, and weights with
    so many zeros that chance makes such rows (n · z^length > 1e-6, for sparse initialization). Of a grouped layer
    whose values are zero and one other, as those of a Dirac kernel, there may be no more such units than outputs that
    have no input of their own in their group.
    """
    for linted in target.drawn:
        stats, site = linted.statistics, linted.site
        if not linted.is_matrix or site.layout is None or not stats.varied:
            continue
        axis = 0 if site.layout.lookup else site.layout.out_axes[0]
        pads = site.zero_row is not None and axis == 0
        if axis > 1 or (pads and not linted.is_complete):
            continue
        dead = (stats.columns if axis else stats.rows) == 0
        if pads:
            dead[site.zero_row] = False
        number, units = int(dead.sum()), len(dead)
        length = stats.numel // units
        share = (stats.zeros - number * length) / max(1, stats.numel - number * length)
        if number and (units * share**length < 1e-6 or number > _most_silent(linted)):
            names = abbreviate([str(at) for at in dead.nonzero().flatten().tolist()])
            yield Hit(linted.name, f"{number} of {count(units, 'unit')} are zero throughout: {names}")


def _most_silent(linted: LintedTensor) -> float:
    """The number of units that pass nothing on where each group of a layer passes on as many inputs as it can."""
    layout, shape, values = linted.site.layout, linted.site.shape, linted.values
    if layout is None or layout.groups == 1 or 0 not in layout.out_axes or values is None or not linted.is_complete:
        return math.inf
    if len(values[values != 0].unique()) > 1:
        return math.inf
    return shape[0] - dirac_ones(shape, layout.groups)
