"""TI806 to TI808 and TI810: units that do nothing, attention that picks one, logits that are too sure."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torchinit._text import count
from torchinit.probing.measurement import Measurement, Units
from torchinit.probing.registry import Bound, Reading, probe_check

_ROWS = 64


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
        yield Reading(worst.module, value, f"{text} the entropy {worst.entropy:.2f} of its maximum")


@probe_check(
    "TI810", Bound(math.log(4), math.log(10), 0.2), "draw the head, or a tied table, with std 1 / sqrt(width), or 0.02"
)
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
        yield Reading("", value, f"{text} at {count(measured.samples, 'sample')}")
