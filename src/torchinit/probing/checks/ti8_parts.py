"""TI806 to TI808 and TI810 to TI819: units, attention and logits, the gradients of parameters, what is not finite."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

from torchinit._text import abbreviate, count, fold_numbers
from torchinit.probing.checks.registry import ANY, Bound, Reading, Stage, probe_check
from torchinit.probing.measurement import Measurement, ParameterGradient, Units
from torchinit.probing.moments import BatchMoments

_ROWS = 64
_DIVIDE = "a parametrization decides how large the weights are: divide the logits by a number"
_REVERSED = "the last output of a reverse direction has read one step: take the last state, h_n, or the mean"


@probe_check("TI806", Bound(0.9, 1.0, 0.02), "start the bias at zero, or take a leaky ReLU")
def silent_units(measured: Measurement) -> Iterator[Reading]:
    """Units behind a ReLU that are zero for all samples, in the worst layer: they pass nothing and learn nothing.

    A warning from nine in ten on, an error if all are. Needs 64 rows, counting positions. Half of the units are dead in
    the last of thirty good layers, so less is not judged.
    """
    dead = [units for units in measured.units if units.function == "relu" and units.rows >= _ROWS]
    yield from _worst(dead, [units.dead for units in dead], "of the units are dead behind the ReLU")


@probe_check("TI807", Bound(0.3, 0.6, 0.05), "Xavier, a gain of 5/3 for a tanh, keeps it in the middle")
def saturated_units(measured: Measurement) -> Iterator[Reading]:
    """A tanh beyond 0.99, or a sigmoid outside of 0.01 to 0.99, where the slope is nearly zero.

    In the worst layer a warning from three in ten on, an error from six. The tanh inside of GELU's formula, and gates
    of recurrent layers are left out. Good layers have less than a fifth of it.
    """
    flat = [units for units in measured.units if units.function != "relu" and units.rows >= _ROWS]
    yield from _worst(flat, [units.saturated for units in flat], "of the values are saturated")


def _worst(units: list[Units], shares: list[float], text: str) -> Iterator[Reading]:
    if shares:
        at = max(range(len(shares)), key=shares.__getitem__)
        yield Reading(units[at].module, shares[at], f"{shares[at]:.0%} {text} ({units[at].function})")


@probe_check(
    "TI808", Bound(math.log(2), math.log(10), 0.15), "draw queries and keys with a smaller std: Xavier, or 0.02"
)
def sharp_attention(measured: Measurement) -> Iterator[Reading]:
    """Attention whose logits spread so far that each query picks one key at random.

    The standard deviation of the logits within a row, in the worst layer, masks left out: a warning from 2 on, an error
    from 10. Good starts have 1.03 at most. An entropy at its maximum is no fault: small weights attend evenly.
    """
    if measured.attentions:
        worst = max(measured.attentions, key=lambda each: each.std)
        text = f"the attention's logits have std {worst.std:.3g}: the largest weight is {worst.largest:.2f} on average,"
        value = math.log(worst.std) if worst.std > 0 else -math.inf
        remedy = _DIVIDE if any(name.startswith(worst.module) for name in measured.fixed) else ""
        yield Reading(worst.module, value, f"{text} the entropy {worst.entropy:.2f} of its maximum", remedy)


@probe_check(
    "TI810", Bound(math.log(4), math.log(10), 0.2), "draw the head, or a tied table, with std 1 / sqrt(width), or 0.02",
    stage="loss",
)  # fmt: skip
def loud_logits(measured: Measurement) -> Iterator[Reading]:
    """Logits so large that the model is sure of itself before it has seen anything.

    The RMS of the logits of a cross entropy: a warning from 4 on, an error from 10. A loud head costs, and
    trains; a tied table of N(0, 1) hardly does. The loss beside ln C is shown, not judged: it is noisy. What is only
    taken to be logits is a warning at most.
    """
    goal = measured.objective
    if goal.classes and goal.logits > 0 and math.isfinite(goal.logits):
        value = math.log(goal.logits) if goal.sure else min(math.log(goal.logits), math.log(9.9))
        text = f"the logits have RMS {goal.logits:.3g}; the loss is {goal.loss:.3g}, and {goal.best:.3g} without a look"
        head = next((each.module for each in reversed(measured.outputs) if each.weighted), "")
        remedy = _DIVIDE if head in measured.fixed else ""
        yield Reading("", value, f"{text} at {count(measured.samples, 'sample')}", remedy)


@probe_check("TI811", ANY, "let one of two zeros in a row be something else, the norm's gain first", stage="backward")
def stuck_weights(measured: Measurement) -> Iterator[Reading]:
    """Weights whose gradient is exactly zero, and stays so while all others take four steps down.

    A zero gradient alone is no fault: zero heads, zero branches and Fixup have it by design, and all of it wakes. Two
    zeros in a row, a dead layer and equal experts stay. Experts that no token reached are left out; the values are
    restored. The steps are against the signs of the gradients.
    """
    stuck = [each for each in _weights(measured) if each.stays_zero and "expert" not in each.name]
    if stuck:
        names = abbreviate([each.name for each in stuck])
        text = f"no gradient reaches {count(len(stuck), 'weight')} for good: {names}"
        backwards = all(each.name.endswith("_reverse") for each in stuck)
        yield Reading(stuck[0].name, len(stuck), text, _REVERSED if backwards else "")


@probe_check("TI812", ANY, "draw them: noise on a constant breaks the symmetry and cures nothing", stage="values")
def equal_units(measured: Measurement) -> Iterator[Reading]:
    """Units of a layer that have the same weights and get the same gradients, so that they stay one unit for good.

    Rows of the weight and of its gradient are compared, to 1e-4 of the largest. A gradient of zero counts where it
    stays so, as in a net that is one number throughout.
    """
    for each in measured.parameters:
        if each.equal_rows and (each.gradient or each.stays_zero):
            yield Reading(each.name, 1.0, "all units have the same weights and the same gradients")


@probe_check(
    "TI813", Bound(math.log(30), math.inf, 0.3), "scale like layers alike, or by their depth", stage="backward"
)
def uneven_gradients(measured: Measurement) -> Iterator[Reading]:
    """Parameters of one kind whose gradients differ by more than thirty times between blocks.

    Compared are like parameters alone: the same name but for the block's number, the same shape, three or more of them.
    Gemma 3 differs by 20. Zero gradients are TI811's.
    """
    alike: dict[tuple[object, ...], list[ParameterGradient]] = defaultdict(list)
    for each in _weights(measured) if any(chain.kind == "blocks" for chain in measured.chains) else ():
        if each.gradient and "expert" not in each.name:
            alike[fold_numbers(each.name), each.shape].append(each)
    ratios = {}
    for group in alike.values():
        sizes = [each.gradient or 0.0 for each in group]
        if len(group) > 2 and fold_numbers(group[0].name) != group[0].name:
            ends = group[sizes.index(max(sizes))].name, group[sizes.index(min(sizes))].name
            ratios[ends] = max(sizes) / min(sizes)
    if ratios:
        name, least = max(ratios, key=ratios.__getitem__)
        text = f"its gradient is {ratios[name, least]:.3g} times that of the smallest of the like parameters, {least}"
        yield Reading(name, math.log(ratios[name, least]), text)


@probe_check(
    "TI814", Bound(0.6, 0.9, 0.05), "scale the loss (torch.amp.GradScaler), or train in bfloat16", stage="backward"
)
def gradients_below_dtype(measured: Measurement) -> Iterator[Reading]:
    """Gradients in float16 that are below its smallest normal number: 6e-5.

    The share of a weight's elements, the median over the weights, zeros of dead units counted: a warning from 0.6 on,
    an error from 0.9. A scaled loss moves them; mend the start first where TI803 is found, too.
    """
    shares = sorted(each.below for each in _weights(measured) if each.gradient is not None)
    if shares and measured.dtype == "float16":
        share = shares[len(shares) // 2]
        yield Reading("", share, f"{share:.0%} of the gradients' elements are below what float16 holds")


@probe_check("TI815", ANY, "look at the first one: everything behind it follows")
def not_finite_in_run(measured: Measurement) -> Iterator[Reading]:
    """An output, a gradient or the loss that is not finite, also after a step of the optimizer.

    Of outputs the first is named, of gradients the one that is the first on the way back. Operations inside of a module
    are not looked at: masks are infinite there on purpose.
    """
    goal = measured.objective
    bad = [each for each in measured.outputs if not each.forward.finite]
    if bad:
        yield Reading(bad[0].name, 1.0, f"the output is not finite, the first of {len(bad)}")
    elif not math.isfinite(goal.loss):
        yield Reading("", 1.0, f"the loss is {goal.loss}", stage="loss")
    elif goal.odd:
        yield Reading("", 1.0, f"{goal.odd} of the model's output is not finite", stage="loss")
    if math.isfinite(goal.loss):
        yield from _gradients_not_finite(measured)
        late = next((step for step, loss in enumerate(measured.losses) if not math.isfinite(loss)), 0)
        if late:
            text = f"the loss is {measured.losses[late]} after step {late} of the optimizer, {goal.loss:.4g} before"
            yield Reading("", 1.0, text, "a smaller lr, warm-up, or what is found beside this", stage="backward")


def _gradients_not_finite(measured: Measurement) -> Iterator[Reading]:
    lost = [each for each in measured.parameters if each.gradient is not None and not math.isfinite(each.gradient)]
    back = [each for each in measured.outputs if each.gradient is not None and not each.gradient.finite]
    if back:
        text = "the gradient of its output is not finite"
        text += f", the first of {len(back)} on the way back" if len(back) > 1 else ""
        text += f", nor is that of {count(len(lost), 'parameter')}" if lost else ""
        yield Reading(back[-1].name, 1.0, text, stage="backward")
    elif lost:
        yield Reading(lost[0].name, 1.0, f"the gradient is not finite, the first of {len(lost)}", stage="backward")


@probe_check("TI816", Bound(math.inf, math.inf), "freeze it, or use it in forward", stage="backward")
def unused_parameters(measured: Measurement) -> Iterator[Reading]:
    """Trained parameters that the loss does not depend on: other inputs or another loss may need them."""
    unused = [each.name for each in measured.parameters if each.gradient is None]
    if unused:
        text = f"the loss depends on none of {count(len(unused), 'parameter')}: {abbreviate(unused)}"
        yield Reading(unused[0], 1.0, text)


@probe_check("TI817", ANY, "train in bfloat16, or scale what is before it down")
def beyond_dtype(measured: Measurement) -> Iterator[Reading]:
    """Outputs or gradients that are finite here, and beyond the largest number of the dtype of the training."""
    for each in measured.outputs:
        sides: tuple[tuple[str, BatchMoments | None, Stage], ...]
        sides = ("output", each.forward, "forward"), ("gradient", each.gradient, "backward")
        for what, numbers, stage in sides:
            if numbers is not None and numbers.finite and numbers.top > measured.largest:
                text = f"the {what} reaches {numbers.top:.3g}; {measured.dtype} ends at {measured.largest:.3g}"
                yield Reading(each.name, 1.0, text, stage=stage)
                return


@probe_check(
    "TI818",
    Bound(math.log(100), math.log(1e4), 0.3),
    "scale the weights before it down: by their fan",
    stage="backward",
)
def huge_gradients(measured: Measurement) -> Iterator[Reading]:
    """A parameter whose gradient has an RMS above a hundred at a mean loss, which explodes where no chain shows it.

    A second look for TI804: recurrent layers that explode over time, SIRENs. Good models have 4 at most. A warning from
    100 on, an error from 10,000; there is no such bound downwards.
    """
    known = [each for each in measured.parameters if each.gradient is not None and math.isfinite(each.gradient)]
    worst = max(known, key=lambda each: each.gradient or 0.0, default=None)
    if worst is not None and worst.gradient and "given" not in measured.objective.text:
        yield Reading(worst.name, math.log(worst.gradient), f"its gradient has RMS {worst.gradient:.3g}")


@probe_check("TI819", ANY, "initialize it; if a formula made it, look for 0/0 or an overflow", stage="values")
def not_finite_values(measured: Measurement) -> Iterator[Reading]:
    """A parameter that holds NaN or an infinity, or a buffer that holds NaN, whether or not this pass meets it.

    Running statistics are read in evaluation alone, a row of a table when its id comes: the pass looks well, and the
    first validation or a later batch does not. Infinities in buffers are noted and not judged, since masks are made of
    them, but for running statistics. The inputs are named where outputs are not finite either.
    """
    spreads = any(not each.forward.finite for each in measured.outputs)
    odd = [each for each in measured.not_finite if (spreads if each.kind == "input" else not each.may_be_meant)]
    if odd:
        text = f"{odd[0]}, the first of {len(odd)} such tensors" if len(odd) > 1 else f"{odd[0]}"
        yield Reading(odd[0].name, 1.0, text)


def _weights(measured: Measurement) -> list[ParameterGradient]:
    return [each for each in measured.parameters if len(each.shape) > 1]
