"""Noise: where randomness comes from: a seed and a name, or torch's own generator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from torchinit.model.shards import Shard

Distribution = Literal["normal", "uniform", "truncated", "bernoulli", "integer", "sign"]
"""The distributions that can be drawn, with their parameters:

=============  ===========================  ==========================================
distribution   params                       values
=============  ===========================  ==========================================
``normal``     ``(mean, std)``              mean + std * z
``uniform``    ``(low, high)``              low <= x < high
``truncated``  ``(mean, std, low, high)``   the normal, given that low <= x <= high
``bernoulli``  ``(p,)``                     1 with probability p, else 0
``integer``    ``(low, high)``              whole numbers low <= x < high
``sign``       ``()``                       -1 or 1
=============  ===========================  ==========================================

A complex tensor takes ``normal`` alone: its real and its imaginary part are normals of std / sqrt(2), as
``torch.Tensor.normal_`` has it. All are drawn in float32 and rounded once, so that a model has one set of values
whatever its dtype: bfloat16 holds the rounded numbers, float64 the same ones as float32.
"""


class DrawRequest(NamedTuple):
    """One draw: what goes into which shard; ``index`` tells several draws for one name apart.

    A tuple, since a dataclass costs four times as much to make, and a model has hundreds of small tensors.
    """

    shard: Shard
    distribution: Distribution
    params: tuple[float, ...]
    index: int = 0  # type: ignore[assignment]  # tuples have a method of this name, which no job needs


class Noise(ABC):
    """A source of randomness. Draws go straight into a shard's memory; the shard knows its name.

    >>> from torchinit.noise import Global, Keyed
    >>> Global().is_stateful, Keyed(0).is_stateful
    (True, False)
    """

    #: True where every draw moves a state that the next draw starts from: then writes that are
    #: overwritten later must draw, too, and a shard cannot be drawn without the rest of its tensor.
    is_stateful: ClassVar[bool]

    @abstractmethod
    def fill(self, shard: Shard, distribution: Distribution, params: tuple[float, ...], index: int = 0) -> None:
        """Draw ``shard.local``; ``index`` tells several draws for one name apart.

        Raises ValueError for parameters that make no distribution, RunError for a shard that cannot be drawn.
        """

    @abstractmethod
    def order(self, shard: Shard, index: int = 0) -> Tensor:
        """For each column of the 2-D ``shard.region`` its row numbers in random order, as int64.

        Independent of every ``fill``, also of those with the same index.
        """

    @abstractmethod
    def linalg_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The precision in which fills that need a factorization compute it for a site of ``dtype``."""

    def lending(self, name: str, index: int, device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
        """Let user code that makes values of a dtype draw from this noise, on the CPU and a device, for a block."""
        return nullcontext()

    def fill_many(self, jobs: Iterable[DrawRequest]) -> None:
        """Do the jobs as if one after the other, with less to pay for each than a call of ``fill``."""
        for job in jobs:
            self.fill(job.shard, job.distribution, job.params, job.index)
