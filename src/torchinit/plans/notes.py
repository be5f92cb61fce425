"""Notes: where rules conflict and may not, and what the reader of a plan should know of a step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Final, NamedTuple, TypeAlias

import torch

from torchinit._text import abbreviate, count, dtype_name
from torchinit.initializers.base import Blockwise, Fill, ScaledFill, Wrapper
from torchinit.initializers.composed import Padded, innermost
from torchinit.initializers.elementwise import Constant, TruncNormal
from torchinit.initializers.matrices import DeltaOrthogonal, Dirac, Identity, Orthogonal, dirac_ones
from torchinit.initializers.source import is_verbatim
from torchinit.initializers.statistics import Moments, too_fine
from torchinit.initializers.tables import Bilinear
from torchinit.initializers.variance_scaling import Kaiming, asks_what_follows
from torchinit.knowledge.neutral import neutrality
from torchinit.knowledge.role_rules import role_of_several
from torchinit.model.layouts import Layout
from torchinit.model.sites import Site
from torchinit.noise.distributions import MAX_SIGMAS
from torchinit.plans.plan import FROZEN, UNKNOWN, Step
from torchinit.rules.rule import Rule

StepNotes: TypeAlias = tuple[str, ...] | None
"""The notes of a step, where they are known."""


class Draft(NamedTuple):
    """A step in the making, with the module's view of the site that the rule matched."""

    view: Site
    site: Site
    fill: Fill
    rule: Rule
    turn: int
    kind: int
    notes: StepNotes  # None: they are not those of all of this kind

    def step(self) -> Step:
        return Step(self.site, self.fill, self.rule, (), self.turn)


def unlocked(writes: Sequence[list[Draft]]) -> Iterator[str]:
    """The sites that one rule loads from a checkpoint and another one writes after it, a text for each two rules."""
    # By rules, not by sites: the way out is an edit of the recipe, and a backbone has hundreds of sites.
    overwritten: dict[tuple[str, ...], tuple[Rule, list[str]]] = {}
    for several in writes:
        last = several[-1].rule
        locked = (write.rule for write in several[:-1] if write.fill.locked and write.rule is not last)
        if loaders := [*dict.fromkeys(rule.origin for rule in locked)]:
            rivals = (*(loaders if is_verbatim(last.init) else loaders[:1]), last.origin)
            overwritten.setdefault(rivals, (last, []))[1].append(several[0].site.name)
    for (*loaders, later), (rule, names) in overwritten.items():
        them, loader = "it" if len(names) == 1 else "them", " and ".join(loaders)
        load = "loads" if len(loaders) == 1 else "load"
        text = f"{loader} {load} {count(len(names), 'site')}, and {later} ({rule}) would write over {them}:"
        unlock = f"or say lock = false in {loader}"
        if not is_verbatim(rule.init):
            yield f"{text} {abbreviate(names)}. Put {loader} last, exclude {them} from {later}, {unlock}"
            continue
        # Put last, a checkpoint would write over what another one loads: so the way out goes by what is wished.
        lines = [f"{text} {abbreviate(names)}."]
        for one in (*loaders, later):
            others = " and ".join(other for other in (*loaders, later) if other != one)
            end = f", {unlock}" if one == later else ""
            lines.append(f"To keep what {one} loads, exclude {them} from {others}{end}.")
        yield "\n    ".join(lines)


def disagreement(writes: list[Draft]) -> str | None:
    """A tied tensor that gets different values through the different modules that hold it."""
    # Only the last fill through each module counts: one module's rules may beat each other. The fills are compared as
    # numbers, so two formulas that come out the same agree.
    last = {write.view.name: write for write in writes}
    fills = {write.fill: (name, write) for name, write in reversed(last.items())}
    if len(fills) < 2:
        return None
    given = " and ".join(
        f"{write.rule.origin} gives {name!r} {fill}" for fill, (name, write) in reversed(fills.items())
    )
    names = ", ".join(repr(view.name) for view in writes[0].site.views)
    return f"tied weights: {given}, but they are one tensor. Add a rule that matches all of {names}"


