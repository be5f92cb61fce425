"""Growth: which axes of each parameter grow against the base model, and what kind of parameter that makes it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from torchinit._text import did_you_mean, fold_numbers, shape_text
from torchinit.errors import ConfigError
from torchinit.model.layouts import Layout
from torchinit.model.names import glob_matches
from torchinit.model.sites import Site
from torchinit.transfer.base import has_role, is_head, is_matrix, is_table
from torchinit.transfer.table import Growth, ParameterRole

_OTHER: Final = "the base model is of another structure: "
_INNER: Final = ("attn.", "mlp.", "lora.", "ssm.", "expert.", "rnn")
"""Roles of matrices whose results stay inside of the model, whatever axes grow; that of a convolution does not tell."""


class Matched(NamedTuple):
    """A parameter beside the one of the base model that it corresponds to."""

    site: Site
    base: Site

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The sizes of each axis, here and there."""
        return [*zip(self.site.shape, self.base.shape, strict=True)]


@dataclass(frozen=True, slots=True)
class Grown:
    """A parameter with its kind, its growth, and what a reader should know."""

    site: Site
    base: Site
    kind: ParameterRole
    growth: Growth
    notes: tuple[str, ...] = ()


def matched(known: Sequence[Site], base: Mapping[str, Site]) -> list[Matched]:
    """Each parameter with that of the base model; blocks that the base lacks go with its own, in turn.

    Raises ConfigError for the first difference of structure.
    """
    pairs, patterns = [], set()
    for site in known:
        name = _name_in(site, base)
        if name is None:
            raise ConfigError(f"{_OTHER}it has no {site.name!r}{did_you_mean(site.name, base)}")
        other = base[name]
        if len(other.shape) != len(site.shape):
            shapes = f"{shape_text(site.shape)}, and {shape_text(other.shape)} in the base model"
            raise ConfigError(f"{_OTHER}{site.name!r} has shape {shapes}")
        if other.aliases and not site.aliases:
            raise ConfigError(f"{_OTHER}it ties it to another, and this model does not: {site.name!r}")
        if site.aliases and not other.aliases:
            raise ConfigError(f"{_OTHER}it does not tie it to another, as this model does: {site.name!r}")
        pairs.append(Matched(site, other))
        patterns |= {view.name if site.block is None else fold_numbers(view.name) for view in site.views}
    for name, other in base.items():
        if name not in patterns and (other.block is None or fold_numbers(name) not in patterns):
            raise ConfigError(f"{_OTHER}this model has no {name!r}")
    return pairs


def _name_in(site: Site, base: Mapping[str, Site]) -> str | None:
    if site.name in base:
        return site.name
    if site.block is None:
        return None
    # A block that the base lacks goes with one of the base's, in turn: of a base with 4 blocks block 5 goes with block
    # 1. So models whose blocks alternate, local attention and global, meet their like. Only blocks that have a
    # parameter of this name are counted: experts in every other block stay among themselves. The number is looked for
    # from the end of the name, since that of a stage may be the same, and blocks of another stage have other widths. It
    # can fail where the base ends within a period of the blocks: a block of the other kind is found then, which shows
    # only where names or numbers of dimensions differ.
    parts, (index, _) = site.name.split("."), site.block
    for at, part in reversed([*enumerate(parts)]):
        names = (".".join([*parts[:at], str(number), *parts[at + 1 :]]) for number in range(index))
        if part == str(index) and (there := [name for name in names if name in base]):
            return there[index % len(there)]
    return None


def growth_among(
    pairs: Sequence[Matched], fixed: Sequence[str] = (), kinds: Mapping[str, ParameterRole] | None = None
) -> list[Grown]:
    """The kind and the growth of each parameter.

    ``fixed`` are globs of parameters, perhaps with an axis (``"lm_head.weight:0"``), whose other size is no width;
    ``kinds`` says what a parameter is where its layer does not. Raises ConfigError for globs that fit nothing, for axes
    of which one grows and another shrinks, for a growing number of experts, and for a parameter that nobody can tell.
    """
    names = [view.name for pair in pairs for view in pair.site.views]
    check_fit("no parameter fits", [*(glob.partition(":")[0] for glob in fixed), *(kinds or {})], names)
    _check_axes(pairs, fixed)
    vocabulary = {
        (view.shape[0], other.base.shape[0]) for other in pairs for view in other.site.views
        if view.layout and view.layout.lookup and view.shape[0] != other.base.shape[0]
    }  # fmt: skip
    ratios = [_ratios(pair, fixed, vocabulary) for pair in pairs]
    _check_direction(pairs, ratios)
    axes = [
        (each[axis], size) for pair, each in zip(pairs, ratios, strict=True) for axis, size in enumerate(pair.sizes)
    ]
    widest = max(axes, key=lambda axis: abs(math.log(axis[0] or 1)), default=(1.0, (1, 1)))[1]
    grown = []
    for at, (pair, each) in enumerate(zip(pairs, ratios, strict=True)):
        given = next((kind for glob, kind in (kinds or {}).items() if _fits(glob, pair.site)), None)
        r_i, r_o, notes = _sides(pair.site, each, given)
        kind = given or _kind(pair.site, r_i, r_o, each)
        if kind == "output" and given is None and _stays_inside(pair, pairs[at + 1 :], ratios[at + 1 :], widest):
            kind = "hidden"
            inside = (
                "fixed outputs inside of the model: as hidden, its gradient shrinks; keep them a share of the width"
            )
            notes = (*notes, inside)
        growth = Growth(r_i, r_o, 1.0, _depth(pair), *(_fans(one) for one in pair))
        grown.append(Grown(pair.site, pair.base, kind, growth, notes))
    # The gradients of all that lies before the head shrink as its multiplier does, with the width that it reads, and
    # eps has to follow them (`factors_of`). A model with several heads has no one such width: that of the last one
    # counts. Without a head it is the largest growth inside of the model.
    head = max((one.growth.r_i for one in grown if one.kind == "hidden"), default=1.0)
    for one in grown:  # the last of them
        head = one.growth.r_i if one.kind == "output" else one.growth.r_o if one.kind == "tied" else head
    return [replace(one, growth=one.growth._replace(head=head)) for one in grown]


