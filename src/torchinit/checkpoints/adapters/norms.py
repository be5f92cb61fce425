"""Norms: a BatchNorm in evaluation as a factor and an offset a channel; weights that were saved under weight norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchinit.checkpoints.adapters.base import Adapter, Size, check_whole, listed, register, replace_parts, upcast
from torchinit.serialization.validation import check_number

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

    def __post_init__(self) -> None:
        check_number("eps", self.eps, least=0)

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

    def __post_init__(self) -> None:
        check_number("eps", self.eps, least=0)
        check_whole(self, "axis")

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
        return weight * factor.view(-1, *(1,) * (weight.dim() - self.axis - 1))


@register
class WeightNorm(Adapter):
    r"""The weight of a layer that was saved under weight norm, its length times its direction: wav2vec2, HiFi-GAN.

    .. math:: w = g \cdot v / \lVert v \rVert

    The norm is taken over the dimensions in which the length has one element. The file has ``weight_g`` and
    ``weight_v``, as ``torch.nn.utils.weight_norm`` calls them; with ``parametrized=True`` it has the names of the
    newer ``torch.nn.utils.parametrizations.weight_norm``, ``parametrizations.weight.original0`` and ``original1``.
    https://arxiv.org/abs/1602.07868

    The model may have no weight norm, or either of torch's: its site is the weight, and is written through it.

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
