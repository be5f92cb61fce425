"""Expectation: the second moments that a start promises, carried from operation to operation and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, TypeGuard

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from torchinit.probing.expected import Expected, OperationCall
from torchinit.probing.propagation import RULES, SPLITS, moved, step_of_norm


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
        except (
            ArithmeticError,
            AttributeError,
            IndexError,
            KeyError,
            TypeError,
            ValueError,
            RuntimeError,
            StopIteration,
        ):
            expected = None  # an overload with other arguments
        for number, each in enumerate(made):
            one = expected if expected and number == 0 else call.unknown()
            if call.name in SPLITS:
                one = moved(call, each)
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
            each.gradient, each.gradient_noise = 0.0, 0.0
        begun = False
        for each in reversed(self._all):
            if each is last:
                begun, each.gradient, each.gradient_noise = True, second, 0.0
            if each.gradient == 0 and begun:
                continue
            for source, factor, noise in each.sources:
                # A tensor that something behind the last layer takes, too, has a gradient of which nothing is known.
                known = begun and factor is not None and each.gradient is not None and source.gradient is not None
                more = each.gradient * factor if known else None  # type: ignore[operator]
                source.gradient_noise = max(source.gradient_noise, each.gradient_noise + noise)
                source.gradient = None if more is None else source.gradient + more  # type: ignore[operator]


def _is_real(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.is_floating_point()


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _tensors(value)
        elif _is_real(value) and value.dim():
            yield value
