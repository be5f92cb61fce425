"""TI801 to TI805 and TI809: what becomes of a signal, and of its gradient, between the first block and the last."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from torchinit.knowledge.gains import gain_before, nonlinearities
from torchinit.probing.checks.registry import Bound, Reading, probe_check
from torchinit.probing.measurement import Measurement, Output, SignalChain
from torchinit.probing.moments import BatchMoments

_NOISE = 1.5
_VANISHES = Bound(-5.3, -9.0, _NOISE, downwards=True)
_EXPLODES = Bound(4.0, 9.0, _NOISE)


@probe_check("TI801", _VANISHES, "keep the signal's size from layer to layer")
def vanishing_signal(measured: Measurement) -> Iterator[Reading]:
    """The part of the activations that differs between samples is lost on the way through the blocks or layers.

    Biases keep a dead net's activations large, so the RMS of the standard deviation over the batch is what counts: the
    last in parts of the first. A warning from a two-hundredth on (ln -5.3), an error from 1 / 8,000 (ln -9); five runs
    of one net differ by ln 0.3 to 1.5. Between: nets that learn slowly, autoencoders with a bottleneck.
    """
    for chain in measured.chains if measured.samples > 1 else ():
        values = [each.forward.signal for each in chain.outputs]
        text = f"{_share(chain.signal)} of the signal is left after {_where(chain, values)}"
        begins, way = _begins(chain, values, _VANISHES), of_chain(measured, chain, grows=False)
        yield Reading(_site(chain, values), chain.signal, text, way, begins)


@probe_check("TI802", _EXPLODES, "keep the signal's size from layer to layer")
def exploding_signal(measured: Measurement) -> Iterator[Reading]:
    """The activations, or the stream of residual blocks, grow on the way.

    A warning from 55 times on (ln 4), an error from 8,000 (ln 9): residual branches without a norm that each add as
    much as is there double the stream block by block. Good models grow by up to five. Activations that grow until they
    are not finite are an error.
    """
    for chain in measured.chains:
        values = [each.forward.rms for each in chain.outputs]
        ends = _ends_infinite(chain.growth, [each.forward for each in chain.outputs], measured.largest)
        text = f"the activations grow {_share(chain.growth)} times{_THEN * ends} along {_where(chain, values)}"
        value, way = math.inf if ends else chain.growth, of_chain(measured, chain, grows=True)
        yield Reading(_site(chain, values), value, text, way, _begins(chain, values, _EXPLODES))


@probe_check("TI803", _VANISHES, "keep the gradient's size from layer to layer", stage="backward")
def vanishing_gradient(measured: Measurement) -> Iterator[Reading]:
    """The gradient is lost on the way back to the first block or layer.

    Compared are the gradients of the activations along the stream, never inside of branches, with the bounds of TI801.
    Where a head of zeros lets none pass in the first step, that of the step in which one came counts. Frozen parts are
    left out, and batch norms with less than 16 samples.
    """
    for chain in measured.chains if not measured.small_batch else ():
        values = _gradients(chain)
        text = f"{_share(chain.gradient)} of the gradient is left at the start of {_where(chain, values, back=True)}"
        lost = sum(value == 0 for value in values)
        text += f", none at the first {lost}" if lost and values[-1] else ""
        yield Reading(_site(chain, values), chain.gradient, text, of_chain(measured, chain, grows=False))


@probe_check("TI804", _EXPLODES, "keep the gradient's size from layer to layer", stage="backward")
def exploding_gradient(measured: Measurement) -> Iterator[Reading]:
    """The gradient grows on the way back to the first block or layer.

    With the bounds of TI802. It also does in nets whose activations look well: a tanh that saturates, attention that
    picks one token, a SIREN with another layer's weights.
    """
    for chain in measured.chains if not measured.small_batch else ():
        values = _gradients(chain)
        known = [each.gradient for each in reversed(chain.outputs) if each.gradient]
        ends = _ends_infinite(chain.gradient, known, measured.largest)
        where = _where(chain, values, back=True)
        text = f"the gradient grows {_share(chain.gradient)} times{_THEN * ends} back along {where}"
        value, way = math.inf if ends else chain.gradient, of_chain(measured, chain, grows=True)
        yield Reading(_site(chain, values), value, text, way)


@probe_check(
    "TI805",
    Bound(-3.0, -5.0, 0.4, downwards=True),
    "let weights and not biases decide: gains that fit",
    stage="samples",
)
def collapsing_samples(measured: Measurement) -> Iterator[Reading]:
    """All samples come to look alike: the angles between them vanish on the way.

    Measured is one minus the mean cosine between samples, at the end in parts of that at the start; in the same way
    between the tokens of a sample, where there is attention, and then of what is left at the end. A warning from a
    thousandth on, an error from 1e-5; of tokens from 0.03 and 0.001.
    """
    for chain in measured.chains if measured.samples > 1 else ():
        values = [each.forward.spread for each in chain.outputs]
        text = f"the spread of the samples falls to {_share(chain.spread * math.log(10))} along {_where(chain, values)}"
        yield Reading(_site(chain, values), chain.spread, text, of_chain(measured, chain, grows=False))
        last = chain.outputs[-1].forward.token_spread
        if measured.attentions and chain.kind == "blocks" and last > 0 and chain.outputs[0].forward.token_spread > 0.05:
            # On the scale of the samples: 0.03 is -3, and 0.001 is -5.
            value = -3 + 2 * math.log(last / 0.03) / math.log(30)
            site, depth = f"{chain.outputs[-1].name} tokens", f"{len(chain.outputs)} blocks"
            text = f"the tokens of a sample come to look alike: 1 - cosine is {last:.2g} after {depth}"
            yield Reading(site, value, text, "scale the branches down, or put norms before them")


@probe_check(
    "TI809", Bound(10.0, 20.0, 1.0), "start recurrent weights orthogonal, an LSTM's forget bias at 1", stage="backward"
)
def gradient_over_time(measured: Measurement) -> Iterator[Reading]:
    """The gradient does not reach the first time steps of a recurrent layer, or explodes on the way there.

    Read off where the loss takes the last step alone: the gradient of the input at the first step in parts of that at
    the last. The recurrent weights get the sum over the steps, so a part r of it is below the noise of the last step's
    until 1 / r² sequences were seen: at exp(-10), the warning, 500 million. Below 2^-24, exp(-16.6), float32 rounds it
    away, so exp(-20) is an error. (25,600 sequences teach an LSTM what the first step said at exp(-4), not at exp(-8).)
    Growth is judged as that of a chain, from exp(4) and exp(9) on. Over n steps torch's start leaves 0.6^n of it to an
    LSTM or a GRU, whose gates are half open, 0.58^n or less to a tanh RNN; a forget bias of 1 leaves 0.8^n.
    """
    for steps in measured.time_steps:
        first, last = steps.gradients[0], steps.gradients[-1]
        if last > 0:
            ratio = math.log(first / last) if first > 0 else -math.inf
            value = -ratio if ratio < 0 else 2 + 2 * ratio  # growth has TI804's bounds: 4 and 9 are 10 and 20
            number = len(steps.gradients)
            text = f"of the gradient at the last of {number} time steps {_share(ratio)} reaches the first"
            text += f", {math.exp(ratio / (number - 1)):.2g} a step" if math.isfinite(ratio) else ""
            yield Reading(steps.module, value, text)


_THEN: Final = ", then beyond all numbers,"


def _ends_infinite(grown: float, steps: Sequence[BatchMoments], largest: float) -> bool:
    """Whether what grows along these outputs ends as not finite, and by its size: its square is beyond ``largest``."""
    tops = [each.top for each in steps if each.finite]
    return grown >= _EXPLODES.warning and len(tops) < len(steps) and tops[-1] > math.sqrt(largest)


def _begins(chain: SignalChain, values: Sequence[float], bound: Bound) -> str:
    """The output from which on the bound is passed; the first one where none does."""
    for output, value in zip(chain.outputs, values, strict=True):
        ratio = value / values[0] if values[0] > 0 else math.nan
        if bound.severity(math.log(ratio) if ratio > 0 else ratio - math.inf):
            return output.name
    return chain.outputs[0].name


def _gradients(chain: SignalChain) -> list[float]:
    return [each.gradient.rms for each in chain.outputs if each.gradient]


def _share(log_ratio: float) -> str:
    """A ratio in words: ``0.028``, ``10^-24``, ``none``."""
    if math.isnan(log_ratio) or math.isinf(log_ratio):
        return "none" if log_ratio < 0 else "infinitely many"
    digits = log_ratio / math.log(10)
    return f"10^{digits:.0f}" if abs(digits) > 3.5 else f"{math.exp(log_ratio):.2g}"


def _site(chain: SignalChain, values: list[float]) -> str:
    """The place where it happens: the one step that makes more than half of the change, else the beginning."""
    at = _culprit(values)
    return chain.outputs[at].name if at is not None and len(values) == len(chain.outputs) else chain.outputs[0].name


_SUDDEN = 5.0
"""The logarithm of what no layer does by its scale alone."""


def _culprit(values: list[float]) -> int | None:
    logs = [math.log(value) if value > 0 else -math.inf for value in values]
    lost = next((at for at, each in enumerate(logs) if not math.isfinite(each)), len(logs))
    if len(logs) < 3 or not lost:
        return None
    steps = [after - before for before, after in pairwise(logs[:lost])]
    largest = max(range(len(steps)), key=lambda at: abs(steps[at]), default=0)
    change = abs(logs[lost - 1] - logs[0])
    if lost < len(logs) and change <= _SUDDEN:
        return lost
    is_one = abs(steps[largest]) > max(change / 2, _SUDDEN if lost < len(logs) else 0)
    return largest + 1 if is_one else None


def _where(chain: SignalChain, values: list[float], *, back: bool = False) -> str:
    """The chain in words, with what happens at each step, or at the one that does it."""
    first, last = chain.outputs[0].name, chain.outputs[-1].name
    number, kind = len(chain.outputs), chain.kind
    at = _culprit(values)
    if at is not None and len(values) == number:
        return f"{number} {kind}, {first} to {last}, most of it at {chain.outputs[at].name}"
    known = [value for value in values if 0 < value < math.inf]
    power = (-1 if back else 1) / max(len(known) - 1, 1)
    each = f", {(known[-1] / known[0]) ** power:.2g} a {kind[:-1]}" if len(known) > 2 else ""
    return f"{number} {kind}, {first} to {last}{each}"


# --- ways out --------------------------------------------------------------------------------------------------------

# The entry of a recipe has a line of its own, to be pasted.
_BRANCH: Final = (
    'scale the last layer of each branch by 1 / sqrt(2 · depth), as std = "0.02 / sqrt(2 * depth)" does,\n'
    "or start it at zero"
)
_FIXED: Final = (
    "a parametrization, as a spectral norm, decides how large these weights are, and no initialization can: "
    "take it off, or\n"
)
_UNKNOWN: Final = 'scale each weight by its fan-in:\n{type = "Kaiming", mode = "fan_in", nonlinearity = "auto"}'


def of_chain(measured: Measurement, chain: SignalChain, grows: bool) -> str:
    """The way out for a chain along which the signal, or the gradient, does not keep its size."""
    inside = tuple(f"{output.module}." for output in chain.outputs)
    if chain.kind == "blocks" and any(name.startswith(inside) for name in measured.fixed):
        mended = "multiply each branch by 1 / sqrt(2 · depth)" if grows else "put a norm before each block"
        return f"{_FIXED}{mended}"
    if chain.kind == "blocks":
        return _BRANCH if grows else f"{_UNKNOWN}\nor put a residual connection around each block"
    layers = [output for output in chain.outputs if output.weighted]
    kinds = Counter((each.kind, each.then) for each in layers)
    if not kinds:
        return _UNKNOWN
    (kind, then), _ = kinds.most_common(1)[0]
    layer = next(each for each in reversed(layers) if (each.kind, each.then) == (kind, then))
    return _of_layer(measured, layer)


def _of_layer(measured: Measurement, layer: Output) -> str:
    fan = measured.fans.get(layer.module, 0.0)
    gain, name, entry = _entry(layer)
    if layer.module in measured.fixed:
        kept = measured.fixed[layer.module] * math.sqrt(fan) / gain
        return f"{_FIXED}multiply what comes out of each layer by a number, here {1 / (kept or math.nan):.2g}"
    if layer.then == "sigmoid":
        return (
            "no scale of the weights cures a sigmoid in depth: put ReLU or a norm in its place,\n"
            "or let Xavier with a gain of 4 make it start:\n"
            f'{{type = "Xavier", gain = 4, layer = "{layer.kind}"}}'
        )
    if layer.then == "sin":
        uniform = "Uniform(±sqrt(6 / fan_in) / omega) keeps it, with omega = 30 in the sine"
        return f"{uniform}: std {_std(2, fan):.3g} / omega"
    if layer.kind.startswith(("RNN", "LSTM", "GRU")):
        return "start the recurrent weights orthogonal, and the bias of an LSTM's forget gate at 1"
    std = next((each.rms for each in measured.parameters if each.name == f"{layer.module}.weight"), math.nan)
    now = ""
    if fan and not math.isnan(std):
        behind = f", {layer.then}" if layer.then else ""
        now = f"std {std:.3g} ({fan:g} inputs{behind}) keeps {std * math.sqrt(fan) / gain:.3g} a layer; "
    return f"{now}{name} (std {_std(gain**2, fan):.3g}) keeps it:\n{entry}"


def _entry(layer: Output) -> tuple[float, str, str]:
    """The gain that a layer wants, the name of the initializer with it, and its entry in a recipe."""
    if layer.then == "tanh":
        text = f'{{type = "Xavier", gain = "5 / 3", layer = "{layer.kind}"}}'
        return 5 / 3, "Xavier with a gain of 5/3", text
    known = layer.then if layer.then in nonlinearities() and layer.then != "softplus" else "linear"
    slope = "(0.01)" if known == "leaky_relu" else ""
    given = "" if known == "relu" else f'nonlinearity = "{known}", '
    text = f'{{type = "Kaiming", mode = "fan_in", {given}layer = "{layer.kind}"}}'
    return gain_before(known + slope), "Kaiming", text


def _std(variance: float, fan: float) -> float:
    return math.sqrt(variance / fan) if fan else math.nan
