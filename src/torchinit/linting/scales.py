"""Scales: checks of how values are spread: none where they should be, some where they should not, too far."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torchinit.core.neutral import is_shift, neutrality
from torchinit.core.tables import some
from torchinit.errors import count
from torchinit.linting.checks import Evidence, check
from torchinit.linting.findings import Severity
from torchinit.linting.subjects import Part, Subject

_GAIN = 10.0


@check("TI401", "constant-weight", "error", "values", "draw it, or zero it if it is the last of a residual branch")
def constant_weight(subject: Subject) -> Iterator[Evidence]:
    """A weight whose values are all one number, where units can only tell themselves apart by chance.

    Equal units get equal gradients and stay equal. Another number than zero in the weight of a layer whose outputs
    share their inputs is an error; in a weight that does not learn it is a note, as a filter may be meant so. Zero
    is a note, since the last layer of a residual branch, a gate or an adapter starts so on purpose; it is a warning
    where the model has no other weights than zero ones. Tables, single units, depthwise convolutions and loaded
    values are left out.
    """
    matrices = [part for part in subject.drawn if _mixes(part)]
    dead = len(matrices) > 1 and all(part.facts.constant and part.facts.max == 0 for part in matrices)
    for part in matrices:
        facts = part.facts
        if facts.constant:
            zero: Severity = "warning" if dead else "note"
            other: Severity = "error" if part.tensor.requires_grad else "note"
            severity = zero if facts.max == 0 else other
            text = f"all {facts.numel:,} values are {facts.max:.6g}"
            yield Evidence(
                part.name, text + (", and so are all weights of the model" if dead else ""), severity=severity
            )


def _mixes(part: Part) -> bool:
    """Whether several outputs of the weight have the same inputs, and several of them."""
    layout, shape = part.site.layout, part.site.shape
    if not part.is_matrix or layout is None or layout.lookup:
        return False
    outputs = math.prod(shape[axis] for axis in layout.out_axes)
    return part.site.fans("true")[0] > 1 and outputs > (layout.groups if 0 in layout.out_axes else 1)


@check(
    "TI402",
    "drawn-norm",
    "error",
    "values",
    'start it neutral (type = "Neutral"): select weights by layer, not by name alone',
)
def drawn_norm(subject: Subject) -> Iterator[Evidence]:
    """The scale or shift of a normalization layer that holds drawn values.

    A rule for every ``weight``, or a loop over all parameters, reaches norms, too, and a scale of N(0, 0.02²) makes
    the layer's output fifty times too small. A scale whose mean is zero within three standard errors is an error,
    unless the norm computes 1 + weight; anything else that comes in no order is a warning: it may have been trained,
    and RepVGG draws it. Needs 20 values; loaded ones are left out.
    """
    for part in subject.drawn:
        facts = part.facts
        if part.is_norm and facts.varied and facts.shuffled:
            scale = not is_shift(part.site)
            nothing = part.site.neutral != 0 and abs(facts.mean) <= 3 * facts.std / math.sqrt(facts.numel)
            text = f"is the {'scale' if scale else 'shift'} of a norm, and holds"
            text = f"{text} mean {facts.mean:.3g}, std {facts.std:.3g}"
            yield Evidence(part.name, text, severity="error" if scale and nothing else "warning")


@check(
    "TI403",
    "outliers",
    "warning",
    "values",
    "look at how it is drawn: torch before 2.12 drew wide truncated normals wrongly",
)
def outliers(subject: Subject) -> Iterator[Evidence]:
    """A drawn weight with a value too far from the others.

    Inverting the normal distribution in float32 or bfloat16 gives values a hundred standard deviations out. Allowed
    is sqrt(2 ln(2n) + 2 ln 1e9) standard deviations: among n normal values one lies beyond with a chance below
    1e-9. Values that are zero are left out of the measure, and so are weights that do not come in no order. Weights
    that were trained have outliers; loaded ones are left out.
    """
    for part in subject.drawn:
        facts = part.facts
        if not part.is_matrix or not facts.varied or not facts.shuffled or facts.std == 0:
            continue
        drawn = facts.numel - facts.zeros
        spread = math.sqrt((facts.std**2 + facts.mean**2) * facts.numel / drawn)
        allowed = math.sqrt(2 * math.log(2 * drawn) + 2 * math.log(1e9))
        if facts.reach > allowed * spread:
            text = f"a value of {facts.reach:.4g} is {facts.reach / spread:.0f} standard deviations out"
            yield Evidence(part.name, f"{text}; {allowed:.1f} are possible")


@check("TI404", "loud-weight", "warning", "values", "scale it by its fan: LeCun, Kaiming or Xavier, or a smaller std")
def loud_weight(subject: Subject) -> Iterator[Evidence]:
    """A weight that makes what passes through its layer more than ten times as large.

    ``normal_(weight)`` without a std does. The factor is std · sqrt(fan_in) for inputs that are independent, with
    the connections that the layer makes as its fan. Ten is a convention; a layer that is followed by a norm may
    have it on purpose. Tables, and weights tied to one, are left out, and so are loaded values.
    """
    for part in subject.drawn:
        if not part.facts.varied or not part.is_matrix or any(_is_table(view.layout) for view in part.site.views):
            continue
        fan = part.site.fans("true")[0]
        factor = math.sqrt(max(fan, 0.0)) * math.hypot(part.facts.std, part.facts.mean)
        if factor > _GAIN:
            text = f"std {part.facts.std:.3g} with {fan:g} inputs makes what passes {factor:.3g} times as large"
            yield Evidence(part.name, text)


def _is_table(layout: object) -> bool:
    return bool(getattr(layout, "lookup", False))


@check("TI405", "padding-row", "warning", "values", "zero it after drawing the table")
def padding_row(subject: Subject) -> Iterator[Evidence]:
    """The padding row of an embedding that is not zero.

    ``nn.Embedding(padding_idx=...)`` zeroes the row once, and every initialization after that wipes it out; its
    gradient is zero, so it stays as it is. Compared with zero, so never wrong, unless the model means padding to be
    seen. Loaded values are left out.
    """
    for part in subject.drawn:
        row, values = part.site.zero_row, part.values
        if row is not None and values is not None and part.is_whole and not bool(part.facts.zero_rows[row]):
            reach = float(values[row].abs().max())
            yield Evidence(part.name, f"row {row} pads, and holds values up to {reach:.3g}")


@check("TI406", "off-neutral", "error", "values", 'start it neutral (type = "Neutral"), or leave it so on purpose')
def off_neutral(subject: Subject) -> Iterator[Evidence]:
    """A norm that does not start at its neutral value, where it normalizes and does nothing else.

    A scale of 1 in a norm that computes 1 + weight makes what passes twice as large, norm by norm. What a norm computes
    is known by its class, or found by running a copy of it; compared are scales and shifts that are one number
    throughout. Half or more off is a warning, less a note. A scale that lets nothing pass is a note in a block, or in a
    part of the model with another norm, since the last norm of a residual branch starts so on purpose; else a warning,
    and an error where no norm of the model lets anything pass. Loaded values are left out.
    """
    norms = [part for part in subject.drawn if part.site.neutral is not None]
    scales = [part for part in norms if not is_shift(part.site)]
    shut = [part for part in scales if part.facts.constant and _off(part) == -1]
    passing = [part for part in scales if part not in shut]
    meant = [part for part in shut if passing and (part.site.block or _in_a_branch(part, passing, scales))]
    for part in norms:
        if part.facts.constant and _off(part) and part not in meant:
            text = f"is {part.facts.max:.6g}, but {neutrality(part.site)}"
            severity: Severity = "warning" if abs(_off(part)) >= 0.5 else "note"
            if part in shut:
                text, severity = f"{text}; it lets nothing pass", "warning" if passing else "error"
            yield Evidence(part.name, text, severity=severity)
    if meant:
        names = some([part.name for part in meant])
        yield Evidence("", f"{len(meant)} of {count(len(scales), 'norm')} let nothing pass: {names}", severity="note")


def _off(part: Part) -> float:
    """How far the one value of a norm's parameter is from neutral."""
    return part.facts.max - (part.site.neutral or 0.0)


def _in_a_branch(part: Part, passing: list[Part], norms: list[Part]) -> bool:
    """Whether the smallest module that holds the norm and one that lets something pass is only a part of the model."""
    around = part.site.owner_name
    while around:
        around = around.rpartition(".")[0]
        start = f"{around}." if around else ""
        if any(other.name.startswith(start) for other in passing):
            return not all(other.name.startswith(start) for other in norms)
    return False
