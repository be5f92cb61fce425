"""TI3: values that are equal where chance would never make them so, and units without any."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from operator import mul

import torch
from torch import Tensor

from torchinit._text import abbreviate, count
from torchinit.initializers.matrices import dirac_ones
from torchinit.initializers.statistics import FEWEST, is_shuffled
from torchinit.linting.registry import Hit, check
from torchinit.linting.target import LintedTensor, LintTarget, is_pair_to_tie, split_common_end


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
            owners, leaf = split_common_end([twin.name for twin in twins])
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


@check("TI302", "error", "values", "draw the whole tensor at once, or each part under a name of its own")
def same_in_blocks(target: LintTarget) -> Iterator[Hit]:
    """Blocks, or single rows, of one tensor that hold the same drawn values.

    The q, k and v of a fused weight, the experts of a stack or the shards of ranks that all draw from one seed come
    out so; units that start equal stay equal. Decided by a digest of every row and every column; the block's values
    must come in no order and hold so many digits that chance makes no two alike (binary digits of a row > 2·log2(n)
    + 30). Blocks that fill the whole tensor are an error, some equal rows a warning: sub-pixel convolutions start
    so on purpose (ICNR). Where all units of a layer that learns are one, no order is asked for; other blocks of fewer
    than 20 values, too few for an order, are a warning if no two are of one size. Loaded values are left out.
    """
    for linted in target.drawn:
        if linted.statistics.varied and len(linted.site.shape) > 1:
            yield from _repeats(linted, 0, "row", linted.statistics.rows)
            yield from _repeats(linted, 1, "column", linted.statistics.columns)


def _repeats(linted: LintedTensor, axis: int, noun: str, digests: Tensor) -> Iterator[Hit]:
    # The first row that has an equal one, and the next equal to it, give the length of the block between them; the
    # whole tensor is made of such blocks if its digests, shifted by that length, are the same. A block that does not
    # begin at the first repeated row, or blocks that are mixed with others, are told of as single rows, a warning.
    number = len(digests)
    if len(set(digests.tolist())) == number:
        return
    kinds, which, counts = torch.unique(digests, return_inverse=True, return_counts=True)
    repeated = (counts[which] > 1) & (digests != 0)
    if linted.values is None or not bool(repeated.any()):
        return
    first = int(repeated.nonzero()[0])
    second = int((which == which[first]).nonzero()[1])
    step = second - first
    whole = number % step == 0 and torch.equal(digests[:-step], digests[step:])
    values = torch.view_as_real(linted.values) if linted.values.is_complex() else linted.values
    block = values.narrow(axis, first, step).movedim(axis, 0)
    digits = block.numel() // step * (-math.log2(torch.finfo(block.dtype).eps) if block.is_floating_point() else 23)
    counts_units = linted.mixes and linted.site.layout is not None and axis in linted.site.layout.out_axes
    same_units = whole and step == 1 and counts_units and linted.tensor.requires_grad
    few = whole and _are_few_and_unlike(block)
    if digits <= 2 * math.log2(number) + 30 or not (same_units or few or is_shuffled(block)):
        return
    if whole and step == 1:
        yield Hit(linted.name, f"the {number} {noun}s are all equal", "warning" if few and not same_units else None)
    elif whole:
        text = f"the {number} {noun}s are {number // step} equal blocks of {step}"
        yield Hit(linted.name, text, "warning" if few else None)
    else:
        copies = int(repeated.sum()) - len(kinds[counts > 1])
        yield Hit(linted.name, f"{count(copies, noun)} of {number} repeat others: {second} is {first}", "warning")


def _are_few_and_unlike(block: Tensor) -> bool:
    """Whether there are too few values to ask for their order, all of another size, and neither rising nor falling."""
    flat = block.flatten().double()
    rises = flat.diff() > 0
    unlike = 4 <= len(flat) < FEWEST and len(flat.abs().unique()) == len(flat)
    return unlike and bool(rises.any()) and not bool(rises.all())


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


@check("TI304", "warning", "values", "draw each anew, or keep one tensor and apply the change where it is used")
def same_but_for_a_change(target: LintTarget) -> Iterator[Hit]:
    """Parameters that hold the same drawn values but for a sign, a factor, an order, or where they end.

    One seed for layers of several shapes or scales makes such, and a copy that was transposed or negated. Candidates
    are those whose first values, or whose extremes, are in the same proportion; they are then compared value by value
    within 1e-5 of their spread, in order for nine tenths of the shorter, else sorted. Chance does not make 20 values
    alike. It may be meant: an autoencoder that starts with the transpose of its encoder. Loaded values are left out,
    and so are copies that were scaled in float16 or bfloat16, where each value is rounded anew.
    """
    again = {twin.name for twins in target.twins for twin in twins[1:]}
    drawn = [each for each in target.drawn if each.is_drawn and each.name not in again]
    found: set[str] = set()
    for proportion, compare in ((_of_beginning, _in_order), (_of_extremes, _when_sorted)):
        groups: list[list[tuple[LintedTensor, str]]] = []
        ranked = sorted(((proportion(each), each) for each in drawn), key=lambda pair: pair[0])
        for (before, last), (after, each) in pairwise(ranked):
            goes_on = bool(groups) and groups[-1][-1][0] is last
            first = groups[-1][0][0] if goes_on else last
            alike = before[:-1] == after[:-1] and after[-1] - before[-1] <= 1e-6 * abs(after[-1])
            if alike and not {first.name, each.name} <= found and (change := compare(first, each)):
                if not goes_on:
                    groups.append([(first, "")])
                groups[-1].append((each, change))
        for (first, _), *others in groups:
            names = abbreviate([f"{other.name} {change}" for other, change in others])
            yield Hit(first.name, f"holds the same drawn values as {names}")
            found |= {first.name, *(other.name for other, _ in others)}


def _flat(linted: LintedTensor, most: int = 0, part: tuple[slice, ...] = ()) -> Tensor:
    """The values one after the other, the first ones, a part or all; of complex ones real and imaginary parts."""
    assert linted.values is not None  # what is drawn has values
    values = linted.values[part]
    values = torch.view_as_real(values) if values.is_complex() else values
    if most and values.dim() > 1:
        values = values[: -(-most * len(values) // values.numel())]
    return values.reshape(-1)[: most or None].double()


# Both proportions are free of sign and factor, and continuous, so that drawn tensors that are no copies are apart.
# Rounded, so that the order of copies is that of the model.


def _of_beginning(linted: LintedTensor) -> tuple[float, ...]:
    first = _flat(linted, FEWEST).tolist()
    proportion = abs(sum(map(mul, first, range(1, FEWEST + 1)))) / (math.hypot(*first) or 1.0)
    return (float(f"{proportion:.7g}"),)


def _of_extremes(linted: LintedTensor) -> tuple[float, ...]:
    stats = linted.statistics
    return stats.numel, float(f"{stats.reach / math.hypot(stats.std, stats.mean):.7g}")


def _in_order(first: LintedTensor, second: LintedTensor) -> str:
    """The change from the first to the second, whose values begin alike; empty if they go on otherwise."""
    shapes = first.statistics.numel, second.statistics.numel
    most = max(FEWEST, min(shapes) * 9 // 10)
    pairs = [(_flat(first, most), _flat(second, most))]
    if len(first.here) == len(second.here) and shapes[0] != shapes[1]:
        corner = tuple(slice(min(sizes)) for sizes in zip(first.here, second.here, strict=True))
        pairs.append((_flat(first, part=corner), _flat(second, part=corner)))
    for one, other in pairs:
        at = int(one.abs().argmax())
        what = "" if shapes[0] == shapes[1] else "one is the beginning of the other"
        if change := _change(one, other, float(other[at] / one[at]), what):
            return change
    return ""


def _when_sorted(first: LintedTensor, second: LintedTensor) -> str:
    """The change from the first to the second, which hold the same values in another order; empty if they do not."""
    factor = second.statistics.reach / first.statistics.reach
    one, other = _flat(first).sort().values, _flat(second).sort().values
    return _change(one, other, factor, "in another order") or _change(one.flip(0), other, -factor, "in another order")


def _change(one: Tensor, other: Tensor, factor: float, what: str) -> str:
    """The words for a change, if it is one: a factor that is not 1, and what else."""
    if float((one * factor - other.to(one.device)).abs().max()) > 1e-5 * float(other.std()):
        return ""
    return f"({', '.join(filter(None, ['' if abs(factor - 1) < 1e-6 else f'times {factor:.4g}', what]))})"
