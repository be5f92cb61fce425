"""Factors: weights multiplied by what lies beside them: a BatchNorm's numbers, weight norm's length, a scale."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from torchinit.checkpoints.adapters.base import Adapter, DtypeOf, ReadPlan, register
from torchinit.checkpoints.adapters.tensors import Size, along, listed, picked, upcast
from torchinit.checkpoints.key_mapping import replace_parts
from torchinit.model.shards import Box
from torchinit.serialization.schema import check_str

_WEIGHT, _BIAS = ("weight", "running_var"), ("weight", "running_var", "bias", "running_mean")


@register
class BatchNormAffine(Adapter):
    r"""The weight and bias with which a layer computes what a BatchNorm does in evaluation.

    .. math:: \text{weight} = \gamma / \sqrt{\mathrm{var} + \mathrm{eps}}

    .. math:: \text{bias} = \beta - \mathrm{mean} \cdot \text{weight}

    For sites whose names end in ``weight`` or ``bias`` and are, but for that, those of the BatchNorm. ``eps``
    is the BatchNorm's own.

    >>> BatchNormAffine().wants("bn1.bias")
    ('bn1.weight', 'bn1.running_var', 'bn1.bias', 'bn1.running_mean')
    """

    eps: float = 1e-5

    def wants(self, key: str) -> tuple[str, ...]:
        norm, leaf = _leaf(self, key)
        return tuple(f"{norm}{name}" for name in (_WEIGHT if leaf == "weight" else _BIAS))

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        return _check_norm(self, shapes)

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        factor = _factor(tensors, self.eps)
        return factor if len(tensors) == 2 else _offset(tensors, factor)


@register
class FoldBatchNorm(Adapter):
    r"""A convolution or Linear that does the work of the BatchNorm after it, too.

    .. math:: w' = w \cdot \gamma / \sqrt{\mathrm{var} + \mathrm{eps}}

    .. math:: b' = (b - \mathrm{mean}) \cdot \gamma / \sqrt{\mathrm{var} + \mathrm{eps}} + \beta

    ``layer`` is the part of the site's name that names the layer, ``norm`` what stands in its place in the
    names of the BatchNorm. ``bias=True``: the layer of the file has a bias of its own. ``axis`` is the
    dimension of the output channels: 0, but 1 for a transposed convolution.

    >>> FoldBatchNorm("conv1", "bn1").wants("layer1.0.conv1.weight")
    ('layer1.0.bn1.weight', 'layer1.0.bn1.running_var', 'layer1.0.conv1.weight')
    """

    layer: str
    norm: str
    eps: float = 1e-5
    bias: bool = False
    axis: int = 0

    def wants(self, key: str) -> tuple[str, ...]:
        _, leaf = _leaf(self, key)
        norm, _ = _leaf(self, replace_parts(key, self.layer, self.norm))
        own = (key,) if leaf == "weight" or self.bias else ()
        return (*(f"{norm}{name}" for name in (_WEIGHT if leaf == "weight" else _BIAS)), *own)

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        _, leaf = _leaf(self, key)
        if leaf == "bias":
            return _check_norm(self, shapes)
        channels, weight = _check_norm(self, shapes[:-1]), shapes[-1]
        if len(weight) <= self.axis or weight[self.axis] != channels[0]:
            wanted = f"a weight with {channels[0]} channels in dimension {self.axis}"
            raise ValueError(f"{self} needs {wanted}, but got {list(weight)}")
        return weight

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        factor = _factor(tensors, self.eps)
        if key.endswith("bias"):
            return _offset(tensors, factor) + (tensors[4] * factor if self.bias else 0)
        weight = upcast(tensors[2])
        return weight * along(factor, self.axis, weight)


@register
class WeightNorm(Adapter):
    r"""The weight of a layer that was saved under weight norm, its length times its direction: wav2vec2, HiFi-GAN.

    .. math:: w = g \cdot v / \lVert v \rVert

    The norm is taken over the dimensions in which the length has one element. The file has ``weight_g`` and
    ``weight_v``, as ``torch.nn.utils.weight_norm`` calls them; with ``parametrized=True`` it has the names of the
    newer ``torch.nn.utils.parametrizations.weight_norm``, ``parametrizations.weight.original0`` and ``original1``.
    The model may have no weight norm, or either of torch's. https://arxiv.org/abs/1602.07868

    >>> WeightNorm().wants("ups.0.weight"), WeightNorm(parametrized=True).wants("ups.0.weight")[0]
    (('ups.0.weight_g', 'ups.0.weight_v'), 'ups.0.parametrizations.weight.original0')
    >>> WeightNorm().adapt([torch.tensor([[10.0]]), torch.tensor([[3.0, 4.0]])], (1, 2), "fc.weight")
    tensor([[6., 8.]])
    """

    parametrized: bool = False

    def wants(self, key: str) -> tuple[str, ...]:
        owner, dot, leaf = key.rpartition(".")
        new = tuple(f"{owner}{dot}parametrizations.{leaf}.original{number}" for number in (0, 1))
        return new if self.parametrized else (f"{key}_g", f"{key}_v")

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        length, direction = shapes
        # torch takes the norm over all dimensions but one, or over all of them: so the length has one size besides
        # ones, or none, or no dimensions.
        same_rank = not length or len(length) == len(direction)
        kept = [(size, whole) for size, whole in zip(length, direction, strict=False) if size != 1]
        if not same_rank or len(kept) > 1 or any(size != whole for size, whole in kept):
            wanted = f"one length, or one for each channel, of {list(direction)}"
            raise ValueError(f"{self} needs {wanted}, got {list(length)}")
        return direction

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        length, direction = map(upcast, tensors)
        axes = [axis for axis in range(direction.dim()) if not length.dim() or length.shape[axis] == 1]
        norm: Tensor = torch.linalg.vector_norm(direction, dim=axes, keepdim=length.dim() > 0)
        return direction * (length / norm)


def _leaf(adapter: Adapter, key: str) -> tuple[str, str]:
    """The name of a weight or bias, split before its last part."""
    owner, dot, leaf = key.rpartition(".")
    if leaf not in ("weight", "bias"):
        raise ValueError(f"{adapter} makes weights and biases, but {key!r} is neither")
    return owner + dot, leaf


def _check_norm(adapter: Adapter, shapes: Sequence[Size]) -> Size:
    first = shapes[0]
    if len(first) != 1 or any(size != first for size in shapes):
        raise ValueError(f"{adapter} needs numbers for each channel, all of one shape, but got {listed(shapes)}")
    return first


def _factor(tensors: Sequence[Tensor], eps: float) -> Tensor:
    gamma, variance = tensors[:2]
    return upcast(gamma) / (upcast(variance) + eps).sqrt()


def _offset(tensors: Sequence[Tensor], factor: Tensor) -> Tensor:
    beta, mean = tensors[2:4]
    return upcast(beta) - upcast(mean) * factor


_NAMES: Final = ("*_scale", "*_scale_inv", "scale_*", "scale", "*_weight_scale", "*.scale")
"""The names that libraries give to the scale of the tensor ``*``."""
_USUAL: Final = 128
NOT_FACTORS: Final = re.compile("scb|absmax|zero|zp", re.IGNORECASE)


@register
class Dequantize(Adapter):
    r"""Values in float8 or int8, multiplied by the scale that the file has beside them.

    .. math:: w_{ij} = q_{ij} \cdot s_{\lfloor i / b \rfloor \lfloor j / b \rfloor}

    ``scale`` is the scale's name, with ``*`` for the last part of the tensor's own: ``"*_scale"`` is ``weight_scale``
    beside ``weight``. None: whichever of the usual names the file has, ``*_scale``, ``*_scale_inv`` (a factor all the
    same), ``scale_*`` and others. A site that the file has in another dtype, or without a scale, is loaded as it is, so
    that ``"**"`` will do as the glob.

    The scale is of the whole tensor, of each row, column or expert, or of each block. One of fewer dimensions is that
    of the first ones, or where these differ in size, of the last. ``block`` is the size of blocks, in each dimension
    that has several; None: 128 where that makes as many (https://arxiv.org/abs/2412.19437), else equal parts. The last
    block may be smaller.

    >>> Dequantize("*_scale_inv").wants("fc.weight")
    ('fc.weight', 'fc.weight_scale_inv')
    >>> file = [torch.tensor([[2.0, -4.0]]).to(torch.float8_e4m3fn), torch.tensor([[0.5]])]
    >>> Dequantize().adapt(file, (1, 2), "fc.weight")
    tensor([[ 1., -2.]])
    """

    scale: str | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        check_str("scale", self.scale)
        if self.scale is not None and (not self.scale.strip(".*") or NOT_FACTORS.search(self.scale)):
            raise ValueError(f"scale must name the factor of a tensor, such as '*_scale', but got {self.scale!r}")

    def bound(self, key: str, values: DtypeOf, loose: DtypeOf) -> Adapter | None:
        dtype = values(key)
        if dtype is None or not (self.scale or is_dequantizable(dtype)):
            return None
        names = (self.scale,) if self.scale else _NAMES
        scales = [name for name in names if (found := loose(_beside(key, name))) and found.is_floating_point]
        if len(scales) > 1:
            raise ValueError(f"any of {', '.join(scales)} may be its scale: name one, {type(self)(scales[0])}")
        return Dequantize(scales[0], self.block) if scales else None

    def wants(self, key: str) -> tuple[str, ...]:
        return key, _beside(key, self.scale or _NAMES[0])

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        self._steps(*shapes)
        return shapes[0]

    def _steps(self, values: Size, scale: Size) -> list[int]:
        """The number of elements, along each dimension of the values, that have one scale."""
        held = _dimensions(values, scale)
        parts = [scale[axis - held.start] if axis in held else 1 for axis in range(len(values))]
        usual = all(part in (size, _parts(size, _USUAL)) for size, part in [*zip(values, parts, strict=True)][-2:])
        steps = []
        for size, part in zip(values, parts, strict=True):
            block = self.block or (_USUAL if usual else size // (part or 1))
            steps.append(size if part == 1 else 1 if part == size else block)
            if part != _parts(size, steps[-1]):
                how = f"blocks of {block}" if self.block else "equal parts: give block, the size of a block"
                raise ValueError(f"{self} cannot spread a scale of {list(scale)} over {list(values)} in {how}")
        return steps

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        return self.read_plan(shapes, shape, Box.whole(shape), key).combine(tensors)

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        values, scale = shapes
        steps = self._steps(values, scale)
        needed, places = picked(
            [torch.arange(size, device="cpu") // (step or 1) for size, step in zip(values, steps, strict=True)], box
        )
        held = _dimensions(values, scale)
        cut = slice(held.start, held.stop)
        read = Box(needed.start[cut], needed.shape[cut]) if held else Box.whole(scale)
        sizes = [count if axis in held else 1 for axis, count in enumerate(needed.shape)]

        def combine(tensors: Sequence[Tensor]) -> Tensor:
            factor = upcast(tensors[1]).reshape(sizes)
            for axis, step in enumerate(steps):
                if 1 < step < values[axis]:
                    factor = factor.index_select(axis, places[axis].to(factor.device))
            return upcast(tensors[0]) * factor

        return ReadPlan((box, read), combine)


def is_dequantizable(dtype: torch.dtype) -> bool:
    """Whether a tensor is of a dtype whose values are multiplied by a scale as they are."""
    return dtype == torch.int8 or is_float8(dtype)


def is_float8(dtype: torch.dtype) -> bool:
    """Whether a dtype is a float of eight bits that holds values, not the powers of two that scale them."""
    return dtype.is_floating_point and dtype.itemsize == 1 and dtype != getattr(torch, "float8_e8m0fnu", None)


def _beside(key: str, scale: str) -> str:
    owner, dot, leaf = key.rpartition(".")
    return owner + dot + scale.replace("*", leaf)


def _parts(size: int, step: int) -> int:
    """The number of parts of ``step`` elements, the last of which may be smaller."""
    return -(-size // step) if step else 1


def _dimensions(values: Size, scale: Size) -> range:
    """The dimensions of values that their scale has: the first ones or the last; none where it is a single number."""
    missing = len(values) - len(scale)
    if math.prod(scale) == 1:
        return range(0)
    for held in (range(len(scale)), range(missing, len(values))) if missing >= 0 else ():
        if not missing or all(part in (1, values[axis]) for axis, part in zip(held, scale, strict=True)):
            return held
    raise ValueError(f"a scale of {list(scale)} is none for rows, columns or blocks of {list(values)}")
