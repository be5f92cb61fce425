"""Attention: heads in another order, and fewer of them."""

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

Order: TypeAlias = Literal["half", "interleaved"]


@final
@dataclass(frozen=True, slots=True)
class RopeOrder(Adapter):
    """The rows of a query or key weight for the other way of writing rotary embeddings, head by head.

    Rotary embeddings turn pairs of rows. In Meta's Llama the rows of a pair follow each other
    (``interleaved``); in transformers' they are half a head apart (``half``). ``to`` is the site's way, the
    file's is the other. ``heads`` is the number of heads of this weight: for keys that of the key heads.
    ``rotary`` is how many rows of each head are turned, all of them if it is left out. Queries and keys need
    it both; values and outputs stay.

    >>> import torch
    >>> RopeOrder(heads=1).adapt([torch.tensor([1, -1, 2, -2])], (4,), "wq.bias")
    tensor([ 1,  2, -1, -2])
    """

    heads: int
    to: Order = "half"
    rotary: int | None = None

    def __post_init__(self) -> None:
        choice("to", self.to, Order)
        if not is_whole(self.heads):
            raise ValueError(f"heads must be a whole number from 1, but got {self.heads!r}")
        if self.rotary is not None and not (is_whole(self.rotary, 2) and self.rotary % 2 == 0):
            raise ValueError(f"rotary must be an even whole number from 2, but got {self.rotary!r}")

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        (seen,) = shapes
        if not seen or seen[0] % self.heads:
            raise ValueError(f"{self} needs rows for {self.heads} heads, but got {list(seen)}")
        size = seen[0] // self.heads
        turned = size if self.rotary is None else self.rotary
        if turned % 2 or turned > size:
            raise ValueError(f"{self} cannot turn {turned} of the {size} rows of each head of {list(seen)}")
        return seen

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        (weight,) = tensors
        heads = weight.unflatten(0, (self.heads, -1))
        turned = self.rotary or heads.shape[1]
        pairs = (turned // 2, 2) if self.to == "half" else (2, turned // 2)
        ordered = heads[:, :turned].unflatten(1, pairs).transpose(1, 2).flatten(1, 2)
        return torch.cat([ordered, heads[:, turned:]], 1).flatten(0, 1)

    def part(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> Part:
        return moved(self, 0, shapes, shape, box, key)


@final
@dataclass(frozen=True, slots=True)
class PoolHeads(Adapter):
    """A key or value weight for fewer heads, each the mean of a group (https://arxiv.org/abs/2305.13245).

    ``heads`` is the number of key heads in the file; the site's shape says how many are left. Neighbours make
    a group. Biases are pooled likewise.

    >>> import torch
    >>> PoolHeads(heads=4).adapt([torch.tensor([1.0, 3.0, 5.0, 7.0])], (2,), "k_proj.bias")
    tensor([2., 6.])
    """

    heads: int

    def __post_init__(self) -> None:
        if not is_whole(self.heads):
            raise ValueError(f"heads must be a whole number from 1, but got {self.heads!r}")

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        (seen,) = shapes
        check_same(self, seen, shape, free={0})
        size, rest = divmod(seen[0], self.heads)
        if rest or shape[0] == 0 or shape[0] % size or self.heads % (shape[0] // size):
            raise ValueError(
                f"{self} cannot pool {self.heads} heads of {list(seen)} in equal groups for a site of {list(shape)}"
            )

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        (weight,) = tensors
        size = weight.shape[0] // self.heads
        groups: Tensor = computed(weight).unflatten(0, (shape[0] // size, -1, size))
        return groups.mean(1).flatten(0, 1)
