"""Transformers: heads in another order, and fewer of them; an embedding for a vocabulary of another size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, Literal, TypeAlias

import torch
from torch import Tensor

from torchinit.checkpoints.adapters.base import Adapter, ReadPlan, Size, check_same, check_whole, register, upcast
from torchinit.model.shards import Box, Shard
from torchinit.noise import Keyed
from torchinit.serialization.validation import check_choice, check_number, is_integer

Order: TypeAlias = Literal["half", "interleaved"]

_MOST_DRAWS: Final = 1 << 24  # so many random numbers are kept at a time


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
        check_whole(self, "heads", least=1)

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        stored = check_same(self, shapes, shape, {0})
        size, rest = divmod(stored[0], self.heads)
        if rest or shape[0] == 0 or shape[0] % size or self.heads % (shape[0] // size):
            groups = f"{self.heads} heads of {list(stored)} in equal groups"
            raise ValueError(f"{self} cannot pool {groups} for a site of {list(shape)}")

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        size = tensors[0].shape[0] // self.heads
        groups: Tensor = upcast(tensors[0]).unflatten(0, (shape[0] // size, -1, size))
        return groups.mean(1).flatten(0, 1)


@register
class ResizeVocabulary(Adapter):
    r"""An embedding or output layer, ``[tokens, width]`` or ``[tokens]``, for more tokens or fewer.

    The first rows stay. New ones are drawn from the normal distribution of the old (Hewitt 2021,
    https://nlp.stanford.edu/~johnhew/vocab-expansion.html), with μ their mean and Σ their
    covariance:

    .. math:: N(\mu, \mathrm{spread} \cdot \Sigma)

    so that they change the probabilities of the old tokens little. ``spread=0`` makes all of them the mean;
    transformers has 1e-9. The draws are those of ``seed`` and the site's key, a row's own: a larger vocabulary
    begins with the rows of a smaller one.

    >>> import torch
    >>> table = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    >>> ResizeVocabulary(spread=0).adapt([table], (3, 2), "wte.weight")[2]
    tensor([2., 0.])
    """

    only_resizes: ClassVar[bool] = True
    spread: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("spread", self.spread, least=0)
        Keyed(self.seed)

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        check_same(self, shapes, shape, {0}, most=2)

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        table = tensors[0]
        have, want = table.shape[0], shape[0]
        if want <= have:
            return table[:want]
        larger = upcast(table).new_empty(shape)
        larger[:have] = table
        mean = larger[:have].mean(0, dtype=torch.float64)
        larger[have:] = mean
        if self.spread:
            centred = (larger[:have] - mean).to(larger.dtype)
            rows = max(1, _MOST_DRAWS // have)
            for first in range(have, want, rows):
                draws = larger.new_empty(min(rows, want - first), have)
                Keyed(self.seed).fill(Shard(key, draws, (want, have), (first, 0)), "normal", (0.0, 1.0))
                # A sum of the old rows with normal weights has their covariance. A Cholesky factor of the covariance
                # would do as well, and fails where a table has fewer rows than columns or two columns alike.
                larger[first : first + len(draws)] += (draws @ centred) * (self.spread / have) ** 0.5
        return larger

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        if box.start[0] + box.shape[0] <= shapes[0][0]:
            return ReadPlan((box,), lambda tensors: tensors[0])
        return Adapter.read_plan(self, shapes, shape, box, key)
