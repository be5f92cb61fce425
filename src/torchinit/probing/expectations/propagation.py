"""Propagation: what each operation of torch makes of the second moments of its inputs, and of a gradient's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, TypeAlias

import torch
from torch import Tensor

from torchinit.probing.expectations.expected import Expected, OperationCall, are_apart

Rule: TypeAlias = Callable[[OperationCall], Expected]


# --- layers ----------------------------------------------------------------------------------------------------------


def _layer(
    call: OperationCall, x: Expected, weight: Expected, connections: float, units: int, fan: float, *, turned: bool
) -> Expected:
    """The outputs of a layer: each adds up independent products, and is normal."""
    bias = call.at("bias") or (call.at("self") if "mat1" in call.given else None)
    fresh, other_way = (weight.draws << 1, weight.draws) if turned else (weight.draws, weight.draws << 1)
    of_one_sign = not weight.centered and connections > call.size
    if weight.second is None or not weight.weight or of_one_sign or x.draws & other_way:
        return call.unknown()
    fresh |= bias.fresh if bias else 0
    draws = x.draws | fresh if weight.draws else 0  # by a weight that nobody drew nothing is random anew
    # An output adds up independent products x w: E[y²] is how many they are, times E[x²] E[w²]. `connections` counts
    # the products of all outputs together, so that borders, strides and groups are what they are. A gradient comes back
    # by the same connections, shared out among the inputs. The square of an RMS over n normal units has a variance of 2
    # / n of its own square, so ln RMS has one of 0.5 / n: n are the units of the outputs, and on the way back those of
    # the inputs.
    made, back = connections / call.size * weight.second, connections / x.size * weight.second
    second = None if x.second is None else x.second * made
    offset = 0.0 if bias is None else bias.second
    if second is not None:
        second = None if offset is None else second + offset
    normal = bias is None or bias.centered
    noise = x.noise + 0.5 / units
    return Expected(
        second, call.size, units, noise, normal, normal, sources=[(x, back, 0.5 / fan)],
        fresh=fresh, draws=draws,
    )  # fmt: skip


def _matrix(call: OperationCall) -> Expected:
    first, second = [call.given[key] for key in (("mat1", "mat2") if "mat1" in call.given else ("self", "mat2"))]
    sides = [call.sources[next(at for at, each in enumerate(call.tensors) if each is side)] for side in (first, second)]
    x, weight = sides if sides[1].weight else sides[::-1]
    if sides[0].norm and sides[0].norm[0] == "weights" and not sides[1].weight:
        return _attention(call, sides[1], first.shape[-1])
    fan = first.shape[-1]
    if (x.weight and weight.weight) or {call.given.get("alpha", 1), call.given.get("beta", 1)} != {1}:
        return call.unknown()
    matrix, inputs, units = (second, -2, -1) if sides[1].weight else (first, -1, -2)
    turned = matrix.stride(inputs) != 1  # its inputs lie apart, as those of w.T do after w
    return _layer(call, x, weight, call.size * fan, call.made[0].shape[units], fan, turned=turned)


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
        line, kernel = (torch.arange(size, device="cpu") for size in (places, weight.shape[2 + axis]))
        at = line[:, None] * stride - padding + kernel * dilation
        taps *= int(((at >= 0) & (at < inside)).sum())
    connections = given["input"].shape[0] * taps * weight.shape[0] * weight.shape[1]
    fan = call.at("weight")
    units = call.made[0].shape[1]
    turned = bool(given["transposed"])
    return _layer(call, x, fan or x, connections, units, given["input"].shape[1], turned=turned)


def _lookup(call: OperationCall) -> Expected:
    table, width = call.sources[0], call.made[0].shape[-1]
    known = Expected(table.second, call.size, width, 0.5 / width, table.normal, table.centered)
    return known if table.weight else call.unknown()


# --- element by element ----------------------------------------------------------------------------------------------


def _grid() -> tuple[Tensor, Tensor]:
    z = torch.linspace(-8, 8, 1601, dtype=torch.float64, device="cpu")
    mass = torch.exp(-z * z / 2)
    return z, mass / mass.sum()


def _activation(call: OperationCall) -> Expected:
    """What a function makes of N(0, q): its second moment, and that of its slope, by the sum over a grid."""
    x = call.sources[0]
    if x.second is None or not x.normal or len(call.tensors) != 1 or not 0 < x.second < math.inf:
        return call.unknown()
    z, mass = _grid()
    others = {key: value for key, value in call.given.items() if value is not call.tensors[0]}
    first = next(key for key, value in call.given.items() if value is call.tensors[0])
    apply = call.func if not call.func._schema.is_mutable else getattr(torch.ops.aten, call.name).default

    def moments(second: float) -> tuple[float, float, float, float, float]:
        scale = math.sqrt(second)
        step = scale * 1e-5
        value, *beside = (apply(**{first: z * scale + shift}, **others) for shift in (0, step, -step))
        slopes = [((each - value) / step).square() for each in beside]
        square = (slopes[0] + slopes[1]) / 2
        sums = (value.square(), value**4, square, square.square(), value)
        return tuple(float((mass * each).sum()) for each in sums)  # type: ignore[return-value]

    second, fourth, slope, slope4, mean = moments(x.second)
    if not second > 0:
        return Expected(0.0, call.size, x.units, sources=[(x, slope, 0.0)])
    # By the slope of ln E[f²] over ln E[x²], `turn`, the noise of the input goes on: 1 for ReLU, less where a function
    # saturates. The output has noise of its own, (kurtosis - 1) / 4 over the units. Of that 0.5 are in x.noise already,
    # as the input is normal with a kurtosis of 3; the rest is added, and may be below zero. A gradient is multiplied by
    # the slope of the function, which does the same to it: for a normal gradient g E[(g f')⁴] is 3 E[f'⁴] E[g²]².
    near = moments(x.second * 1.02)
    turn = math.log(near[0] / second) / math.log(1.02)  # by how much noise of the input is noise of the output
    back = math.log(near[2] / slope) / math.log(1.02) if slope > 0 and near[2] > 0 else 0.0
    noise = max(turn**2 * x.noise + (fourth / second**2 - 3) / 4 / x.units, 0.0)
    lost = max((3 * slope4 / slope**2 - 3) / 4 / x.units, 0.0) if slope > 0 else 0.0
    return Expected(
        second, call.size, x.units, noise, centered=mean**2 < 1e-6 * second, part=x.part,
        sources=[(x, slope, lost, back * math.sqrt(x.noise))],
    )  # fmt: skip


def _sum(call: OperationCall) -> Expected:
    scale = float(call.given.get("alpha", 1))
    one = call.sources[0]
    if len(call.sources) == 1:
        offset = scale * call.number
        known = one.second is not None and (one.centered or not offset)
        second = one.second + offset**2 if known else None  # type: ignore[operator]
        return Expected(
            second, call.size, one.units, one.noise, one.normal and not offset, one.centered and not offset,
            part=one.part, sources=[(one, call.size / one.size, 0.0)],
        )  # fmt: skip
    other = call.sources[1]
    if not are_apart(one, other):
        return call.unknown()
    sources = [(each, call.size / each.size * factor, 0.0) for each, factor in ((one, 1.0), (other, scale**2))]
    sources = [each for each in sources if not each[0].weight]
    parts = one.second, other.second
    if parts[0] is None or parts[1] is None or not (one.centered or other.centered):
        return Expected(None, call.size, sources=sources)
    shares = parts[0], parts[1] * scale**2
    total = shares[0] + shares[1]
    # What a branch adds depends on the stream it was taken from, and has its noise.
    both = 2 * shares[0] * shares[1] * min(one.noise, other.noise)
    noise = (shares[0] ** 2 * one.noise + shares[1] ** 2 * other.noise + both) / total**2 if total else 0.0
    every = one.centered and other.centered
    units = max(one.units, other.units)
    return Expected(total, call.size, units, noise, one.normal and other.normal, every, sources=sources)


def _product(call: OperationCall) -> Expected:
    one = call.sources[0]
    if len(call.sources) == 1:
        if call.name == "div" and (call.given["self"] is not call.tensors[0] or call.given.get("rounding_mode")):
            return call.unknown()
        factor = call.number ** (-2 if call.name == "div" else 2)
        second = None if one.second is None else one.second * factor
        return Expected(
            second, call.size, one.units, one.noise, one.normal, one.centered, part=one.part,
            weight=one.weight, sources=[(one, factor, 0.0)],
        )  # fmt: skip
    other = call.sources[1]
    for x, by in ((one, other), *([(other, one)] if call.name == "mul" else [])):
        if by.norm and by.norm[:2] == (call.name, x.values):
            return _normed(call, x, by)
    if call.name == "div" or not are_apart(one, other) or one.second is None or other.second is None:
        return call.unknown()
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


def step_of_norm(call: OperationCall) -> tuple[str, object, float] | None:
    """How far a written-out norm has come with an operation, as in x * rsqrt(mean(x ** 2) + eps), or an attention."""
    # x * rsqrt(mean(x²) + eps) is a norm in five operations, and its last one would be refused as a product of two
    # tensors that depend on each other. So a result remembers how far such a chain has come, and of which values:
    # square, mean, then by what x is to be multiplied or divided. What adds an eps, casts, clamps or reshapes keeps the
    # step, all else ends it, and the product is not known then, instead of wrong. Over which axes the mean goes does
    # not matter: E[y²] is 1, but for the eps.
    one, exponent = call.sources[0], call.given.get("exponent")
    is_square = (call.name, exponent) == ("pow", 2) or (call.name == "mul" and len(call.sources) == 2)
    if is_square and all(each.values is one.values for each in call.sources):
        return "square", one.values, 0.0
    if call.name in ("_softmax", "_safe_softmax"):
        return ("weights", one.values, 0.0) if call.given["dim"] in (-1, call.tensors[0].dim() - 1) else None
    step, of, eps = one.norm or ("", None, 0.0)
    alone = len(call.sources) == 1
    if step == "weights":
        return one.norm if call.name in _MOVES and call.size >= one.size else None
    if (call.name, step) == ("mean", "square") or (call.name in _KEEPS_NORM and step and alone):
        more = call.number if call.name == "add" else 0.0
        return "mean" if call.name == "mean" else step, of, eps + more
    if step == "mean" and (call.name == "rsqrt" or (call.name, exponent) == ("pow", -0.5)):
        return "mul", of, eps  # by what it is to be multiplied
    is_root = call.name == "sqrt" or (call.name, exponent) == ("pow", 0.5)
    return ("div", of, eps) if step == "mean" and is_root else None


def _normed(call: OperationCall, x: Expected, factor: Expected) -> Expected:
    """A tensor by its own RMS. What its gradient loses by that way is no more than one part in as many as there are."""
    factor.sources = ()
    share, noise = _beside_eps(x, factor.norm[2] if factor.norm else 0.0)
    back = share / x.second if x.second and x.normal else None
    units = x.units if x.second else call.made[0].shape[-1]
    return Expected(share, call.size, units, noise, x.normal, centered=True, sources=[(x, back, x.noise)])


def _beside_eps(x: Expected, eps: float) -> tuple[float, float]:
    """What a norm with this eps makes of the second moment, 1 but for small values, and the noise that it leaves."""
    if x.second is None or not x.second + eps:
        return 1.0, 0.0
    share = x.second / (x.second + eps)
    return share, (1 - share) ** 2 * x.noise


def _norm(call: OperationCall) -> Expected:
    """A norm forgets what was before: its gain and its shift decide."""
    x, gain, shift = call.sources[0], call.at("weight"), call.at("bias")
    if call.given.get("training") is False:  # by running statistics
        return call.unknown()
    share, noise = _beside_eps(x, call.given.get("eps") or 0.0)
    factor = share if gain is None or gain.second is None else gain.second * share
    offset = 0.0 if shift is None else shift.second
    second = None if offset is None or (gain and gain.second is None) else factor + offset
    centered = x.normal and not offset
    over_batch = "batch" in call.name
    known = x.normal and not over_batch
    back = factor / x.second if second is not None and x.second and known else None
    return Expected(
        second, call.size, x.units if x.second else call.made[0].shape[-1], noise, centered, not offset,
        sources=[(x, back, x.noise)],
    )  # fmt: skip


_SURE: Final = 0.1


def _attention(call: OperationCall, value: Expected | None = None, number: int = 0) -> Expected:
    """Means of values by the weights of a softmax: between one of as many independent values and one value."""
    # Whatever the weights are, they are positive, add up to 1, and are drawn apart from the values. So E[y²] is E[v²]
    # where tokens are all alike, or a query picks one key, E[v²] / n where the mean of n independent ones is taken, and
    # in between elsewhere. As with the largest of a window, the middle is expected, and the way to either end is noise.
    # Two of them without a norm between are off to the same side, and so nothing is known of the second.
    made, v = call.unknown(), value or call.at("value")
    wide = math.log(number or call.given["key"].shape[-2]) / 4
    if v is not None and v.second is not None and v.centered and v.noise < _SURE:
        made.second, made.units, made.centered = v.second * math.exp(-2 * wide), v.units, True
        made.noise = v.noise + wide**2 / 3
    return made


# --- places ----------------------------------------------------------------------------------------------------------


def moved(call: OperationCall, made: Tensor | None = None) -> Expected:
    """The same elements in other places, or a part of them; of a part the rest counts as another tensor."""
    x, size = call.sources[0], call.size if made is None else made.numel()
    whole = size >= x.size
    return Expected(
        x.second, size, x.units, x.noise, x.normal, x.centered, x.weight, x.values if whole else None,
        part=x.part if whole else _part(call, call.made[0] if made is None else made),
        sources=[(x, size / x.size, 0.0)],
    )  # fmt: skip


def _part(call: OperationCall, made: Tensor) -> tuple[Expected, int, object] | None:
    """Which part of the units of a tensor this is: other places, as neighbours in an image, are not independent."""
    x, taken = call.sources[0], call.tensors[0]
    axis = call.given.get("dim", 0) % taken.dim()
    is_of_units = axis in (taken.dim() - 1, 1 if taken.dim() > 3 else -1) and taken.shape[axis] == x.units
    return (x, axis, made.storage_offset()) if is_of_units else None


def _joined(call: OperationCall) -> Expected:
    parts = [each for each in call.sources if each.size]  # a cache of keys begins with none
    known = [each.second for each in parts if each.second is not None]
    second = sum(each.size * (each.second or 0.0) for each in parts) / call.size if len(known) == len(parts) else None
    noise = max(each.noise for each in parts)
    alike = second is not None and max(known) < 2 * min(known)
    return Expected(
        second, call.size, sum(each.units for each in parts), noise, alike and all(each.normal for each in parts),
        all(each.centered for each in parts), all(each.weight for each in parts) and len({*parts}) == len(parts),
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
    # The largest of n independent values has the density n F^(n-1) f. Values of one window depend on each other, and
    # behave like fewer. So what is expected is the middle of one value and of n, by logarithm, and the way to either
    # end is noise, evenly spread. What is not normal is taken for the output of a ReLU. Windows that overlap are not
    # known at all.
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
    if call.given.get("value"):  # what is padded with is not zero
        return call.unknown()
    second = None if x.second is None else x.second * x.size / call.size
    return Expected(second, call.size, x.units, x.noise, x.normal, x.centered, sources=[(x, 1.0, 0.0)])


SPLITS: Final = frozenset({"split", "split_with_sizes", "unbind", "chunk"})
_MOVES: Final = [
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "clone", "expand", "slice", "select", "squeeze",
    "unsqueeze", "_to_copy", "detach", "alias", "contiguous", "repeat", "roll", "flip", "index_select", "lift_fresh",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "pixel_shuffle", "pixel_unshuffle",
    "native_dropout", *SPLITS,
]  # fmt: skip
_FUNCTIONS: Final = [
    "abs", "celu", "clamp", "clamp_min", "cos", "elu", "exp", "gelu", "hardsigmoid", "hardswish", "hardtanh",
    "leaky_relu", "mish", "pow", "relu", "sigmoid", "silu", "sin", "softplus", "square", "tanh",
]  # fmt: skip
_NORMS: Final = [
    "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit",
    "_batch_norm_with_update", "native_layer_norm", "native_group_norm", "_fused_rms_norm",
]  # fmt: skip
_ATTENTIONS: Final = [
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
]  # fmt: skip
_KEEPS_NORM: Final = frozenset(["_to_copy", "add", "clamp", "clamp_min", "expand", "view"])
KEEPS: Final = frozenset([*_MOVES, *_FUNCTIONS, "mul", "div"])
"""Operations whose result is a tensor over again, moved, scaled or bent."""

RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(_MOVES, moved), **dict.fromkeys(_FUNCTIONS, _activation), **dict.fromkeys(_NORMS, _norm),
    **dict.fromkeys(("addmm", "mm", "bmm"), _matrix), "convolution": _convolution, "embedding": _lookup,
    **dict.fromkeys(("add", "sub"), _sum), **dict.fromkeys(("mul", "div"), _product),
    **dict.fromkeys(("cat", "stack"), _joined), **dict.fromkeys(_ATTENTIONS, _attention),
    **dict.fromkeys(("mean", "avg_pool2d", "_adaptive_avg_pool2d"), _averaged),
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices"), _pooled), "constant_pad_nd": _padded,
}  # fmt: skip