def collisions(written: Sequence[Site]) -> list[str]:
    """Sites that lie in one memory under different shapes, so that each write spoils another."""
    names = {site.name for site in written}
    pairs = {tuple(sorted((site.name, other))) for site in written for other in site.shares if other in names}
    text = "shared memory: {!r} and {!r} are views of one memory, and what is written to one changes the other. "
    return [text.format(*pair) + "Let the rules match one of them" for pair in sorted(pairs)]


FAR_SIGMAS: Final = 6.0
"""An interval that lies so many standard deviations away from the mean is nowhere that a normal comes to."""

_WHOLE: Final = (Orthogonal, DeltaOrthogonal, Identity)
"""Fills that make one matrix of all that they get."""


class Discrepancy(NamedTuple):
    """A place where a rule counts or cuts a weight otherwise than its layer does, and the way out, if it is known.

    ``is_chosen`` marks a choice that is right for the layer, of which only a plan tells.
    """

    fact: str
    remedy: str = ""
    is_chosen: bool = False


_FACTS: Final = attrgetter("shape", "dtype", "leaf", "neutral", "frozen", "activation")


class Notes:
    """The notes of a plan's steps; those of like steps are found once."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[str, ...]] = {}

    def of(self, site: Site, fill: Fill, rule: Rule, view: Site, kind: int) -> tuple[str, ...]:
        """All notes of the step that a rule gives; ``view`` is the site as the module sees it whose rule wrote last.

        Sites of a ``kind`` are alike but for their names and places.
        """
        # Objects by their identity: the steps of a plan hold them all, and share them where they are alike.
        # A fill whose class tells no moments has no notes of its own: a checkpoint has another one for each tensor.
        of_fill: object = type(fill) if type(fill).moments is Fill.moments else id(fill)
        seen = None if view is site else (id(site.owner), id(site.layout), _FACTS(site))
        word = _word(view) if type(fill) in _WHOLE else ""
        key = id(rule.init), of_fill, kind, seen, word
        if key not in self._known:
            self._known[key] = notes_of(Step(site, fill, rule), view)
        return self._known[key]

    def of_kind(self, site: Site, fill: Fill, rule: Rule, kind: int) -> tuple[str, ...] | None:
        """The same for all steps of a kind with this fill, of which the site is one; None where they may differ."""
        return None if type(fill) in _WHOLE else self.of(site, fill, rule, site, kind)


def notes_of(step: Step, view: Site) -> tuple[str, ...]:
    """All notes of a step; ``view`` is the site as the module sees it whose rule wrote last."""
    site, fill = step.site, step.fill
    is_off_neutral = site.neutral is not None and isinstance(fill, Constant) and fill.val not in (site.neutral, 0.0)
    moments = fill.moments(site.shape)
    coarse = moments and too_fine(moments, site.dtype)
    small = _subnormal(moments, site.dtype) if moments and not coarse else ""
    return (
        *([neutrality(site)] if is_off_neutral else []),
        *("; ".join(filter(None, (fact, remedy))) for fact, remedy, _ in discrepancies(step, view)),
        *([f"std is {coarse}"] if coarse else []),
        *([small] if small else []),
        *dict.fromkeys(filter(None, map(_bounds, _inner_fills(fill)))),
        *([FROZEN] if site.frozen else []),
        *([UNKNOWN] if asks_what_follows(step.rule.init) and not view.activation else []),
    )


# --- counts ------------------------------------------------------------------------------------------------------

_STACK: Final = "if dimension 0 counts weights, as of experts, take Stacked(...), or describe it by register_layout()"
_DESCRIBE: Final = "register_layout() tells how it connects"


def discrepancies(step: Step, view: Site) -> tuple[Discrepancy, ...]:
    """Where a rule means another layer than the one at hand, as a module sees its weight, each once."""
    found = (discrepancy for init, site in innermost(step.rule.init, view) for discrepancy in _of_fans(init, site))
    return tuple(dict.fromkeys((*found, *_of_shape(step.fill, view), *_of_part(step.fill, view))))


def _of_fans(init: object, site: Site) -> Iterator[Discrepancy]:
    """Where fans depend on how connections are counted, or nobody knows how the layer makes them."""
    convention = getattr(init, "fans", None)
    if convention is None or len(site.shape) < 2:
        return
    by_torch, true = site.fans("torch"), site.fans("true")
    if site.layout is None and (len(site.shape) > 2 or convention == "true"):
        counted, remedy = ("a kernel", _STACK) if len(site.shape) > 2 else ("a matrix", _DESCRIBE)
        yield Discrepancy(f"{_unknown(site)}: counted as {counted}, {by_torch[0]:g} in, {by_torch[1]:g} out", remedy)
    elif by_torch != true:
        text = "fans by torch's count {:g} in, {:g} out; true {:g} in, {:g} out; used: {}"
        yield Discrepancy(text.format(*by_torch, *true, convention), is_chosen=convention == "true")
    if isinstance(init, Kaiming) and init.mode == "fan_out" and site.numel:
        fan_in, fan_out = site.fans(convention)
        ratio = (fan_in / fan_out) ** 0.5
        if not 0.5 <= ratio <= 2:
            fact = f'mode = "fan_out": {ratio:.3g} times the std of "fan_in", torch\'s default'
            yield Discrepancy(fact, is_chosen=True)


def guessed(init: object, view: Site) -> str:
    """Why true fans cannot be had of a tensor of three dimensions or more, with the way out; empty where they can."""
    for inner, site in innermost(init, view):
        if getattr(inner, "fans", None) == "true" and site.layout is None and len(site.shape) > 2:
            return f'fans = "true", and {_unknown(site)}: {_STACK}; fans = "torch" takes it for a kernel'
    return ""


def _unknown(site: Site) -> str:
    return f"the layout of {site.owner.name}'s {site.leaf} is not known"


def _of_part(fill: Fill, site: Site) -> Iterator[Discrepancy]:
    """Where a plain tensor is one rank's part of a larger one, so that its shape and its name are not the whole's."""
    varies = not all(isinstance(inner, Constant) for inner in _inner_fills(fill))
    if site.partition_dim is not None and varies and not fill.locked:
        axis, same = site.partition_dim, "each rank draws the same under one seed"
        fact = f"a part cut along dimension {axis} (tensor_model_parallel): its fans are the part's, and {same}"
        yield Discrepancy(fact, "as a DTensor it has the fans and the values of the whole")


# --- matrices ----------------------------------------------------------------------------------------------------


def _of_shape(fill: Fill, site: Site) -> Iterator[Discrepancy]:
    """Where a fill that works on a whole matrix or kernel meets a tensor that holds several, or another order."""
    fill, layout = _core(fill), site.layout
    if isinstance(fill, Bilinear):
        yield from _of_stride(site)
    if not isinstance(fill, (*_WHOLE, Dirac)):
        return
    if layout is None:
        if len(site.shape) > 2:
            yield Discrepancy(f"{_unknown(site)}: {type(fill).__name__} takes it for one kernel", _STACK)
    elif isinstance(fill, Dirac):
        if layout.groups != fill.groups and layout.out_axes:
            silent = dirac_ones(site.shape, layout.groups) - dirac_ones(site.shape, fill.parts_of_outputs)
            more = f": {silent} of {count(site.shape[0], 'filter')} pass nothing on that could" if silent > 0 else ""
            fact = f"groups={layout.groups} in the layer, {fill.groups} in the rule{more}"
            yield Discrepancy(fact, 'groups = "layer"')
    elif layout.out_axes:
        yield from _several(fill, layout, site)


def _word(site: Site) -> str:
    """The name of the layer that holds a site, without those of the modules around it."""
    return site.owner_name.rpartition(".")[2]


def _several(fill: Fill, layout: Layout, site: Site) -> Iterator[Discrepancy]:
    name = type(fill).__name__
    if layout.batch_axes:
        axes = f"in_axis = {layout.in_axes[0]}, out_axis = {layout.out_axes[0]}"
        number = site.shape[layout.batch_axes[0]]
        yield Discrepancy(f"{name} takes {number} weights for one matrix", f"Stacked(...) with {axes} takes each")
        return
    if layout.blocks > 1:
        remedy = f"Blocks(..., parts={layout.blocks}) takes each"
        yield Discrepancy(f"{name} takes {layout.blocks} weights side by side for one matrix", remedy)
    elif role := role_of_several(_word(site)):
        remedy = "Blocks(..., parts=...), their number or their sizes, takes each"
        yield Discrepancy(f"{name} takes all that a {_word(site)!r} holds ({role}) for one matrix", remedy)
    if layout.groups > 1:
        each = f"Blocks(..., parts={layout.groups}) takes each"
        remedy = each if 0 in layout.out_axes else "Normal(...) has no such parts"
        yield Discrepancy(f"{name} takes the {layout.groups} groups of the layer for one matrix", remedy)
    axis = getattr(fill, "axis", None)
    if len(site.shape) > 2 and axis in layout.in_axes:
        yield Discrepancy(f"the rows of {name} run over the inputs of the layer", f"axis = {layout.out_axes[0]}")


def _of_stride(site: Site) -> Iterator[Discrepancy]:
    """Where a bilinear kernel interpolates by another factor than its layer's stride."""
    factors, layout = [(size + 1) // 2 for size in site.shape[2:]], site.layout
    by = " x ".join(map(str, factors))
    if layout is not None and 0 not in layout.in_axes:
        remedy = "it interpolates in a transposed convolution"
        yield Discrepancy(f"Bilinear blurs the inputs of {site.owner.name}, and adds them up", remedy)
    elif layout is not None and math.prod(factors) != layout.stride:
        size = "a kernel of 2 * stride - stride % 2 along each axis"
        yield Discrepancy(f"Bilinear interpolates by {by}, and the layer has another stride", f"take {size}")


def _core(fill: Fill) -> Fill:
    """The fill without the factor and the padding row that lie around it."""
    while isinstance(fill, ScaledFill | Padded):
        fill = fill.fill
    return fill


def _inner_fills(fill: Fill) -> Iterator[Fill]:
    """The fills that a fill is made of in the end."""
    match fill:
        case Wrapper():
            yield from _inner_fills(fill.fill)
        case Blockwise():
            for each in dict.fromkeys(fill.fills):
                yield from _inner_fills(each)
        case _:
            yield fill


# --- bounds and resolution ---------------------------------------------------------------------------------------


def _bounds(fill: Fill) -> str:
    """The note that bounds cut nothing off, as those of ``trunc_normal_`` around a small std, or all but a tail."""
    if not isinstance(fill, TruncNormal) or not fill.sigma:
        return ""
    below, above = (fill.mean - fill.low) / fill.sigma, (fill.high - fill.mean) / fill.sigma
    nearer = min(below, above)
    if nearer > MAX_SIGMAS:
        hint = '; unit = "sigma" counts in std' if fill.unit == "value" else ""
        return f"the bounds lie {nearer:.4g} std or more from the mean and cut nothing off{hint}"
    if -nearer > FAR_SIGMAS:
        side = "above" if below < 0 else "below"
        near = fill.low if below < 0 else fill.high
        return f"the bounds lie {-nearer:.4g} std or more {side} the mean, so that all values crowd at {near:.6g}"
    return ""


def _subnormal(moments: Moments, dtype: torch.dtype) -> str:
    """The note that values are below the normal range of the dtype, where they keep few bits, and then none."""
    if not (dtype.is_floating_point or dtype.is_complex):
        return ""
    info = torch.finfo(dtype.to_real())
    least = info.smallest_normal
    mean, std, low, high = (value or 0.0 for value in (moments.mean, moments.std, moments.min, moments.max))
    typical, smallest = math.hypot(mean, std), max(low, -high)  # 0 where values come as near to it as they like
    if 0 < typical < least:
        value, values = typical, "values"
    elif 0 < smallest < least:
        value, values = smallest, f"values down to {smallest:.3g}"
    else:
        return ""
    loss = "round to zero" if value < least * info.eps / 2 else "keep fewer bits"
    return f"{values} are below {least:.3g}, the smallest normal number of {dtype_name(dtype)}, and {loss}"
