"""Sameness: checks for values that are equal where chance would never make them so."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from torchinit.core.tables import some
from torchinit.errors import count
from torchinit.linting.checks import Evidence, check
from torchinit.linting.facts import is_shuffled
from torchinit.linting.findings import Severity
from torchinit.linting.subjects import Part, Subject

Group = tuple[Part, ...]


def twins(subject: Subject) -> list[Group]:
    """The parameters that hold the same drawn values in memory of their own."""
    found: dict[object, list[Part]] = defaultdict(list)
    for part in subject.drawn:
        if part.facts.varied and part.facts.shuffled:
            found[part.facts.digest, _values(part).shape, part.site.dtype].append(part)
    groups = [tuple(part for part in group if _equal(part, group[0])) for group in found.values()]
    return [group for group in groups if len(group) > 1]


def _equal(one: Part, other: Part) -> bool:
    return one is other or torch.equal(_values(one), _values(other).to(_values(one).device))


def _values(part: Part) -> Tensor:
    return torch.empty(0) if part.values is None else part.values


def is_pair_to_tie(group: Group) -> bool:
    """Whether one of them is a table that is looked up, and another the weight of a layer."""
    lookups = {bool(part.site.layout and part.site.layout.lookup) for part in group}
    return len(lookups) == 2


@check(
    "TI301",
    "same-in-layers",
    "error",
    "values",
    "draw each layer anew: a copy of a layer, or one seed for all, made them equal",
)
def same_in_layers(subject: Subject) -> Iterator[Evidence]:
    """Parameters of different layers that hold the same drawn values.

    ``copy.deepcopy`` of an initialized layer makes them (``nn.TransformerEncoder`` clones its layer), or a
    generator that is seeded anew for each. Layers that start equal get different gradients only from their inputs.
    Decided bit by bit among tensors of one shape whose 20 or more values come in no order (turning points, six
    standard errors): chance does not make two of those. Between the blocks of one stack and between the layers of
    one module it is an error. Elsewhere it is a warning: the teacher of a student starts as its copy. Loaded values
    are left out.
    """
    merged: dict[tuple[str, ...], list[str]] = defaultdict(list)
    like: dict[tuple[str, ...], bool] = {}
    for group in twins(subject):
        if not is_pair_to_tie(group):
            owners, rest = _split([part.name for part in group])
            merged[owners].append(rest)
            like[owners] = _are_siblings(owners, rest) or _are_blocks(group)
    for owners, rests in merged.items():
        severity: Severity = "error" if like[owners] else "warning"
        others = some(owners[1:])
        yield Evidence(owners[0], f"holds the same drawn values as {others}: {some(rests)}", severity=severity)


def _are_siblings(owners: Sequence[str], rest: str) -> bool:
    """Whether they stand side by side in one module: numbered, or as layers that hold the parameter themselves."""
    parents, names = zip(
        *((parent, name) for parent, _, name in (owner.rpartition(".") for owner in owners)), strict=True
    )
    return len(set(parents)) == 1 and (all(name.isdigit() for name in names) or "." not in rest)


def _are_blocks(group: Group) -> bool:
    return len({part.site.block and part.site.block[0] for part in group}) == len(group)


def _split(names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The names without the parts that all of them end with, and those parts."""
    paths = [name.split(".") for name in names]
    shared = 0
    while shared < min(map(len, paths)) - 1 and len({path[-1 - shared] for path in paths}) == 1:
        shared += 1
    cut = [".".join(path[: len(path) - shared]) for path in paths]
    return tuple(cut), ".".join(paths[0][len(paths[0]) - shared :]) or names[0]


@check(
    "TI302", "same-in-blocks", "error", "values", "draw the whole tensor at once, or each part under a name of its own"
)
def same_in_blocks(subject: Subject) -> Iterator[Evidence]:
    """Blocks, or single rows, of one tensor that hold the same drawn values.

    The q, k and v of a fused weight, the experts of a stack or the shards of ranks that all draw from one seed come
    out so; units that start equal stay equal. Decided by a digest of every row and every column; the block's values
    must come in no order and hold so many digits that chance makes no two alike (binary digits of a row > 2·log2(n)
    + 30). Blocks that fill the whole tensor are an error, some equal rows a warning: sub-pixel convolutions start
    so on purpose (ICNR). Loaded values are left out.
    """
    for part in subject.drawn:
        if part.facts.varied and part.facts.shuffled and len(part.site.shape) > 1:
            for axis, digests in enumerate((part.facts.rows, part.facts.columns)):
                yield from _repeats(part, axis, digests)


def _repeats(part: Part, axis: int, digests: Tensor) -> Iterator[Evidence]:
    number = len(digests)
    zero = part.facts.zero_rows if axis == 0 else part.facts.zero_columns
    kinds, which, counts = torch.unique(digests, return_inverse=True, return_counts=True)
    again = (counts[which] > 1) & ~zero
    if not bool(again.any()):
        return
    first = int(again.nonzero()[0])
    second = int((which == which[first]).nonzero()[1])
    step = second - first
    block = _values(part).narrow(axis, first, step)
    if not is_shuffled(block.movedim(axis, 0)) or not _many_digits(block, step, number):
        return
    what = "rows" if axis == 0 else "columns"
    if number % step == 0 and torch.equal(digests[:-step], digests[step:]):
        yield Evidence(part.name, f"the {number} {what} are {number // step} equal blocks of {step}")
    else:
        copies = int(again.sum()) - len(kinds[counts > 1])
        text = f"{count(copies, what[:-1])} of {number} repeat others: {second} is {first}"
        yield Evidence(part.name, text, severity="warning")


def _many_digits(block: Tensor, step: int, number: int) -> bool:
    digits = -math.log2(torch.finfo(block.dtype).eps) if block.is_floating_point() else 23
    return block.numel() // step * digits > 2 * math.log2(number) + 30


@check("TI303", "dead-rows", "warning", "values", "draw them, or leave them at zero on purpose")
def dead_rows(subject: Subject) -> Iterator[Evidence]:
    """Units of a weight that are zero throughout, while others are not.

    Such a unit gives out its bias alone, and behind a ReLU it may never learn. Units are counted along the output
    axis of the layer, entries of a table along its rows, the padding row left out. Where so many values are zero
    that chance makes such rows (n · z^length > 1e-6, for sparse initialization) nothing is said. Loaded values are
    left out.
    """
    for part in subject.drawn:
        facts, layout = part.facts, part.site.layout
        if not part.is_matrix or layout is None or not facts.varied:
            continue
        axis = 0 if layout.lookup else layout.out_axes[0]
        pads = part.site.zero_row is not None and axis == 0
        if axis > 1 or (pads and not part.is_whole):
            continue
        dead = (facts.zero_rows if axis == 0 else facts.zero_columns).clone()
        if pads:
            dead[part.site.zero_row] = False
        number, all_of = int(dead.sum()), len(dead)
        length = facts.numel // all_of
        share = (facts.zeros - number * length) / max(1, facts.numel - number * length)
        if number and all_of * share**length < 1e-6:
            names = some([str(at) for at in dead.nonzero().flatten().tolist()])
            yield Evidence(part.name, f"{number} of {count(all_of, 'unit')} are zero throughout: {names}")
