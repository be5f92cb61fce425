"""TI4, from TI407 on: what several weights, or a weight and its bias, do together to the signal that passes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Final, TypeAlias

import torch

from torchinit._text import abbreviate, count
from torchinit.knowledge.following import LAYER
from torchinit.knowledge.gains import gain_before
from torchinit.linting.checks.ti4_scale import FIXED
from torchinit.linting.registry import Hit, Severity, check
from torchinit.linting.target import LintedTensor, LintTarget, Statistics
from torchinit.model.layouts import Layout
from torchinit.model.names import normalize
from torchinit.model.sites import Site

_LOUDEST, _FAINTEST = 1e3, 1e-4
_FAR = 20.0
_CERTAIN = 6.0

_BOUNDED: Final = {"tanh": 1.0, "hardtanh": 1.0, "softsign": 1.0, "relu6": 6.0}
_STRAIGHT: Final = {"elu", "selu", "tanh", "hardtanh", "softsign"}
_BENT: Final = {"relu", "relu6", "leaky_relu", "prelu", "gelu", "gelu_tanh", "quick_gelu", "silu", "mish", "hardswish"}
"""The activations that are zero at zero; those that let small values pass as they are, and those that weaken them."""


def _is_judged(linted: LintedTensor) -> bool:
    """Whether there are values that an initialization answers for, not what memory held before."""
    stats = linted.statistics
    blank = not stats.numel or not stats.finite or (stats.tiny and linted.site.dtype != torch.float16)
    return linted.is_parameter and not linted.loaded and not blank


def _runs(target: LintTarget) -> Iterator[tuple[list[LintedTensor], float]]:
    """The weights of layers one behind the other, and the factor by which all of them change what passes."""
    # The signal is followed as a size alone, 1 at first: each layer multiplies it by std · sqrt(fan_in), an activation
    # by what its gain makes up for, and bounded ones cap it. Biases are left out: they carry nothing of the input. How
    # it fails: inputs that are not of size 1 before a bounded activation, pooling that averages, and rows that depend
    # on each other.
    for chain in target.likely_chains:
        weights: list[LintedTensor] = []
        signal = 1.0
        for name, kind in (*chain, ("", "end")):
            linted = target.by_name.get(normalize(f"{name}.weight")) if kind == LAYER else None
            activation = kind.partition("(")[0]
            if linted is not None and _is_judged(linted) and linted.factor:
                weights.append(linted)
                signal *= linted.factor
            elif activation in _STRAIGHT | _BENT:
                weakened = signal / gain_before(kind) if activation in _BENT else signal
                signal = min(weakened, _BOUNDED.get(activation, math.inf))
            else:
                if len(weights) > 1:
                    yield weights, signal
                weights, signal = [], 1.0


def _report(target: LintTarget, is_wrong: Callable[[float], bool]) -> Iterator[Hit]:
    sure = [{normalize(f"{name}.weight") for name, _ in chain} for chain in target.chains]
    for weights, factor in _runs(target):
        if is_wrong(factor):
            ends = torch.finfo(weights[0].site.dtype)
            is_sure = any(chain.issuperset({weight.name for weight in weights}) for chain in sure)
            layers = f"and {count(len(weights) - 1, 'layer')} to {weights[-1].name}"
            text = f"{layers} make what passes {factor:.3g} times as large"
            text += "" if is_sure else ", if they are one behind the other"
            severity: Severity = "warning" if ends.tiny < factor < ends.max or not is_sure else "error"
            remedy = FIXED if any(weight.has_own_scale for weight in weights) else ""
            yield Hit(weights[0].name, text, severity, remedy)


_SCALED = (
    'scale each by its fan, as {type = "Kaiming", mode = "fan_in", nonlinearity = "auto"} does, or put norms between;'
    " `torchinit probe` measures it"
)


@check("TI407", "error", "values", _SCALED)
def exploding_chain(target: LintTarget) -> Iterator[Hit]:
    """Layers one behind the other that together make what passes more than a thousand times as large.

    Each may be within the ten of TI404: five of N(0, 1) with 64 inputs make 33,000. The factors std · sqrt(fan_in) are
    multiplied along an ``nn.Sequential``, or a list of layers that fit, with what activations take; a norm, and what
    is not known, begins anew. A warning; an error where the number leaves the dtype. Eight like layers or more in a
    list, or runs of layers, could stand side by side: a warning that says so. Loaded values are left out.
    """
    return _report(target, lambda factor: factor > _LOUDEST)


@check("TI408", "error", "values", _SCALED)
def vanishing_chain(target: LintTarget) -> Iterator[Hit]:
    """Layers one behind the other that together make what passes less than a ten-thousandth as large.

    So is the gradient that comes back. Counted as for TI407: a dozen layers as torch itself initializes them, with
    ReLUs and without norms, do it. A warning; an error where the number leaves the dtype. A weight of zeros ends a run.
    Loaded values are left out.
    """
    return _report(target, lambda factor: factor < _FAINTEST)


@check("TI409", "error", "values", "start the bias at zero, and draw the weight")
def dead_units(target: LintTarget) -> Iterator[Hit]:
    """Units before a ReLU whose bias is so low that the weight never answers it: they pass nothing, and do not learn.

    With inputs of size 1 the weight makes std · sqrt(fan_in); a bias six times below that is out of reach. What
    follows a layer is read off the structure. A warning; an error where the weight is zero and no bias is above zero,
    since nothing is out of its reach then. Loaded values are left out.
    """
    for linted in target.drawn:
        if not linted.is_matrix or linted.site.activation not in ("relu", "relu6") or not linted.statistics.numel:
            continue
        bias, reach = target.bias_of(linted), _CERTAIN * linted.factor
        if bias is None or bias.values is None:
            if linted.is_zero and bias is None:
                text = "is zero before a ReLU, and has no bias: nothing passes, nor comes a gradient back"
                yield Hit(linted.name, text)
        elif _is_judged(bias) and bias.statistics.min <= -reach:
            dead = int((bias.values <= -reach).sum())
            text = f"{dead} of {count(bias.statistics.numel, 'unit')} never pass the ReLU: the bias is down to"
            certain = linted.is_zero and dead == bias.statistics.numel
            text = f"{text} {bias.statistics.min:.3g}, and the weight makes {linted.factor:.3g}"
            yield Hit(linted.name, text, "error" if certain else "warning")


_PAIRS: Final = (("_A", "_B"), ("lora_a", "lora_b"), ("lora_down", "lora_up"))
"""The names of two matrices that are multiplied with nothing between."""


@check("TI410", "error", "values", "draw one of the two: zero in the other alone is a start that changes nothing")
def never_learns(target: LintTarget) -> Iterator[Hit]:
    """Two matrices one behind the other that are both zero, so that neither ever gets a gradient.

    Each has the gradient that the other lets pass. Known are pairs by name (``lora_A`` and ``lora_B``) and layers that
    follow each other in an ``nn.Sequential``, with nothing or an activation between that is zero at zero, the first
    without a bias above or below zero: an error. Two of one block whose widths fit, as fc1 and fc2, or query and key,
    are a warning. What does not learn, and what was loaded, is left out.
    """
    zero = {
        linted.name: linted
        for linted in target.drawn
        if linted.is_zero and len(linted.site.shape) > 1 and linted.tensor.requires_grad
    }
    told: set[str] = set()
    for first, second, severity in (*_named_pairs(zero), *_in_a_row(target, zero), *_in_a_block(zero)):
        if told.isdisjoint({first, second}):
            told |= {first, second}
            yield Hit(first, f"is zero, and so is {second} {'beside' if severity else 'behind'} it", severity)


_Pairs: TypeAlias = Iterator[tuple[str, str, Severity | None]]


def _named_pairs(zero: Mapping[str, LintedTensor]) -> _Pairs:
    for name in zero:
        for one, other in _PAIRS:
            if one in name and name.replace(one, other) in zero:
                yield name, name.replace(one, other), None


def _in_a_row(target: LintTarget, zero: Mapping[str, LintedTensor]) -> _Pairs:
    for chain in target.chains if zero else ():
        last = ""
        for name, kind in chain:
            linted = zero.get(normalize(f"{name}.weight")) if kind == LAYER else None
            if linted is not None and last:
                yield last, linted.name, None
            bias = target.bias_of(linted) if linted is not None else None
            if linted is not None and (bias is None or bias.is_zero):
                last = linted.name
            elif kind.partition("(")[0] not in _STRAIGHT | _BENT:
                last = ""


def _in_a_block(zero: Mapping[str, LintedTensor]) -> _Pairs:
    blocks: dict[str, list[LintedTensor]] = defaultdict(list)
    for linted in zero.values():
        if linted.mixes and "." in linted.site.owner_name:
            blocks[linted.site.owner_name.rpartition(".")[0]].append(linted)
    for first, second in (pair for group in blocks.values() for pair in pairwise(group)):
        if first.site.fans("true")[1] == second.site.fans("true")[0]:
            yield first.name, second.name, "warning"


@check("TI411", "warning", "values", "a prior of p is a bias of log(p / (1 - p)): look at p, and at what draws it")
def far_bias(target: LintTarget) -> Iterator[Hit]:
    """A bias beyond 20, and ten times what its weight makes of inputs of size 1, so that the weight has no say.

    A sigmoid or a softmax is flat there: its gradient is below 2e-9. A prior of 1e-300 does it, and a bias that was
    drawn with the std of something else. Twenty is a convention; priors as small as 1e-8 pass. Loaded values are left
    out.
    """
    for linted in target.drawn:
        bias = target.bias_of(linted) if linted.is_matrix else None
        if bias is not None and _is_judged(bias) and bias.statistics.reach > max(_FAR, 10 * linted.factor):
            yield Hit(bias.name, f"reaches {bias.statistics.reach:.4g}, and its weight makes {linted.factor:.3g}")


@check("TI412", "note", "values", "take the std from Kaiming, Xavier or LeCun, or keep it knowingly")
def odd_spread(target: LintTarget) -> Iterator[Hit]:
    """Weights whose spread is what a known slip gives, and no usual formula does.

    The slips: a std of gain / fan where gain / sqrt(fan) is meant, a gain that was applied twice, and, for grouped and
    transposed convolutions and the like, fans read off the shape. A formula fits if the std is within four standard
    errors of it, which follow from the number of values; too few values to tell are left out, and so is what fits
    fan_in, fan_out or their mean, with or without strides, with a gain of 1, of a ReLU, of what follows, or of torch's
    default. One note for each slip: a std of 0.02 with 50 inputs is one by chance. Loaded values are left out.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for linted in target.drawn:
        view = linted.multiplied
        drawn = linted.is_drawn and not linted.has_own_scale
        if view is not None and view.layout is not None and drawn and linted.factor:
            found[_slip(linted.statistics, view, view.layout)].append(linted.name)
    for slip in sorted(found.keys() - {""}):
        yield Hit("", f"{slip}: {count(len(found[slip]), 'weight')}, {abbreviate(found[slip])}")


