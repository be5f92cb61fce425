"""Transformers: heads in another order, and fewer of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from torchinit.checkpoints.adapters.base import (
    Adapter,
    Promise,
    Size,
    check_same,
    check_whole,
    register,
    take_lists,
    upcast,
)
from torchinit.serialization.validation import check_choice, is_integer

Order: TypeAlias = Literal["half", "interleaved"]


@register
class RopeOrder(Adapter):
    """The rows of a query or key weight for the other way of writing rotary embeddings, head by head.

    Rotary embeddings turn pairs of rows. In Meta's Llama the rows of a pair follow each other
    (``interleaved``); in transformers' they are half a head apart (``half``). ``to`` is the site's order, the
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
        check_choice("to", self.to, Order)
        check_whole(self, "heads", least=1)
        if self.rotary is not None and not (is_integer(self.rotary, 2) and self.rotary % 2 == 0):
            raise ValueError(f"rotary must be an even whole number from 2, but got {self.rotary!r}")

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        stored = shapes[0]
        if not stored or stored[0] % self.heads:
            raise ValueError(f"{self} needs rows for {self.heads} heads, but got {list(stored)}")
        size = stored[0] // self.heads
        turned = size if self.rotary is None else self.rotary
        if turned % 2 or turned > size:
            raise ValueError(f"{self} cannot turn {turned} of the {size} rows of each head of {list(stored)}")
        return stored

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        heads = tensors[0].unflatten(0, (self.heads, -1))
        turned = self.rotary or heads.shape[1]
        # As (pairs, 2) the rows of a pair follow each other, as (2, pairs) they are half a head apart: the one is the
        # other transposed. Rows that are not turned lie behind, and stay.
        pairs = (turned // 2, 2) if self.to == "half" else (2, turned // 2)
        ordered = heads[:, :turned].unflatten(1, pairs).transpose(1, 2).flatten(1, 2)
        return torch.cat([ordered, heads[:, turned:]], 1).flatten(0, 1)

    def slices_along(self) -> int:
        return 0


@register
class Rearrange(Adapter):
    """The rows of a weight in another order of the numbers that count them: of groups, heads, rows of a head.

    The file counts rows by ``sizes``, the slowest first; -1 is left open. Dimension i of the site's count is dimension
    ``order[i]`` of the file's. Of queries that share key heads ``Rearrange((kv, r, -1), (1, 0, 2))`` makes (r, kv, d)
    of (kv, r, d); of a fused weight ``Rearrange((heads, 3, -1), (1, 0, 2))`` makes q, k, v one after the other of q, k,
    v head by head. ``axis=1`` does it to the columns of the weight that reads what such rows give. The function stays
    the same where all weights that share the order are rearranged.

    >>> import torch
    >>> Rearrange((2, 2, -1), (1, 0, 2)).adapt([torch.arange(8)], (8,), "q.bias")
    tensor([0, 1, 4, 5, 2, 3, 6, 7])
    """

    sizes: tuple[int, ...]
    order: tuple[int, ...]
    axis: int = 0

    def __post_init__(self) -> None:
        take_lists(self, int, "sizes", "order")
        check_whole(self, "axis")
        if self.sizes.count(-1) > 1 or not all(is_integer(size) or size == -1 for size in self.sizes):
            raise ValueError(f"sizes must be whole numbers from 1, one of them -1 at most, but got {self.sizes}")
        if sorted(self.order) != list(range(len(self.sizes))):
            raise ValueError(f"order must be 0 to {len(self.sizes) - 1} in some order, but got {self.order}")

    def makes(self, shapes: Sequence[Size], key: str) -> Size:
        stored, known = shapes[0], abs(math.prod(self.sizes))
        rows = stored[self.axis] if len(stored) > self.axis else -1
        if rows < 0 or rows % known or (-1 not in self.sizes and rows != known):
            raise ValueError(f"{self} cannot divide dimension {self.axis} of {list(stored)} into {self.sizes}")
        return stored

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        rows, axis = tensors[0].shape[self.axis], self.axis
        order = torch.arange(rows).view(self._counts(rows)).permute(self.order).flatten()
        return tensors[0].index_select(axis, order.to(tensors[0].device))

    def _counts(self, rows: int) -> Size:
        rest = rows // abs(math.prod(self.sizes))
        return tuple(rest if size == -1 else size for size in self.sizes)

    def slices_along(self) -> int:
        return self.axis


@register
class PoolHeads(Adapter):
    """A key or value weight for fewer heads, each the mean of a group (https://arxiv.org/abs/2305.13245).

    ``heads`` is the number of key heads in the file; the site's shape says how many are left. Neighbours make
    a group. ``choose`` takes one of the file's heads for each that is left, as it is, in place of the means. Biases
    are pooled likewise.

    >>> import torch
    >>> PoolHeads(heads=4).adapt([torch.tensor([1.0, 3.0, 5.0, 7.0])], (2,), "k_proj.bias")
    tensor([2., 6.])
    >>> PoolHeads(heads=4, choose=(0, 2)).adapt([torch.tensor([1.0, 3.0, 5.0, 7.0])], (2,), "k_proj.bias")
    tensor([1., 5.])
    """

    heads: int
    choose: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_whole(self, "heads", least=1)
        if self.choose is not None:
            take_lists(self, int, "choose")
            if outside := [head for head in self.choose if not 0 <= head < self.heads]:
                raise ValueError(f"choose names head {outside[0]}, but the file has heads 0 to {self.heads - 1}")

    @property
    def promise(self) -> Promise:
        return "none"

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        stored = check_same(self, shapes, shape, {0})
        size, rest = divmod(stored[0], self.heads)
        if rest or shape[0] == 0 or shape[0] % size or self.heads % (shape[0] // size):
            groups = f"{self.heads} heads of {list(stored)} in equal groups"
            raise ValueError(f"{self} cannot pool {groups} for a site of {list(shape)}")
        if self.choose is not None and len(self.choose) != shape[0] // size:
            raise ValueError(f"{self} chooses {len(self.choose)} heads, but the site has {shape[0] // size}")

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        size = tensors[0].shape[0] // self.heads
        if self.choose is not None:
            chosen = torch.tensor(self.choose, device=tensors[0].device)
            heads: Tensor = tensors[0].unflatten(0, (self.heads, size))
            return heads.index_select(0, chosen).flatten(0, 1)
        groups: Tensor = upcast(tensors[0]).unflatten(0, (shape[0] // size, -1, size))
        return groups.mean(1).flatten(0, 1)

    def slices_along(self) -> int | None:
        return None if self.choose is None else 0
