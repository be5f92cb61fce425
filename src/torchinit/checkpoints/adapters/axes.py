"""Axes: a weight with its dimensions in another order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from torchinit.checkpoints.adapters.adapter import Adapter, Part, Size, take_lists
from torchinit.core.shards import Box


@final
@dataclass(frozen=True, slots=True)
class Transpose(Adapter):
    """Dimension i of the site is dimension ``axes[i]`` of the file: GPT-2's ``Conv1D`` and a Linear, either way.

    ``(3, 2, 0, 1)`` makes the convolution of TensorFlow, (h, w, in, out), one of PyTorch; ``(0, 2, 1)``
    transposes each expert of a stack. A square weight fits transposed or not: only its glob tells.

    >>> Transpose().makes([(768, 3072)], "mlp.c_fc.weight")
    (3072, 768)
    """

    axes: tuple[int, ...] = (1, 0)

    def __post_init__(self) -> None:
        take_lists(self, int, "axes")
        if sorted(self.axes) != list(range(len(self.axes))):
            raise ValueError(f"axes must be 0, 1, ... in some order, but got {self.axes}")

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        (seen,) = shapes
        if len(seen) != len(self.axes):
            raise ValueError(f"{self} needs {len(self.axes)} dimensions, but got {list(seen)}")
        return tuple(seen[axis] for axis in self.axes)

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        (tensor,) = tensors
        return tensor.permute(self.axes)

    def part(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> Part:
        places = [self.axes.index(axis) for axis in range(len(shape))]
        start, size = (tuple(given[place] for place in places) for given in (box.start, box.shape))
        return Part((Box(start, size),), lambda tensors: tensors[0].permute(self.axes))