def _fits(glob: str, site: Site) -> bool:
    return any(glob_matches(glob, view.name) for view in site.views)


def check_fit(complaint: str, globs: Iterable[str], names: Sequence[str]) -> None:
    """Raise ConfigError for a glob that fits none of the names; the text begins with the complaint."""
    for glob in globs:
        if not any(glob_matches(glob, name) for name in names):
            raise ConfigError(f"{complaint} {glob!r}{did_you_mean(glob, names)}")


def _check_axes(pairs: Sequence[Matched], fixed: Sequence[str]) -> None:
    for each in fixed:
        glob, colon, axis = each.partition(":")
        most = max(len(pair.site.shape) for pair in pairs if _fits(glob, pair.site))
        if colon and not (axis.isdecimal() and int(axis) < most):
            raise ConfigError(f"fixed={each!r} ends with the number of an axis, of 0 to {most - 1}, but got {axis!r}")


def _ratios(pair: Matched, fixed: Sequence[str], vocabulary: set[tuple[int, int]]) -> tuple[float, ...]:
    """By how much each axis is longer than in the base model; 1 for one that is no width."""
    site, base = pair
    ratios = [size / other if other else 1.0 for size, other in zip(site.shape, base.shape, strict=True)]
    for glob in fixed:
        name, colon, number = glob.partition(":")
        if _fits(name, site):
            ratios = [1.0 if not colon or number == str(at) else ratio for at, ratio in enumerate(ratios)]
    if is_table(site) or (site.shape and is_head(site) and (site.shape[0], base.shape[0]) in vocabulary):
        ratios[0] = 1.0  # a vocabulary is no width, whatever it is padded to
    layout = site.layout
    if layout and layout.batch_axes and len(layout.batch_axes) < len(site.shape):
        for axis in layout.batch_axes:
            if ratios[axis] != 1:
                raise ConfigError(
                    f"{site.name!r} has {site.shape[axis]} experts, and {base.shape[axis]} in the base model: their"
                    " number is no width, since each sees fewer tokens; give both models as many, or name the axis:"
                    f" fixed=['{site.name}:{axis}']"
                )
    return tuple(ratios)


def _check_direction(pairs: Sequence[Matched], ratios: Sequence[tuple[float, ...]]) -> None:
    axes = [(pair, axis, ratio) for pair, each in zip(pairs, ratios, strict=True) for axis, ratio in enumerate(each)]
    larger = next((each for each in axes if each[2] > 1), None)
    smaller = next((each for each in axes if each[2] < 1), None)
    if larger and smaller:
        told = " and ".join(
            f"axis {axis} of {pair.site.name!r} {word} from {pair.base.shape[axis]} to {pair.site.shape[axis]}"
            for word, (pair, axis, _) in (("grows", larger), ("shrinks", smaller))
        )
        remedy = "change all widths of the base model in one direction, or name what is no width in fixed="
        raise ConfigError(f"{told}: {remedy}")


def _sides(site: Site, ratios: Sequence[float], given: ParameterRole | None) -> tuple[float, float, tuple[str, ...]]:
    """The growth of the fan-in and of the fan-out, with what was assumed."""
    layout, total = site.layout, math.prod(ratios, start=1.0)
    notes: tuple[str, ...] = ()
    is_stray = layout is None and sum(size > 1 for size in site.shape) < 2  # a vector with axes of one
    if all(ratio == 1 for ratio in ratios) or not is_matrix(site) or is_stray:
        return 1.0, total, notes
    if layout is None:
        layout, notes = _assumed(site, ratios, given)
    # What is neither an output nor counts matrices belongs to the fan-in, and so do the taps of a kernel: a larger
    # kernel adds up more numbers, as a wider layer does.
    r_o = math.prod(ratios[axis] for axis in layout.out_axes)
    r_i = total / r_o / math.prod(ratios[axis] for axis in layout.batch_axes)
    if layout.groups > 1 and layout.groups == site.shape[0]:  # depthwise: each channel has a kernel of its own
        return 1.0, ratios[0], notes
    return r_i, r_o, notes


