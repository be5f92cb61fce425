"""Tokens: an embedding for a vocabulary of another size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchinit.checkpoints.adapters.adapter import Adapter, Part, Size, check_same, computed
from torchinit.core.arguments import number
from torchinit.core.shards import Box, Shard
from torchinit.noise import Keyed

_MOST = 1 << 24
"""So many random numbers are held at a time."""


@final
@dataclass(frozen=True, slots=True)
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

    spread: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        number("spread", self.spread, least=0)
        Keyed(self.seed)

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        (seen,) = shapes
        if len(shape) > 2:
            raise ValueError(f"{self} needs a site of 1 or 2 dimensions, but it has {list(shape)}")
        check_same(self, seen, shape, free={0})

    def changes(self, shapes: Sequence[Size], shape: Size) -> bool:
        return shapes[0] != shape

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        (table,) = tensors
        have, want = table.shape[0], shape[0]
        if want <= have:
            return table[:want]
        made = computed(table).new_empty(shape)
        made[:have] = table
        mean = made[:have].mean(0, dtype=torch.float64)
        made[have:] = mean
        if self.spread:
            centred = (made[:have] - mean).to(made.dtype)
            for first, draws in self._draws(key, made, have):
                # A sum of the old rows with normal weights has their covariance, and needs no root of it.
                made[first : first + len(draws)] += (draws @ centred) * (self.spread / have) ** 0.5
        return made

    def part(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> Part:
        if box.start[0] + box.shape[0] <= shapes[0][0]:
            return Part((box,), lambda tensors: tensors[0])
        return Adapter.part(self, shapes, shape, box, key)

    def _draws(self, key: str, made: Tensor, have: int) -> Iterator[tuple[int, Tensor]]:
        """For some new rows at a time, the first's place and a number for each old row."""
        rows = max(1, _MOST // have)
        for first in range(have, len(made), rows):
            draws = made.new_empty(min(rows, len(made) - first), have)
            Keyed(self.seed).fill(Shard(key, draws, (len(made), have), (first, 0)), "normal", (0.0, 1.0))
            yield first, draws
