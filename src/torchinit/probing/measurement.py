"""Measurement: the numbers that a pass forward and back shows, and the chains that a signal passes, as plain values."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final, Literal

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from torchinit._text import fold_numbers
from torchinit.probing.moments import BatchMoments, NotFinite

_FLOOR: Final = 0.7
"""How far a logarithm may lie from its prediction beside the noise: a factor of two."""


@dataclass(frozen=True, slots=True)
class Output:
    """The output of a call of a module, in order of execution: its moments, and those of the gradient that reaches it.

    ``call`` counts the calls of a module that is called several times; ``weighted`` marks a layer with a matrix of its
    own, ``then`` is the nonlinearity that was computed next. ``predicted`` and ``predicted_gradient`` are the RMS that
    the start promises (:func:`torchinit.probing.predict`), None where that is not known; ``noise`` and
    ``gradient_noise`` are the standard deviations of their logarithms from draw to draw.
    """

    module: str
    kind: str
    call: int
    shape: tuple[int, ...]
    forward: BatchMoments
    gradient: BatchMoments | None = None
    weighted: bool = False
    then: str = ""
    predicted: float | None = None
    predicted_gradient: float | None = None
    noise: float = math.nan
    gradient_noise: float = math.nan

    @property
    def name(self) -> str:
        """The module, with the number of the call if it is not the first."""
        return f"{self.module or '(model)'}{f' call {self.call + 1}' if self.call else ''}"

    @property
    def agrees(self) -> bool | None:
        """Whether the RMS is as predicted: |ln(measured / predicted)| <= 3 noise + 0.7; None if none was predicted."""
        return _agree(self.forward.rms, self.predicted, self.noise)

    @property
    def gradient_agrees(self) -> bool | None:
        """Whether the gradient's RMS is as predicted."""
        return _agree(self.gradient.rms if self.gradient else None, self.predicted_gradient, self.gradient_noise)


def _agree(measured: float | None, predicted: float | None, noise: float) -> bool | None:
    if predicted is None or measured is None or not math.isfinite(measured):
        return None
    if min(measured, predicted) <= 0:
        return measured == predicted
    return abs(math.log(measured / predicted)) <= 3 * noise + _FLOOR


@dataclass(frozen=True, slots=True)
class Units:
    """The units behind a ReLU, a tanh or a sigmoid: the shares that are dead and saturated, among so many ``rows``.

    A unit is dead if it is zero in all rows; a value is saturated beyond 0.99 of a tanh, and outside 0.01 to 0.99 of a
    sigmoid.
    """

    module: str
    function: str
    rows: int
    dead: float
    saturated: float


@dataclass(frozen=True, slots=True)
class Attention:
    """The logits of a softmax over positions: their standard deviation, the mean entropy in parts of its maximum, and
    the mean of the largest probability.
    """

    module: str
    std: float
    entropy: float
    largest: float


@dataclass(frozen=True, slots=True)
class ParameterGradient:
    """A trained parameter: its RMS, that of its gradient (None: the loss does not depend on it), and what both show.

    ``stays_zero`` says that the gradient is zero, also after a few steps of all others; ``equal_rows`` that all units
    have the same weights and the same gradients; ``below`` is the share of the gradient's elements that the dtype of
    the training cannot hold, zeros included; ``update`` the RMS of an optimizer's first step in parts of the weight's.
    """

    name: str
    shape: tuple[int, ...]
    rms: float
    gradient: float | None
    stays_zero: bool = False
    equal_rows: bool = False
    below: float = 0.0
    update: float | None = None


@dataclass(frozen=True, slots=True)
class TimeSteps:
    """The RMS of the gradient at each step of a recurrent layer's input, where the loss reads the last step alone."""

    module: str
    gradients: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SignalChain:
    """Outputs one behind the other: ``blocks`` of a deep model that pass a stream on, or its ``layers``.

    ``woken`` is the gradient after the step in which one came back at all, where none does in the first.
    """

    kind: Literal["blocks", "layers"]
    outputs: tuple[Output, ...]
    woken: float | None = None

    @property
    def signal(self) -> float:
        """The logarithm of the last signal in parts of the first; NaN if there is none."""
        return _log_ratio([each.forward.signal for each in self.outputs])

    @property
    def growth(self) -> float:
        """The logarithm of the last RMS in parts of the first."""
        return _log_ratio([each.forward.rms for each in self.outputs])

    @property
    def gradient(self) -> float:
        """The logarithm of the first gradient in parts of the last; NaN where none comes back from the last."""
        first = _log_ratio([each.gradient.rms for each in reversed(self.outputs) if each.gradient])
        return self.woken if math.isnan(first) and self.woken is not None else first

    @property
    def spread(self) -> float:
        """The decimal logarithm of the samples' spread at the end, in parts of that at the start."""
        return _log_ratio([each.forward.spread for each in self.outputs]) / math.log(10)


