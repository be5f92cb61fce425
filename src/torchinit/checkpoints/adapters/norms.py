"""Norms: a BatchNorm that is no longer trained, as what it computes: a factor and an offset a channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from torchinit.checkpoints.adapters.adapter import Adapter, Size, computed
from torchinit.checkpoints.adapters.keys import swapped
from torchinit.core.arguments import is_whole, number

_WEIGHT, _BIAS = ("weight", "running_var"), ("weight", "running_var", "bias", "running_mean")


@final
@dataclass(frozen=True, slots=True)
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
        number("eps", self.eps, least=0)

    def wants(self, key: str) -> tuple[str, ...]:
        norm, leaf = _leaf(self, key)
        return tuple(f"{norm}{name}" for name in (_WEIGHT if leaf == "weight" else _BIAS))

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        return _check_norm(self, shapes)

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        factor = _factor(tensors, self.eps)
        return factor if len(tensors) == 2 else _offset(tensors, factor)


@final
@dataclass(frozen=True, slots=True)
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
        number("eps", self.eps, least=0)
        if not is_whole(self.axis, 0):
            raise ValueError(f"axis must be a whole number from 0, but got {self.axis!r}")

    def wants(self, key: str) -> tuple[str, ...]:
        _, leaf = _leaf(self, key)
        norm, _ = _leaf(self, swapped(key, self.layer, self.norm))
        own = (key,) if leaf == "weight" or self.bias else ()
        return (*(f"{norm}{name}" for name in (_WEIGHT if leaf == "weight" else _BIAS)), *own)

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        _, leaf = _leaf(self, key)
        if leaf == "bias":
            return _check_norm(self, shapes)
        channels, weight = _check_norm(self, shapes[:-1]), shapes[-1]
        if len(weight) <= self.axis or weight[self.axis] != channels[0]:
            raise ValueError(
                f"{self} needs a weight with {channels[0]} channels in dimension {self.axis}, but got {list(weight)}"
            )
        return weight

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        factor = _factor(tensors, self.eps)
        if key.endswith("bias"):
            own = tensors[4] * factor if self.bias else 0
            return _offset(tensors, factor) + own
        weight = computed(tensors[2])
        return weight * factor.view(-1, *(1,) * (weight.dim() - self.axis - 1))


def _leaf(adapter: Adapter, key: str) -> tuple[str, str]:
    """What comes before the name of a weight or bias, and which of both it is."""
    owner, dot, leaf = key.rpartition(".")
    if leaf not in ("weight", "bias"):
        raise ValueError(f"{adapter} makes weights and biases, but {key!r} is neither")
    return owner + dot, leaf


def _check_norm(adapter: Adapter, shapes: Sequence[Size]) -> Size:
    first = shapes[0]
    if len(first) != 1 or any(size != first for size in shapes):
        told = ", ".join(str(list(size)) for size in shapes)
        raise ValueError(f"{adapter} needs numbers for each channel, all of one shape, but got {told}")
    return first


def _factor(tensors: Sequence[Tensor], eps: float) -> Tensor:
    gamma, variance = tensors[:2]
    return computed(gamma) / (computed(variance) + eps).sqrt()


def _offset(tensors: Sequence[Tensor], factor: Tensor) -> Tensor:
    beta, mean = tensors[2:4]
    return computed(beta) - computed(mean) * factor
