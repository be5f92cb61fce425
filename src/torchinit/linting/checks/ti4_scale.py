"""TI4: how values are spread: not where they should be, where they should not be, too far."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torchinit._text import abbreviate, count
from torchinit.knowledge.neutral import is_named_norm, is_shift, neutrality
from torchinit.linting.registry import Hit, Severity, check
from torchinit.linting.target import LintedTensor, LintTarget

_GAIN = 10.0
FIXED = (
    "no initialization changes it where a parametrization, as a spectral norm, decides how large a weight is: "
    "multiply the layer's output by a number, put a norm behind it, or take it off"
)


@check("TI401", "error", "values", "draw it, or zero it if it is the last of a residual branch")
def constant_weight(target: LintTarget) -> Iterator[Hit]:
    """A weight whose values are all one number, where units can only tell themselves apart by chance.

    Equal units get equal gradients and stay equal. Another number than zero in the weight of a layer whose outputs
    share their inputs is an error; in a weight that does not learn it is a note, as a filter may be meant so. Zero
    is a note, since the last layer of a residual branch, a gate or an adapter starts so on purpose; an error where
    all weights are zero. Tables, single units, depthwise convolutions and loaded values are left out.
    """
    matrices = [linted for linted in target.drawn if linted.mixes]
    constant = [linted for linted in matrices if linted.statistics.constant]
    dead = len(matrices) == len(constant) > 1 and not any(linted.statistics.max for linted in constant)
    for linted in constant:
        stats = linted.statistics
        tail = ", and so are all weights of the model" if dead else ""
        text = f"all {stats.numel:,} values are {stats.max:.6g}{tail}"
        yield Hit(linted.name, text, "error" if dead or (linted.tensor.requires_grad and stats.max) else "note")


@check("TI402", "error", "values", 'start it neutral (type = "Neutral"): select weights by layer, not by name alone')
def drawn_norm(target: LintTarget) -> Iterator[Hit]:
    """The scale or shift of a normalization layer that holds drawn values.

    A rule for every ``weight``, or a loop over all parameters, reaches norms, too, and a scale of N(0, 0.02²) makes
    the layer's output fifty times too small. A scale whose mean is zero within three standard errors is an error,
    unless the norm computes 1 + weight; anything else that comes in no order is a warning: it may have been trained,
    and RepVGG draws it. Needs 20 values; loaded ones are left out.
    """
    for linted in target.drawn:
        site, stats = linted.site, linted.statistics
        named = is_named_norm(site) and site.leaf in ("weight", "bias") and len(site.shape) == 1
        if linted.is_drawn and (named or site.neutral is not None):
            shift = is_shift(site)
            around_zero = site.neutral != 0 and abs(stats.mean) <= 3 * stats.std / math.sqrt(stats.numel)
            text = f"is the {'shift' if shift else 'scale'} of a norm, and holds mean {stats.mean:.3g}"
            severity: Severity = "error" if around_zero and not shift else "warning"
            yield Hit(linted.name, f"{text}, std {stats.std:.3g}", severity)


@check("TI403", "warning", "values", "look at how it is drawn: torch before 2.12 drew wide truncated normals wrongly")
def outliers(target: LintTarget) -> Iterator[Hit]:
    """A drawn weight with a value too far from the others.

    Inverting the normal distribution in float32 or bfloat16 gives values a hundred standard deviations out. Allowed
    is sqrt(2 ln(2n) + 2 ln 1e9) standard deviations: among n normal values one lies beyond with a chance below
    1e-9. Values that are zero are left out of the measure, and so are weights that do not come in no order. Weights
    that were trained have outliers; loaded ones are left out.
    """
    for linted in target.drawn:
        stats = linted.statistics
        if linted.is_matrix and linted.is_drawn and stats.std:
            drawn = stats.numel - stats.zeros
            spread = math.sqrt((stats.std**2 + stats.mean**2) * stats.numel / drawn)
            allowed = math.sqrt(2 * math.log(2 * drawn) + 2 * math.log(1e9))
            if stats.reach > allowed * spread:
                text = f"a value of {stats.reach:.4g} is {stats.reach / spread:.0f} standard deviations out"
                yield Hit(linted.name, f"{text}; {allowed:.1f} are possible")


@check("TI404", "warning", "values", "scale it by its fan: LeCun, Kaiming or Xavier, or a smaller std")
def loud_weight(target: LintTarget) -> Iterator[Hit]:
    """A weight that makes what passes through its layer more than ten times as large.

    ``normal_(weight)`` without a std does. The factor is std · sqrt(fan_in) for inputs that are independent, with
    the connections that the layer makes as its fan. Ten is a convention; a layer that is followed by a norm may
    have it on purpose. A table that is looked up makes nothing larger, one that is also the weight of a head does: T5
    divides there. Loaded values are left out.
    """
    for linted in target.drawn:
        view = linted.multiplied
        if view is not None and linted.factor > _GAIN and linted.statistics.varied:
            text = f"std {linted.statistics.std:.3g} with {view.fans('true')[0]:g} inputs makes what passes"
            through = f" through {view.name}" if view.name != linted.name else ""
            remedy = FIXED if linted.has_own_scale else ""
            yield Hit(linted.name, f"{text}{through} {linted.factor:.3g} times as large", remedy=remedy)


@check("TI405", "warning", "values", "zero it after drawing the table")
def padding_row(target: LintTarget) -> Iterator[Hit]:
    """The padding row of an embedding that is not zero.

    ``nn.Embedding(padding_idx=...)`` zeroes the row once, and every initialization after that wipes it out; its
    gradient is zero, so it stays. Wrong only if the model means padding to be seen. Loaded values are left out.
    """
    for linted in target.drawn:
        row, values = linted.site.zero_row, linted.values
        if row is not None and values is not None and linted.is_complete and bool(values[row].any()):
            reach = float(values[row].abs().max())
            yield Hit(linted.name, f"row {row} pads, and holds values up to {reach:.3g}")


@check("TI406", "error", "values", 'start it neutral (type = "Neutral"), or leave it so on purpose')
def off_neutral(target: LintTarget) -> Iterator[Hit]:
    """A norm that does not start at its neutral value, where it normalizes and does nothing else.

    A scale of 1 in a norm that computes 1 + weight makes what passes twice as large, norm by norm. What a norm computes
    is known by its class, or found by running a copy of it; compared are scales and shifts that are one number
    throughout. Half or more off is a warning, less a note. A scale that lets nothing pass is a note in a block, or in a
    part of the model with another norm, since the last norm of a residual branch starts so on purpose; else a warning,
    and an error where no norm of the model lets anything pass. Loaded values are left out.
    """
    norms = [linted for linted in target.drawn if linted.site.neutral is not None]
    multiplying = {linted.site.owner_name for linted in norms if linted.site.neutral == 1}
    # What is neutral at 0 beside a factor is added, whatever it is called. A scale may be a single number.
    scales = [
        linted
        for linted in norms
        if not is_shift(linted.site) and (linted.site.neutral or linted.site.owner_name not in multiplying)
    ]
    shut = [linted for linted in scales if linted.statistics.min == linted.statistics.max and _off(linted) == -1]
    passing = [linted for linted in scales if linted not in shut]
    meant = [linted for linted in shut if passing and (linted.site.block or _in_a_branch(linted, passing, scales))]
    for linted in norms:
        if (linted.statistics.constant or linted in shut) and _off(linted) and linted not in meant:
            text = f"is {linted.statistics.max:.6g}, but {neutrality(linted.site)}"
            severity: Severity = "warning" if abs(_off(linted)) >= 0.5 else "note"
            if linted in shut:
                text, severity = f"{text}; it lets nothing pass", "warning" if passing else "error"
            yield Hit(linted.name, text, severity)
    if meant:
        names = abbreviate([linted.name for linted in meant])
        yield Hit("", f"{len(meant)} of {count(len(scales), 'norm')} let nothing pass: {names}", "note")


def _off(linted: LintedTensor) -> float:
    """The distance of the one value of a norm's parameter from neutral."""
    return linted.statistics.max - (linted.site.neutral or 0.0)


def _in_a_branch(linted: LintedTensor, passing: list[LintedTensor], norms: list[LintedTensor]) -> bool:
    """Whether the smallest module that holds the norm and one that lets something pass is only a part of the model."""
    # A norm that ends a residual branch stands beside others in its branch, the last norm of a model beside all of
    # them; so the smallest part that also has a norm that lets something pass decides: a branch is not the whole model.
    around = linted.site.owner_name
    while around:
        around = around.rpartition(".")[0]
        start = f"{around}." if around else ""
        if any(other.name.startswith(start) for other in passing):
            return not all(other.name.startswith(start) for other in norms)
    return False
