"""Expectation: the second moments that a start promises, carried from operation to operation and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor

_MARK: Final = "_torchinit_expected"
_CLOSE: Final = 0.25
"""How much of a second moment may be the mean's, for what is drawn around zero."""


@dataclass(eq=False, slots=True)
class Expected:
    """What is expected of a tensor: its second moment, None where that is not known, over how many ``units``.

    ``noise`` is the variance of ln RMS from draw to draw. ``normal`` says that the elements are normal around zero,
    ``centered`` only the latter. ``sources`` are the tensors that it is made of, each with the factor by which a
    gradient's second moment reaches it (None: not known), and with the noise that this adds. ``root`` is the tensor
    that it is a function of, element by element; a ``weight`` is drawn, and independent of what it meets.
    """

    second: float | None
    size: int
    units: int = 1
    noise: float = 0.0
    normal: bool = False
    centered: bool = False
    weight: bool = False
    root: object = None
    sources: list[tuple[Expected, float | None, float]] = field(default_factory=list)
    gradient: float | None = 0.0
    gradient_noise: float = 0.0

    def __post_init__(self) -> None:
        self.root = self.root or self

    @property
    def rms(self) -> float | None:
        """The root of the second moment."""
        return None if self.second is None or not math.isfinite(self.second) else math.sqrt(self.second)


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

    def of(self, tensor: Any) -> Expected | None:
        """What is expected of a tensor; None of one that no operation made."""
        found = self._known.get(id(tensor)) or getattr(tensor, _MARK, None)
        return found if isinstance(found, Expected) else None

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Follow an operation that has been carried out."""
        made = [each for each in (result if isinstance(result, (tuple, list)) else (result,)) if _is_real(each)]
        if not made or id(made[0]) in self._known:
            return
        name = func.overloadpacket.__name__.rstrip("_")
        given = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
        tensors = [*_tensors(given.values())]
        sources = [self.of(each) or Expected(None, each.numel()) for each in tensors]
        call = OperationCall(func, given, made, sources, tensors)
        try:
            expected = _RULES.get(name, _unknown)(call)
        except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError):
            expected = None  # an overload with other arguments
        for number, each in enumerate(made):
            one = expected if expected and (number == 0 or name in _SPLITS) else _unknown(call)
            if name in _SPLITS and len(made) > 1:
                one = _moved(call, each)
            self._all.append(one)
            setattr(each, _MARK, one)

    def pass_back(self, last: Expected, second: float) -> None:
        """Carry a gradient of this second moment from one tensor back to all that it is made of."""
        for each in self._all:
            each.gradient, each.gradient_noise = 0.0, 0.0
        last.gradient = second
        begun = False
        for each in reversed(self._all):
            begun |= each is last
            if each.gradient == 0 and begun:
                continue
            for source, factor, noise in each.sources:
                # A tensor that something behind the last layer takes, too, has a gradient of which nothing is known.
                known = begun and factor is not None and each.gradient is not None and source.gradient is not None
                more = each.gradient * factor if known else None  # type: ignore[operator]
                source.gradient_noise = max(source.gradient_noise, each.gradient_noise + noise)
                source.gradient = None if more is None else source.gradient + more  # type: ignore[operator]


class OperationCall(NamedTuple):
    """A call of an operation: its arguments by name, the tensors it made, those it took, and what is known of those."""

    func: Any
    given: Mapping[str, Any]
    made: Sequence[Tensor]
    sources: Sequence[Expected]
    tensors: Sequence[Tensor]

    @property
    def size(self) -> int:
        return self.made[0].numel()

    def at(self, name: str) -> Expected | None:
        """What is expected of the tensor that is given by this name."""
        at = [index for index, each in enumerate(self.tensors) if each is self.given.get(name)]
        return self.sources[at[0]] if at else None


_Rule: TypeAlias = Callable[[OperationCall], Expected]


def expected_of(mean: float, rms: float, shape: Sequence[int], *, weight: bool) -> Expected:
    """What is expected of a parameter, or of an input, with these moments.

    The inputs of a unit add up the mean of a matrix, so little of it is much.
    """
    numel, is_matrix = math.prod(shape), sum(size > 1 for size in shape) > 1
    fan = numel / shape[0] if weight and is_matrix else 1.0
    centered = mean**2 * fan <= _CLOSE * rms**2
    second = rms**2 if centered or fan == 1 else None
    return Expected(second, numel, shape[-1] if shape else 1, 0.0, centered, centered, weight)


def _is_real(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _tensors(value)
        elif _is_real(value) and value.dim():
            yield value


def _unknown(call: OperationCall) -> Expected:
    return Expected(None, call.size, sources=[(each, None, 0.0) for each in call.sources if not each.weight])


# --- layers ----------------------------------------------------------------------------------------------------------


def _layer(call: OperationCall, x: Expected, weight: Expected, connections: float, units: int, fan: float) -> Expected:
    """The outputs of a layer: each adds up independent products, and is normal."""
    bias = call.at("bias") or (call.at("self") if "mat1" in call.given else None)
    if weight.second is None or not weight.weight:
        return _unknown(call)
    made, back = connections / call.size * weight.second, connections / x.size * weight.second
    second = None if x.second is None else x.second * made
    offset = 0.0 if bias is None else bias.second
    if second is not None:
        second = None if offset is None else second + offset
    normal = bias is None or bias.centered
    noise = x.noise + 0.5 / units
    return Expected(second, call.size, units, noise, normal, normal, sources=[(x, back, 0.5 / fan)])


def _matrix(call: OperationCall) -> Expected:
    first, second = [call.given[key] for key in (("mat1", "mat2") if "mat1" in call.given else ("self", "mat2"))]
    sides = [call.sources[next(at for at, each in enumerate(call.tensors) if each is side)] for side in (first, second)]
    x, weight = sides if sides[1].weight else sides[::-1]
    fan = first.shape[-1]
    if x.weight and weight.weight:
        return _unknown(call)
    return _layer(call, x, weight, call.size * fan, call.made[0].shape[-1 if sides[1].weight else -2], fan)


def _convolution(call: OperationCall) -> Expected:
    given, x = call.given, call.sources[0]
    weight = given["weight"]
    small, large = given["input"].shape[2:], call.made[0].shape[2:]
    if given["transposed"]:
        small, large = large, small  # the roles of input and output are exchanged
    taps = 1.0
    for axis, (inside, places) in enumerate(zip(small, large, strict=True)):
        stride, padding, dilation = (
            int(given[key][axis % len(given[key])]) for key in ("stride", "padding", "dilation")
        )
        at = torch.arange(places)[:, None] * stride - padding + torch.arange(weight.shape[2 + axis]) * dilation
        taps *= int(((at >= 0) & (at < inside)).sum())
    connections = given["input"].shape[0] * taps * weight.shape[0] * weight.shape[1]
    fan = call.at("weight")
    units = call.made[0].shape[1]
    return _layer(call, x, fan or x, connections, units, given["input"].shape[1])


def _lookup(call: OperationCall) -> Expected:
    table, width = call.sources[0], call.made[0].shape[-1]
    known = Expected(table.second, call.size, width, 0.5 / width, table.normal, table.centered)
    return known if table.weight else _unknown(call)


# --- element by element ----------------------------------------------------------------------------------------------


def _grid() -> tuple[Tensor, Tensor]:
    z = torch.linspace(-8, 8, 1601, dtype=torch.float64, device="cpu")
    mass = torch.exp(-z * z / 2)
    return z, mass / mass.sum()


def _activation(call: OperationCall) -> Expected:
    """What a function makes of N(0, q): its second moment, and that of its slope, by the sum over a grid."""
    x = call.sources[0]
    if x.second is None or not x.normal or len(call.tensors) != 1 or not 0 < x.second < math.inf:
        return _unknown(call)
    z, mass = _grid()
    others = {key: value for key, value in call.given.items() if value is not call.tensors[0]}
    first = next(key for key, value in call.given.items() if value is call.tensors[0])
    apply = call.func if not call.func._schema.is_mutable else getattr(torch.ops.aten, _plain(call.func)).default

    def moments(second: float) -> tuple[float, float, float, float, float]:
        scale = math.sqrt(second)
        step = scale * 1e-5
        value, *beside = (
            apply(**{first: points}, **others) for points in (z * scale, z * scale + step, z * scale - step)
        )
        slopes = [((each - value) / step).square() for each in beside]
        square = (slopes[0] + slopes[1]) / 2
        sums = (value.square(), value**4, square, square.square(), value)
        return tuple(float((mass * each).sum()) for each in sums)  # type: ignore[return-value]

    second, fourth, slope, slope4, mean = moments(x.second)
    if not second > 0:
        return Expected(0.0, call.size, x.units, sources=[(x, slope, 0.0)])
    near = moments(x.second * 1.02)
    turn = math.log(near[0] / second) / math.log(1.02)  # by how much noise of the input is noise of the output
    back = math.log(near[2] / slope) / math.log(1.02) if slope > 0 and near[2] > 0 else 0.0
    noise = max(turn**2 * x.noise + (fourth / second**2 - 3) / 4 / x.units, 0.0)
    lost = max((3 * slope4 / slope**2 - 3) / 4 / x.units, 0.0) + back**2 * x.noise if slope > 0 else 0.0
    return Expected(
        second, call.size, x.units, noise, centered=mean**2 < 1e-6 * second, root=x.root, sources=[(x, slope, lost)]
    )


def _plain(func: Any) -> str:
    return str(func.overloadpacket.__name__).rstrip("_")


def _sum(call: OperationCall) -> Expected:
    scale = float(call.given.get("alpha", 1))
    one = call.sources[0]
    if len(call.sources) == 1:
        number = call.given.get("other", 0.0)
        offset = scale * float(number)
        known = one.second is not None and (one.centered or not offset)
        second = one.second + offset**2 if known else None  # type: ignore[operator]
        return Expected(
            second, call.size, one.units, one.noise, one.normal and not offset, one.centered and not offset,
            root=one.root, sources=[(one, call.size / one.size, 0.0)],
        )  # fmt: skip
    other = call.sources[1]
    sources = [(each, call.size / each.size * factor, 0.0) for each, factor in ((one, 1.0), (other, scale**2))]
    sources = [each for each in sources if not each[0].weight]
    parts = one.second, other.second
    apart = (one.centered or other.centered) and one.root is not other.root
    if parts[0] is None or parts[1] is None or not apart:
        return Expected(None, call.size, sources=sources)  # type: ignore[arg-type]
    shares = parts[0], parts[1] * scale**2
    total = shares[0] + shares[1]
    # What a branch adds depends on the stream it was taken from, and has its noise.
    both = 2 * shares[0] * shares[1] * min(one.noise, other.noise)
    noise = (shares[0] ** 2 * one.noise + shares[1] ** 2 * other.noise + both) / total**2 if total else 0.0
    every = one.centered and other.centered
    units = max(one.units, other.units)
    return Expected(total, call.size, units, noise, one.normal and other.normal, every, sources=sources)  # type: ignore[arg-type]


def _product(call: OperationCall) -> Expected:
    one = call.sources[0]
    if len(call.sources) == 1:
        number = call.given.get("other", 1.0)
        factor = float(number) ** (-2 if _plain(call.func) == "div" else 2)
        second = None if one.second is None else one.second * factor
        return Expected(
            second, call.size, one.units, one.noise, one.normal, one.centered, root=one.root,
            weight=one.weight, sources=[(one, factor, 0.0)],
        )  # fmt: skip
    other = call.sources[1]
    if _plain(call.func) == "div" or one.root is other.root or one.second is None or other.second is None:
        return _unknown(call)
    sources = [
        (each, call.size / each.size * factor, noise)
        for each, factor, noise in ((one, other.second, other.noise), (other, one.second, one.noise))
        if not each.weight
    ]
    normal = (one.normal and other.weight) or (other.normal and one.weight)
    centered = one.centered or other.centered
    return Expected(
        one.second * other.second, call.size, max(one.units, other.units), one.noise + other.noise, normal, centered,
        sources=sources,
    )  # fmt: skip


def _norm(call: OperationCall) -> Expected:
    """A norm forgets what was before: its gain and its shift decide."""
    x, gain, shift = call.sources[0], call.at("weight"), call.at("bias")
    factor = 1.0 if gain is None else gain.second
    offset = 0.0 if shift is None else shift.second
    second = None if factor is None or offset is None else factor + offset
    centered = x.normal and not offset
    over_batch = "batch" in _plain(call.func)
    known = factor is not None and x.second and x.normal and not over_batch
    back = factor / x.second if known else None  # type: ignore[operator]
    return Expected(
        second, call.size, x.units if x.second else call.made[0].shape[-1], 0.0, centered, not offset,
        root=x.root, sources=[(x, back, x.noise)],
    )  # fmt: skip


# --- places ----------------------------------------------------------------------------------------------------------


def _moved(call: OperationCall, made: Tensor | None = None) -> Expected:
    """The same elements in other places, or a part of them; of a part the rest counts as another tensor."""
    x, size = call.sources[0], call.size if made is None else made.numel()
    whole = size >= x.size
    return Expected(
        x.second, size, x.units, x.noise, x.normal, x.centered, x.weight, x.root if whole else None,
        sources=[(x, size / x.size, 0.0)],
    )  # fmt: skip


def _joined(call: OperationCall) -> Expected:
    parts = call.sources
    known = [each.second for each in parts if each.second is not None]
    second = sum(each.size * (each.second or 0.0) for each in parts) / call.size if len(known) == len(parts) else None
    noise = max(each.noise for each in parts)
    alike = second is not None and max(known) < 2 * min(known)
    return Expected(
        second, call.size, sum(each.units for each in parts), noise, alike and all(each.normal for each in parts),
        all(each.centered for each in parts), all(each.weight for each in parts),
        sources=[(each, 1.0, 0.0) for each in parts],
    )  # fmt: skip


def _averaged(call: OperationCall) -> Expected:
    x = call.sources[0]
    return Expected(None, call.size, x.units, sources=[(x, (call.size / x.size) ** 2, 0.0)])


def _pooled(call: OperationCall) -> Expected:
    """The largest of each window: between that of one value and that of as many independent ones."""
    x, window, steps = call.sources[0], call.given["kernel_size"], call.given.get("stride") or call.given["kernel_size"]
    if list(window) != list(steps) or x.second is None:
        return Expected(None, call.size, x.units, sources=[(x, call.size / x.size, 0.0)])
    z, mass = _grid()
    number = x.size / call.size
    below = (mass.cumsum(0) - mass / 2) ** (number - 1) * number * mass
    value = z if x.normal else z.clamp(min=0)
    ratio = float((below * value.square()).sum() / (mass * value.square()).sum())
    wide = math.log(ratio) / 4  # of ln RMS, from the middle to both ends
    return Expected(
        x.second * math.sqrt(ratio), call.size, x.units, x.noise + wide**2 / 3,
        sources=[(x, call.size / x.size, 0.0)],
    )  # fmt: skip


def _padded(call: OperationCall) -> Expected:
    x = call.sources[0]
    second = None if x.second is None else x.second * x.size / call.size
    return Expected(second, call.size, x.units, x.noise, x.normal, x.centered, sources=[(x, 1.0, 0.0)])


_SPLITS: Final = frozenset({"split", "split_with_sizes", "unbind", "chunk"})
_MOVES: Final = [
    "view",
    "_unsafe_view",
    "reshape",
    "permute",
    "transpose",
    "t",
    "clone",
    "expand",
    "slice",
    "select",
    "squeeze",
    "unsqueeze",
    "_to_copy",
    "detach",
    "alias",
    "contiguous",
    "repeat",
    "roll",
    "flip",
    "index_select",
    "lift_fresh",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "pixel_shuffle",
    "pixel_unshuffle",
    "native_dropout",
    "split",
    "split_with_sizes",
    "unbind",
    "chunk",
]
_FUNCTIONS: Final = [
    "abs",
    "celu",
    "clamp",
    "clamp_min",
    "cos",
    "elu",
    "exp",
    "gelu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "mish",
    "pow",
    "relu",
    "sigmoid",
    "silu",
    "sin",
    "softplus",
    "square",
    "tanh",
]
_NORMS: Final = [
    "native_batch_norm",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "_native_batch_norm_legit",
    "_batch_norm_with_update",
    "native_layer_norm",
    "native_group_norm",
    "_fused_rms_norm",
]
_RULES: Final[dict[str, _Rule]] = {
    **dict.fromkeys(_MOVES, _moved), **dict.fromkeys(_FUNCTIONS, _activation), **dict.fromkeys(_NORMS, _norm),
    **dict.fromkeys(("addmm", "mm", "bmm", "mv"), _matrix), "convolution": _convolution, "embedding": _lookup,
    **dict.fromkeys(("add", "sub"), _sum), **dict.fromkeys(("mul", "div"), _product),
    **dict.fromkeys(("cat", "stack"), _joined),
    **dict.fromkeys(("mean", "avg_pool2d", "_adaptive_avg_pool2d"), _averaged),
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices"), _pooled), "constant_pad_nd": _padded,
}  # fmt: skip
