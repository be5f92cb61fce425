"""Composites: fills made of other fills, each for its part of a tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import final

import torch

from torchinit.core.arguments import is_whole
from torchinit.core.fills import Fill, is_elementwise
from torchinit.core.moments import Moments, mixture, point
from torchinit.core.shards import Shard, replaced
from torchinit.noise import Noise


@final
@dataclass(frozen=True, slots=True)
class Blockwise(Fill):
    """Fills side by side along one axis, each for its own block: the q, k and v of a fused projection.

    >>> from torchinit.core.fills import Constant
    >>> Blockwise((Constant(0.0), Constant(1.0)), sizes=(2, 2)).moments((4,)).mean
    0.5
    """

    fills: tuple[Fill, ...]
    sizes: tuple[int, ...]
    axis: int = 0

    def __post_init__(self) -> None:
        if len(self.fills) != len(self.sizes):
            raise ValueError(f"{len(self.fills)} fills do not go with {len(self.sizes)} sizes")
        if not self.fills or not all(map(is_whole, self.sizes)) or not is_whole(self.axis, least=0):
            raise ValueError(f"sizes and axis of blocks must be whole numbers, but got {self!r}")

    def __str__(self) -> str:
        runs = [(str(fill), len(list(same))) for fill, same in groupby(self.fills)]
        return " + ".join(f"{times} x {fill}" if times > 1 else fill for fill, times in runs)

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if self.axis >= len(shape) or sum(self.sizes) != shape[self.axis]:
            raise ValueError(f"blocks of {self.sizes} do not make up dimension {self.axis} of the shape {shape}")
        for fill, block in self._blocks(shape):
            fill.check(block, dtype)

    def write(self, shard: Shard, noise: Noise) -> None:
        self.write_parts((shard,), noise)

    def write_parts(self, parts: Sequence[Shard], noise: Noise) -> None:
        low = parts[0].region.start[self.axis] if parts else 0
        for fill, size in zip(self.fills, self.sizes, strict=True):
            fill.write_parts([part.cut(self.axis, low, low + size) for part in parts], noise)
            low += size

    def moments(self, shape: tuple[int, ...] = ()) -> Moments | None:
        return mixture([fill.moments(block) for fill, block in self._blocks(shape)], self.sizes)

    def parts(self, shape: tuple[int, ...] = ()) -> Moments | None:
        return mixture([fill.parts(block) for fill, block in self._blocks(shape)], self.sizes)

    def scratch(self, shape: tuple[int, ...]) -> int:
        return max(fill.scratch(block) for fill, block in self._blocks(shape))

    def _blocks(self, shape: tuple[int, ...]) -> Iterator[tuple[Fill, tuple[int, ...]]]:
        for fill, size in zip(self.fills, self.sizes, strict=True):
            yield fill, replaced(shape, self.axis, size)


@final
@dataclass(frozen=True, slots=True)
class Padded(Fill):
    """A fill whose row ``row`` is zero: the padding entry of an embedding.

    >>> from torchinit.core.fills import Constant
    >>> Padded(Constant(1.0), row=0).moments((4, 8)).mean
    0.75
    """

    fill: Fill
    row: int

    def __post_init__(self) -> None:
        if not is_whole(self.row, least=0):
            raise ValueError(f"row must be a whole number of at least 0, but got {self.row!r}")

    def __str__(self) -> str:
        return f"{self.fill}, row {self.row} zero"

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if not shape or self.row >= shape[0]:
            raise ValueError(f"there is no row {self.row} in the shape {shape}")
        self.fill.check(shape, dtype)

    def write(self, shard: Shard, noise: Noise) -> None:
        self.write_parts((shard,), noise)

    def write_parts(self, parts: Sequence[Shard], noise: Noise) -> None:
        self.fill.write_parts(parts, noise)
        for part in parts:
            row = self.row - part.start[0]
            if 0 <= row < part.local.shape[0]:
                part.local[row].zero_()

    def moments(self, shape: tuple[int, ...] = ()) -> Moments | None:
        return self._mixed(self.fill.moments(shape), shape)

    def parts(self, shape: tuple[int, ...] = ()) -> Moments | None:
        return self._mixed(self.fill.parts(shape), shape)

    def scratch(self, shape: tuple[int, ...]) -> int:
        return self.fill.scratch(shape)

    def _mixed(self, inner: Moments | None, shape: tuple[int, ...]) -> Moments | None:
        # What the row takes away is known only where all rows are alike.
        return mixture([inner, point(0.0)], (shape[0] - 1, 1)) if is_elementwise(self.fill) else None
