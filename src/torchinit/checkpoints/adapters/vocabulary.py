"""Vocabulary: an embedding, an output layer or its bias for other tokens than the file's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from torchinit.checkpoints.adapters.base import (
    Adapter,
    Promise,
    ReadPlan,
    Size,
    check_same,
    check_whole,
    register,
    upcast,
)
from torchinit.model.shards import Box, Shard
from torchinit.noise import Keyed
from torchinit.serialization.json import FrozenDict
from torchinit.serialization.validation import check_number, is_integer

_MOST_DRAWS: Final = 1 << 24  # so many random numbers are kept at a time


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

    ``trained`` is the number of the file's tokens where its table is padded: the rows behind them were never trained,
    so they count neither as old nor for the mean, and are new in the site. ``like`` gives new tokens, by their numbers,
    old ones to begin with: one, whose row is copied, or several, whose mean it is (those of a description of the
    token); with the same spread around it. What is no old token, or not new, is refused when the plan is made. Give the
    same to the embedding and to the output layer.

    >>> import torch
    >>> table = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    >>> ResizeVocabulary(spread=0).adapt([table], (3, 2), "wte.weight")[2]
    tensor([2., 0.])
    >>> ResizeVocabulary(spread=0, like={3: 1, 4: (0, 0, 1)}).adapt([table], (5, 2), "wte.weight")[3:]
    tensor([[3.0000, 0.0000],
            [1.6667, 0.0000]])
    """

    only_resizes: ClassVar[bool] = True
    spread: float = 1e-5
    seed: int = 0
    trained: int | None = None
    like: Mapping[Any, int | tuple[int, ...]] = FrozenDict()

    def __post_init__(self) -> None:
        check_number("spread", self.spread, least=0)
        Keyed(self.seed)
        if self.trained is not None:
            check_whole(self, "trained", least=1)
        if not isinstance(self.like, Mapping):
            raise TypeError(f"like gives old tokens to each new one, {{50257: (11, 25)}}, but got {self.like!r}")
        items = {str(new): tuple(old) if isinstance(old, (list, tuple)) else (old,) for new, old in self.like.items()}
        for new, old in items.items():
            if not (new.isdecimal() and old and all(is_integer(token, 0) for token in old)):
                wanted = "must give a new token's number one or more old ones"
                raise ValueError(f"like {wanted}, but got {new!r}: {self.like.get(new, old)!r}")
        object.__setattr__(self, "like", FrozenDict(items))

    @property
    def promise(self) -> Promise:
        return "function"  # of the tokens that the file has

    def _old(self, stored: Size) -> int:
        """The number of old tokens."""
        return stored[0] if self.trained is None else self.trained

    def _likes(self) -> dict[int, tuple[int, ...]]:
        return {int(new): old for new, old in self.like.items() if isinstance(old, tuple)}

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        stored = check_same(self, shapes, shape, {0}, most=2)
        old = self._old(stored)
        if old > stored[0]:
            raise ValueError(f"{self} has {old} tokens trained, but the file {stored[0]} in all")
        for new, likes in self._likes().items():
            if not old <= new < shape[0]:
                raise ValueError(f"{self} gives a start to {new}, but new tokens are {old} to {shape[0] - 1}")
            if max(likes) >= old:
                raise ValueError(f"{self} makes {new} of {max(likes)}, but the file's tokens are 0 to {old - 1}")

    def changes(self, shapes: Sequence[Size], shape: Size) -> bool:
        return shapes[0] != shape or self._old(shapes[0]) < shape[0]

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        have, want = self._old(tuple(tensors[0].shape)), shape[0]
        table = tensors[0][:have]
        if want <= have:
            return table[:want]
        larger = upcast(table).new_empty(shape)
        larger[:have] = table
        mean = larger[:have].mean(0, dtype=torch.float64)
        larger[have:] = mean
        for new, likes in self._likes().items():
            larger[new] = larger[list(likes)].mean(0, dtype=torch.float64)
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
        if box.start[0] + box.shape[0] <= self._old(shapes[0]):
            return ReadPlan((box,), lambda tensors: tensors[0])
        return Adapter.read_plan(self, shapes, shape, box, key)
