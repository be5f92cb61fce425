"""Weight norm: a weight that a file keeps as its length and its direction, made one again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchinit.checkpoints.adapters.adapter import Adapter, Size, computed


@final
@dataclass(frozen=True, slots=True)
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
        fits = not length or len(length) == len(direction)
        kept = [(size, asked) for size, asked in zip(length, direction, strict=False) if size != 1]
        if not fits or len(kept) > 1 or any(size != asked for size, asked in kept):
            raise ValueError(
                f"{self} needs one length, or one for each channel, of {list(direction)}, got {list(length)}"
            )
        return direction

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        length, direction = map(computed, tensors)
        axes = [axis for axis in range(direction.dim()) if not length.dim() or length.shape[axis] == 1]
        norm: Tensor = torch.linalg.vector_norm(direction, dim=axes, keepdim=length.dim() > 0)
        return direction * (length / norm)