def _assumed(site: Site, ratios: Sequence[float], given: ParameterRole | None) -> tuple[Layout, tuple[str, ...]]:
    """The layout of a weight that no layer describes."""
    growing = [axis for axis, ratio in enumerate(ratios) if ratio != 1]
    if given == "output":
        return Layout((growing[0],), (1 - growing[0] if growing[0] < 2 else 0,)), ()
    if given in ("input", "vector") or has_role(site, "embed."):
        return Layout(tuple(axis for axis in range(len(ratios)) if axis not in growing), tuple(growing)), ()
    if site.leaf == "weight" or given == "hidden":
        return Layout(), ("taken as (outputs, inputs): no layer describes it",)
    if len(growing) > 1 and len({ratios[axis] for axis in growing}) == 1 and len(ratios) == 2:
        return Layout(), ("taken as hidden: both of its axes grow alike",)
    raise ConfigError(
        f"nobody tells which axis of {site.name!r} of shape {shape_text(site.shape)} runs over inputs; say what it is,"
        f" as in kinds={{'{site.name}': 'input'}}, or register_layout for its layer"
    )


def _kind(site: Site, r_i: float, r_o: float, ratios: Sequence[float]) -> ParameterRole:
    lookups = [bool(view.layout and view.layout.lookup) for view in site.views]
    if any(lookups) and not all(lookups):
        return "tied"
    is_bias = site.parameter_kind == "bias"
    if all(ratio == 1 for ratio in ratios):  # a head is one even where nothing grows, so that it can start at zero
        return "output" if is_head(site) and len(site.shape) > 1 and not is_bias else "scalar"
    if is_bias or not is_matrix(site):
        return "vector"
    if r_i == 1:
        return "input"
    return "output" if r_o == 1 else "hidden"


def _stays_inside(
    pair: Matched, later: Sequence[Matched], ratios: Sequence[tuple[float, ...]], widest: tuple[int, int]
) -> bool:
    """Whether what a matrix with fixed outputs gives is read again by the model, by its role or by its size."""
    # Fixed outputs are those of a head, or of a layer inside of the model whose own width is kept: keys and values of
    # few heads, a bottleneck. Both have r_o = 1, but the table has a multiplier for the first that would let the second
    # vanish with growing width. Roles decide, but for a feed-forward layer outside of blocks whose outputs nothing
    # reads: the last of fc1 and fc2, which are a model. Where there is none, a matrix that comes later decides, if it
    # reads as many numbers as this one gives, all fixed, and makes growing ones of them. A convolution's outputs
    # are as often read by fixed layers (the laterals of a pyramid), once for each place (flattened), or beside growing
    # ones (concatenated). It can fail for a head without a role, of as many outputs as such a layer behind it happens
    # to read, and for a gate of one output; `kinds` says what it is.
    readers = [
        (other.sizes[layout.in_axes[0]], each[layout.in_axes[0]] == 1, each[layout.out_axes[0]] != 1)
        for other, each in zip(later, ratios, strict=True)
        if (layout := other.site.layout)
        and not layout.lookup and layout.in_axes and layout.out_axes and len(other.site.shape) > 1
    ]  # fmt: skip
    outputs = pair.site.shape[(pair.site.layout or Layout()).out_axes[0]]
    if has_role(pair.site, "head.", "moe.router", "pooler", *_INNER):
        in_block = any(part[-1:].isdecimal() for part in pair.site.owner_name.split(".")[:-1])
        is_read = in_block or not has_role(pair.site, "mlp.") or any(sizes[0] == outputs for sizes, *_ in readers)
        return has_role(pair.site, *_INNER) and is_read
    if has_role(pair.site, "conv"):
        return any(_reads(outputs, sizes, widest) for sizes, *_ in readers)
    return any(sizes[0] == outputs and is_fixed and grows for sizes, is_fixed, grows in readers)


def _reads(outputs: int, sizes: tuple[int, int], widest: tuple[int, int]) -> bool:
    """Whether the fixed ones of these inputs, where the others grow as the width does, can be several such outputs."""
    (size, base), (wide, narrow) = sizes, widest
    fixed, rest = divmod(wide * base - narrow * size, wide - narrow)
    return not rest and (fixed == outputs or (fixed > 0 and outputs > 1 and fixed % outputs == 0))


def _depth(pair: Matched) -> float:
    """The growth of the number of blocks that a parameter stands among; 1 outside of blocks.

    Those of all stages are counted where both models have stages: equal widths can hide them in one.
    """
    has_stages = all(each.tower and each.block and each.tower[1] > each.block[1] for each in pair)
    here, there = (each.tower if has_stages else each.block for each in pair)
    return here[1] / there[1] if here and there else 1.0


def _fans(site: Site) -> tuple[float, float]:
    if not is_matrix(site):
        return 1.0, 1.0
    fan_in, fan_out = (site.layout or Layout()).fans(site.shape)
    return fan_in or 1.0, fan_out or 1.0
