"""Remedies: which initializer, gain or scale would keep a signal that vanishes or explodes, and by how much.

The entry of a recipe has a line of its own, to be pasted.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

from torchinit.knowledge.gains import gain_before, nonlinearities
from torchinit.probing.measurement import Measurement, Output, SignalChain

_BRANCH: Final = (
    'scale the last layer of each branch by 1 / sqrt(2 · depth), as std = "0.02 / sqrt(2 * depth)" does,\n'
    "or start it at zero"
)
_UNKNOWN: Final = 'scale each weight by its fan-in:\n{type = "Kaiming", mode = "fan_in", nonlinearity = "auto"}'


def of_chain(measured: Measurement, chain: SignalChain, grows: bool) -> str:
    """The way out for a chain along which the signal, or the gradient, does not keep its size."""
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
    if layer.then == "sigmoid":
        return (
            "no scale of the weights cures a sigmoid in depth: put ReLU or a norm in its place,\n"
            "or let Xavier with a gain of 4 make it start:\n"
            f'{{type = "Xavier", gain = 4, layer = "{layer.kind}"}}'
        )
    if layer.then == "sin":
        return (
            f"Uniform(±sqrt(6 / fan_in) / omega) keeps it, with omega = 30 in the sine: std {_g(_per(2, fan))} / omega"
        )
    if layer.kind.startswith(("RNN", "LSTM", "GRU")):
        return "start the recurrent weights orthogonal, and the bias of an LSTM's forget gate at 1"
    gain, entry = _entry(layer)
    std = next((each.rms for each in measured.parameters if each.name == f"{layer.module}.weight"), math.nan)
    now = ""
    if fan and not math.isnan(std):
        share = std * math.sqrt(fan) / gain
        behind = f", {layer.then}" if layer.then else ""
        now = f"std {_g(std)} ({fan:g} inputs{behind}) keeps {_g(share)} a layer; "
    return f"{now}{entry[0]} (std {_g(_per(gain**2, fan))}) keeps it:\n{entry[1]}"


def _entry(layer: Output) -> tuple[float, tuple[str, str]]:
    """The gain that a layer wants, the name of the initializer with it, and its entry in a recipe."""
    if layer.then == "tanh":
        text = f'{{type = "Xavier", gain = "5 / 3", layer = "{layer.kind}"}}'
        return 5 / 3, ("Xavier with a gain of 5/3", text)
    known = layer.then if layer.then in nonlinearities() and layer.then != "softplus" else "linear"
    slope = "(0.01)" if known == "leaky_relu" else ""
    given = "" if known == "relu" else f'nonlinearity = "{known}", '
    text = f'{{type = "Kaiming", mode = "fan_in", {given}layer = "{layer.kind}"}}'
    return gain_before(known + slope), ("Kaiming", text)


def _per(variance: float, fan: float) -> float:
    return math.sqrt(variance / fan) if fan else math.nan


def _g(number: float) -> str:
    return f"{number:.3g}"