def _log_ratio(values: Sequence[float]) -> float:
    """The logarithm of the last value in parts of the first that is not zero; NaN without two values."""
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2 or not known[0] > 0:
        return math.nan
    if math.isinf(known[-1]) or math.isinf(known[0]):
        return math.nan if math.isinf(known[0]) else math.inf
    return math.log(known[-1] / known[0]) if known[-1] > 0 else -math.inf


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss: where it comes from, its value, and of a cross entropy the number of classes and the logits' RMS.

    ``best`` is the loss of answers that say nothing of the input: ln C, or the entropy of the prior that was given.
    ``sure`` says that the output is known to be logits, not taken as such; ``odd`` names a part of the model's output
    beside the one that the loss is taken of, of which not all values are finite.
    """

    text: str
    loss: float
    classes: int = 0
    logits: float = math.nan
    best: float = math.nan
    sure: bool = False
    odd: str = ""


@dataclass(frozen=True, slots=True)
class Measurement:
    """All that a pass shows; ``asleep`` counts the gradients that are zero in the first step and wake afterwards.

    ``losses`` are those of the optimizer's steps that were tried; ``small_batch`` says that a batch norm saw too few
    samples for its gradients to mean anything; ``dtype`` is that of the training, ``largest`` its largest number;
    ``fans`` are the inputs of a unit of each layer; ``fixed`` the RMS of each weight that has one size whatever is
    drawn, as under a spectral norm, by its layer; ``not_finite`` the tensors of the model, and the inputs, that hold
    NaN or infinities.

    >>> Measurement("none", 16, Objective("none", 0.0)).chains
    ()
    """

    inputs: str
    samples: int
    objective: Objective
    outputs: tuple[Output, ...] = ()
    chains: tuple[SignalChain, ...] = ()
    units: tuple[Units, ...] = ()
    attentions: tuple[Attention, ...] = ()
    parameters: tuple[ParameterGradient, ...] = ()
    time_steps: tuple[TimeSteps, ...] = ()
    losses: tuple[float, ...] = ()
    asleep: int = 0
    small_batch: bool = False
    dtype: str = ""
    largest: float = math.inf
    fans: Mapping[str, float] = field(default_factory=dict)
    not_finite: tuple[NotFinite, ...] = ()
    fixed: Mapping[str, float] = field(default_factory=dict)


_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_APART = re.compile(r"expert|adapter|(^|\.)heads?(\.|$)")
"""Names of lists whose members stand beside each other."""


def chains_among(
    model: nn.Module, outputs: Sequence[Output], series: Sequence[Sequence[str]]
) -> tuple[SignalChain, ...]:
    """The chains of a model whose modules gave these outputs: one of blocks for each tower, else one of its layers.

    Compared are the blocks of a deep model, since what lies inside a branch may be as small as its builder likes. They
    are the outermost modules of a class of which there are several with matrices, with those of odd classes beside them
    in the same list. A model without such has its layers with weights, ``series`` of the names of outputs.
    """
    names = blocks_of(model)
    towers: dict[str, list[Output]] = defaultdict(list)
    for output in outputs:
        if output.module in names:
            towers[tower_of(output.module)].append(output)
    long = [SignalChain("blocks", tuple(_each_once(tower))) for tower in towers.values() if len(tower) > 1]
    if long:
        return tuple(long)
    by_name = {output.name: output for output in outputs}
    lines = (tuple(by_name[name] for name in names if name in by_name) for names in series)
    return tuple(SignalChain("layers", line) for line in lines if len(line) > 1)


def _each_once(tower: Iterable[Output]) -> list[Output]:
    """The outputs of one depth each; of a block that is run in parallel, as a twin tower, the first call."""
    return [next(group) for _, group in groupby(tower, key=lambda output: output.module)]


def blocks_of(model: nn.Module) -> set[str]:
    """The names of the blocks of a deep model."""
    classes = Counter(type(module) for module in model.modules() if _may_be_block(module))
    several = {cls for cls, number in classes.items() if number > 2}
    found: set[str] = set()

    def parts(module: nn.Module) -> bool:
        """Whether it holds what would else be taken for blocks."""
        return any(type(each) in several and _may_be_block(each) for each in module.modules() if each is not module)

    def visit(module: nn.Module, path: str) -> None:
        for key, child in module.named_children():
            name = f"{path}.{key}".removeprefix(".")
            if _may_be_block(child) and (type(child) in several or (_is_one_of_two(child, module) and parts(child))):
                found.add(name)
                if isinstance(module, _LISTS):  # Jamba and others have blocks of another kind in between
                    beside = ((other, each) for other, each in module.named_children() if _may_be_block(each))
                    found.update(f"{path}.{other}".removeprefix(".") for other, _ in beside)
            elif name not in found:
                visit(child, name)

    visit(model, "")
    return {_at_level(name, found) for name in found if not _APART.search(name)}


def _is_one_of_two(module: nn.Module, parent: nn.Module) -> bool:
    """Whether a module has a sibling of its class in a list."""
    return isinstance(parent, _LISTS) and sum(type(each) is type(module) for each in parent.children()) > 1


def _at_level(name: str, found: Iterable[str]) -> str:
    """The block that stands where most of its tower do: of one of an odd class a part was found, not itself."""
    levels = Counter(fold_numbers(other) for other in found if tower_of(other) == tower_of(name))
    usual = levels.most_common(1)[0][0]
    is_part = fold_numbers(name).startswith(f"{usual}.")
    return ".".join(name.split(".")[: usual.count(".") + 1]) if is_part else name


def tower_of(name: str) -> str:
    """The name before the first number: that of the encoder's blocks, or the decoder's."""
    return re.split(r"\d", name, maxsplit=1)[0]


def _may_be_block(module: nn.Module) -> bool:
    """Whether a module holds matrices in layers of its own, and is neither a list of modules nor a stage of blocks."""
    is_list = type(module) in _LISTS or isinstance(module, ParametrizationList)
    matrices = sum(parameter.dim() > 1 for parameter in module.parameters())
    return not is_list and bool(module._modules) and matrices > 0 and not _is_stage(module)


def _is_stage(module: nn.Module) -> bool:
    """Whether a module holds a list of several modules of one class, which are blocks themselves."""
    for path, inner in module.named_modules():
        if isinstance(inner, _LISTS) and not _APART.search(path):
            kinds = Counter(type(child) for child in inner.children() if child._modules)
            if any(number > 1 for number in kinds.values()):
                return True
    return False
