"""Channels: a first layer for images of another number of channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

from torchinit.checkpoints.adapters.adapter import Adapter, Part, Size, check_same, computed
from torchinit.checkpoints.adapters.moves import moved
from torchinit.core.arguments import choice, is_whole
from torchinit.core.shards import Box

How: TypeAlias = Literal["sum", "repeat"]


@final
@dataclass(frozen=True, slots=True)
class InputChannels(Adapter):
    """The input channels of a convolution, made fewer or more: RGB to grey, to infrared and so on.

    The n channels of the file are repeated in turn until there are m. With ``how="sum"`` they are scaled by
    n/m, and for m = 1 summed, so that the layer answers to an image whose channels are all alike as before:
    exactly so for m = 1 and for multiples of n. With ``how="repeat"`` they stay as they are.

    ``axis`` is the dimension of the input channels: 1 for a convolution and a Linear, 0 for a transposed one.

    >>> import torch
    >>> rgb = torch.tensor([[[[1.0]], [[2.0]], [[4.0]]]])
    >>> InputChannels().adapt([rgb], (1, 1, 1, 1), "conv1.weight").item()
    7.0
    >>> InputChannels("repeat").adapt([rgb], (1, 4, 1, 1), "conv1.weight").flatten().tolist()
    [1.0, 2.0, 4.0, 1.0]
    """

    how: How = "sum"
    axis: int = 1

    def __post_init__(self) -> None:
        choice("how", self.how, How)
        if not is_whole(self.axis, 0):
            raise ValueError(f"axis must be a whole number from 0, but got {self.axis!r}")

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        (seen,) = shapes
        check_same(self, seen, shape, free={self.axis})

    def changes(self, shapes: Sequence[Size], shape: Size) -> bool:
        return shapes[0] != shape

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        (weight,) = tensors
        have, want = weight.shape[self.axis], shape[self.axis]
        if have == want:
            return weight
        if self.how == "sum" and want == 1:
            return computed(weight).sum(self.axis, keepdim=True)
        repeated = weight.index_select(self.axis, torch.arange(want, device=weight.device) % have)
        return computed(repeated) * (have / want) if self.how == "sum" else repeated

    def part(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> Part:
        if self.how == "repeat":
            return moved(self, self.axis, shapes, shape, box, key)
        return Adapter.part(self, shapes, shape, box, key)