def _slip(stats: Statistics, site: Site, layout: Layout) -> str:
    """The slip that explains the spread of a weight; empty if a usual formula does, or nothing."""
    std, error = math.hypot(stats.std, stats.mean), 4 / math.sqrt(2 * (stats.numel - stats.zeros))
    gains = {1.0, math.sqrt(2), gain_before(site.activation)}
    true, shape = site.fans("true"), site.fans()
    if error > 0.2 or not all(true):
        return ""

    def fits(gains: Iterable[float], fans: Iterable[float], power: float = 0.5) -> bool:
        return any(abs(std / (gain / fan**power) - 1) <= error for gain in gains for fan in fans)

    # Of a weight that lies the other way round, what the shape shows as fan_in is fan_out: the slip itself.
    several = 1 if 0 in layout.in_axes else 2
    usual = [
        fan for fans in (true, replace(layout, stride=1).fans(site.shape)) for fan in (*fans[:several], sum(fans) / 2)
    ]
    if fits(gains, usual) or fits({1 / math.sqrt(3)}, (*usual, *shape)):
        return ""
    apart = max(abs(math.log2(one / other)) for one, other in zip(true, shape, strict=True))
    # torch's own attention counts queries, keys and values as one, hence no blocks.
    if apart >= 1 and layout.blocks == 1 and fits(gains, (*shape, sum(shape) / 2)):
        return "the spread is that of fans read off the shape, not of those that the layer connects"
    if error <= 0.025 and fits(gains, true, power=1):
        return "the std is gain / fan, not gain / sqrt(fan)"
    is_twice = error <= 0.025 and fits({gain**2 for gain in gains} - {1.0}, true)
    return "the std is that of a gain applied twice" if is_twice else ""


@check("TI413", "warning", "values", "draw both parts, each with 1 / sqrt(2) of the std")
def half_complex(target: LintTarget) -> Iterator[Hit]:
    """A complex parameter all of whose values are real, or all imaginary.

    A fill of the real part alone, or a real tensor that was converted, makes it so; a fixed filter may be meant so.
    Counted, so exact. Loaded values are left out.
    """
    for linted in target.drawn:
        stats, values = linted.statistics, linted.values
        if values is not None and values.is_complex() and stats.varied and 2 * stats.zeros >= stats.numel:
            for part, name in ((values.imag, "imaginary"), (values.real, "real")):
                if not bool(part.any()):
                    yield Hit(linted.name, f"all {count(values.numel(), f'{name} part')} are zero")
