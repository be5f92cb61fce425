"""Expectation: the second moments that a start promises, carried from operation to operation and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from functools import reduce
from operator import or_
from types import MappingProxyType
from typing import Any, Final, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from torchinit.initializers.statistics import Moments
from torchinit.model.dtensor import local_part
from torchinit.model.names import normalize
from torchinit.probing.expectations.expected import Expected, OperationCall
from torchinit.probing.expectations.propagation import RULES, SPLITS, moved, step_of_norm
from torchinit.probing.inputs import Inputs
from torchinit.probing.moments import rms

_CLOSE: Final = 0.25
"""How much of a second moment may be the mean's, for what is drawn around zero."""

_FEW: Final = 6 * 64
"""A matrix of fewer values has parts that are uneven by chance."""

_MISFITS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError, StopIteration)
"""What a rule raises that meets an overload with other arguments."""


# Each operation of torch is seen where it is carried out, so that code of any kind is followed as it runs, and on the
# meta device at no cost. What is followed is not a graph but two numbers for each tensor: E[x²], and how much of it is
# luck. A layer multiplies E[x²] by connections / outputs · E[w²]; an activation makes of N(0, q) what it does on a
# grid of points; independent parts are added. Whatever else there is (a softmax, a mean, a recurrent layer) is not
# known, and a norm starts anew. Back again, the gradient's E[g²] takes the same factors from outputs to inputs, from
# the last layer on: how large it is there is the loss's affair, not that of the weights.
#
# How it fails: weights that depend on what they meet (trained ones), units that are far from normal (few inputs, heavy
# tails), and zero padding on tiny maps, whose borders are counted, but not told apart.
class Expectations:
    """The expectations of the tensors that operations make: :meth:`see` follows one, :meth:`of` asks for a tensor's.

    ``known`` are the moments of parameters and inputs by the identity of their tensors, which must outlive this.
    """

    def __init__(self, known: Mapping[int, Expected]) -> None:
        self._known = known
        self._all: list[Expected] = []
        self._made: MutableMapping[Tensor, Expected] = WeakTensorKeyDictionary()

    def of(self, tensor: Tensor) -> Expected | None:
        """What is expected of a tensor; None of one that no operation made."""
        return self._known.get(id(tensor)) or self._made.get(tensor)

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Follow an operation that has been carried out."""
        made = [each for each in (result if isinstance(result, (tuple, list)) else (result,)) if _is_real(each)]
        if not made or id(made[0]) in self._known:
            return
        given = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
        tensors = [*_tensors(given.values())]
        sources = [self.of(each) or Expected(None, each.numel()) for each in tensors]
        numbers = {key: self._number(value) for key, value in given.items() if _is_real(value) and not value.dim()}
        call = OperationCall(func, given | numbers, made, sources, tensors)
        try:
            expected = RULES.get(call.name, OperationCall.unknown)(call)
            expected.norm = step_of_norm(call)
        except _MISFITS:
            expected = None
        for number, each in enumerate(made):
            one = expected if expected and number == 0 else call.unknown()
            if call.name in SPLITS:
                one = moved(call, each)
            if not one.draws:  # a layer knows its own
                one.fresh = reduce(or_, (source.fresh for source in sources), 0)
                one.draws = reduce(or_, (source.draws for source in sources), 0)
            self._all.append(one)
            self._made[each] = one

    def _number(self, scalar: Tensor) -> float | None:
        """The size of a scalar, None where it is not known, or a device would have to be waited for."""
        known = self.of(scalar)
        if known is not None:
            return known.rms
        return float(scalar.detach()) if scalar.device.type == "cpu" else None

    def pass_back(self, last: Expected, second: float) -> None:
        """Carry a gradient of this second moment from one tensor back to all that it is made of."""
        for each in self._all:
            each.gradient, each.gradient_noise, each.gradient_shift = 0.0, 0.0, 0.0
        begun = False
        # Results lie in the order of the run, so that all that was made of one comes before it here, and its gradient
        # is whole when it is passed on. What was made behind the last layer passes on that nothing is known.
        for each in reversed(self._all):
            if each is last:
                begun, each.gradient, each.gradient_noise = True, second, 0.0
            if each.gradient == 0 and begun:
                continue
            for source, factor, noise, *shift in each.sources:
                # A tensor that something behind the last layer takes, too, has a gradient of which nothing is known.
                known = begun and factor is not None and each.gradient is not None and source.gradient is not None
                more = each.gradient * factor if known else None  # type: ignore[operator]
                source.gradient_noise = max(source.gradient_noise, each.gradient_noise + noise)
                # One pass forward is too large or too small for all layers at once, so what it shifts is added up.
                source.gradient_shift = max(source.gradient_shift, each.gradient_shift + sum(shift), key=abs)
                source.gradient = None if more is None else source.gradient + more  # type: ignore[operator]


def sizes_of(
    model: nn.Module, planned: Mapping[str, Moments | None] = MappingProxyType({})
) -> dict[str, tuple[float, float]]:
    """The mean and the RMS of each parameter: as planned, else as it is; of one without values none."""
    found: dict[str, tuple[float, float]] = {}
    for path, parameter in model.named_parameters():
        name, values = normalize(path), local_part(parameter.detach())
        if name in planned:
            moments = planned[name]
            if moments is not None and moments.mean is not None and moments.std is not None:
                found[name] = moments.mean, math.hypot(moments.mean, moments.std)
        elif values.is_floating_point() and not values.is_meta and values.numel() and _is_even(values):
            found[name] = _size_of(values)
    return found


def _is_even(values: Tensor) -> bool:
    """Whether all parts of a matrix are of one size; queries, keys and values side by side may not be."""
    parts = [rms(part) for part in values.chunk(6)] if values.dim() > 1 and values.numel() >= _FEW else [1.0]
    return max(parts) <= 2 * min(parts)


def _size_of(values: Tensor) -> tuple[float, float]:
    return float(values.mean(dtype=torch.float32)), rms(values)


def known_of(
    model: nn.Module, sizes: Mapping[str, tuple[float, float]], inputs: Inputs, measured: Inputs | None = None
) -> dict[int, Expected]:
    """What is expected of the parameters of a model and of its inputs, by the identity of their tensors."""
    known: dict[int, Expected] = {}
    for path, parameter in model.named_parameters():
        name, shape = normalize(path), tuple(parameter.shape)
        # A bit for its draw, and one for that of its transpose.
        known[id(parameter)] = expected_of(
            *sizes.get(name, (math.nan, math.nan)), shape, 1 << 2 * len(known), weight=True
        )
    for tensor, values in zip(inputs.tensors, (measured or inputs).tensors, strict=True):
        if tensor.is_floating_point() and tensor.numel():
            size = (0.0, 1.0) if values.is_meta else _size_of(values)
            known[id(tensor)] = expected_of(*size, tuple(tensor.shape), 1 << 2 * len(known), weight=False)
    return known


def expected_of(mean: float, rms: float, shape: Sequence[int], draw: int, *, weight: bool) -> Expected:
    """What is expected of a parameter, or of an input, with these moments; what is one number throughout has no draw.

    The inputs of a unit add up the mean of a matrix, so little of it is much, but for what chance leaves of a few rows.
    """
    numel, is_matrix = math.prod(shape), sum(size > 1 for size in shape) > 1
    fan = numel / shape[0] if weight and is_matrix else 1.0
    # A sum over inputs of one sign has fan² mean² from the mean, and fan E[w²] from the rest: what counts is fan times
    # the mean's share of E[w²]. Of weights that are drawn around zero chance makes it 1 / rows, give or take: 9 / rows
    # are three standard errors.
    centered = mean**2 * fan <= max(_CLOSE, 9 / shape[0] if fan > 1 else 0.0) * rms**2
    second = rms**2 if centered or fan == 1 else None
    draw = 0 if rms <= abs(mean) * (1 + 1e-6) else draw
    units = shape[-1] if shape else 1
    return Expected(second, numel, units, 0.0, centered, centered, weight, fresh=draw, draws=draw)


def _is_real(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.is_floating_point()


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _tensors(value)
        elif _is_real(value) and value.dim():
            yield value
