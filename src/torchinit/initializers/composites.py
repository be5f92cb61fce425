"""Composites: fills made of other fills, each for its part of a tensor; and one for what no fill can say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import final

import torch

from torchinit.errors import RunError
from torchinit.initializers.base import Fill, Wrapper
from torchinit.initializers.elementwise import Constant
from torchinit.initializers.moments import Moments, mixture, point
from torchinit.model.shards import Box, Shard, replaced
from torchinit.noise import Noise
from torchinit.serialization.validation import is_whole


@final
@dataclass(frozen=True, slots=True)
class Blockwise(Fill):
    """Fills side by side along one axis, each for its own block: the q, k and v of a fused projection.

    >>> from torchinit.initializers.elementwise import Constant
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

    def scaled(self, factor: float) -> Fill:
        return replace(self, fills=tuple(fill.scaled(factor) for fill in self.fills))

    def regions(self, shape: tuple[int, ...]) -> tuple[tuple[Box, Fill], ...]:
        found: list[tuple[Box, Fill]] = []
        for at, (fill, block) in zip(accumulate(self.sizes, initial=0), self._blocks(shape), strict=False):
            for box, inner in fill.regions(block):
                found.append((Box(replaced(box.start, self.axis, box.start[self.axis] + at), box.shape), inner))
        return tuple(found)

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
class Padded(Wrapper):
    """A fill whose row ``row`` is zero: the padding entry of an embedding.

    >>> from torchinit.initializers.elementwise import Constant
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

    def write_parts(self, parts: Sequence[Shard], noise: Noise) -> None:
        self.fill.write_parts(parts, noise)
        for part in parts:
            row = self.row - part.start[0]
            if 0 <= row < part.local.shape[0]:
                part.local[row].zero_()

    def regions(self, shape: tuple[int, ...]) -> tuple[tuple[Box, Fill], ...]:
        start, row = (0,) * len(shape), replaced(shape, 0, 1)
        return (*self.fill.regions(shape), (Box(replaced(start, 0, self.row), row), Constant(0.0)))

    def expected(self, inner: Moments, shape: tuple[int, ...]) -> Moments | None:
        # What the row takes away is known only where all rows are alike.
        return mixture([inner, point(0.0)], (shape[0] - 1, 1)) if self.fill.elementwise else None


@final
@dataclass(frozen=True, slots=True)
class Opaque(Fill):
    """Values that only the code of a model itself can make; ``done`` is what it did, in order.

    A plan with an opaque step can be read, compared and kept; running it is a RunError before anything is written.

    >>> print(Opaque(("copy_(src=tensor of 4) at model.py:3",)))
    Opaque: copy_(src=tensor of 4) at model.py:3
    """

    done: tuple[str, ...]

    def __str__(self) -> str:
        before = f", the last of {len(self.done)}" if len(self.done) > 1 else ""
        return f"Opaque: {self.done[-1] if self.done else 'unknown code'}{before}"

    @property
    def obstacle(self) -> str:
        return f"only its own code can write it ({', '.join(self.done)}); run that code, or give a rule for it"

    def write(self, shard: Shard, noise: Noise) -> None:
        raise RunError(f"{shard.name}: {self.obstacle}")
