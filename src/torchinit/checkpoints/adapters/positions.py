"""Positions: embeddings and biases of places on a grid, for a grid of another size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

import torch.nn.functional as F
from torch import Tensor

from torchinit.checkpoints.adapters.adapter import Adapter, Size, check_same, computed
from torchinit.core.arguments import is_whole

Grid: TypeAlias = tuple[int, int]
"""Height and width."""


@final
@dataclass(frozen=True, slots=True)
class ResizePositions(Adapter):
    """Absolute position embeddings ``[..., tokens, width]`` for another number of patches, resampled bicubically.

    The first ``prefix`` tokens (class, distillation, registers) have no place and stay; the others lie row by
    row on a grid. Grids are square unless given as (height, width): ``file`` and ``site``. With
    ``antialias=True`` a smaller grid averages, as timm's ``resample_abs_pos_embed`` does. The same grid stays
    as it is.

    >>> ResizePositions().check([(1, 197, 768)], (1, 577, 768), "pos_embed")
    >>> ResizePositions(prefix=0).check([(1, 197, 768)], (1, 576, 768), "pos_embed")
    Traceback (most recent call last):
    ValueError: 197 tokens with prefix=0 are no square grid; with prefix=1 they are 14x14, else give file=(h, w)
    """

    prefix: int = 1
    file: Grid | None = None
    site: Grid | None = None
    antialias: bool = True

    def __post_init__(self) -> None:
        if not is_whole(self.prefix, 0):
            raise ValueError(f"prefix must be a whole number from 0, but got {self.prefix!r}")
        _check_grids(self)

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        (seen,) = shapes
        if len(shape) < 2:
            raise ValueError(f"{self} needs a site of at least 2 dimensions, but it has {list(shape)}")
        check_same(self, seen, shape, free={len(shape) - 2})
        self._grids(seen, shape)

    def _grids(self, seen: Size, shape: Size) -> tuple[Grid, Grid]:
        return self._grid("file", self.file, seen[-2]), self._grid("site", self.site, shape[-2])

    def _grid(self, what: str, given: Grid | None, tokens: int) -> Grid:
        rest = tokens - self.prefix
        if given is not None and math.prod(given) != rest:
            raise ValueError(
                f"{what}={given} has {math.prod(given)} places, but there are {rest} tokens besides the prefix"
            )
        side = math.isqrt(max(rest, 0))
        if given is None and (rest < 1 or side * side != rest):
            raise ValueError(
                f"{tokens} tokens with prefix={self.prefix} are no square grid; {_near(tokens)}give {what}=(h, w)"
            )
        return given or (side, side)

    def changes(self, shapes: Sequence[Size], shape: Size) -> bool:
        old, new = self._grids(shapes[0], shape)
        return old != new

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        (table,) = tensors
        old, new = self._grids(tuple(table.shape), shape)
        if old == new:
            return table
        places = computed(table)[..., self.prefix :, :].reshape(-1, *old, shape[-1]).permute(0, 3, 1, 2)
        resized = F.interpolate(places, new, mode="bicubic", antialias=self.antialias)
        made = computed(table).new_empty(shape)
        made[..., : self.prefix, :] = table[..., : self.prefix, :]
        made[..., self.prefix :, :] = resized.permute(0, 2, 3, 1).reshape(*shape[:-2], -1, shape[-1])
        return made


@final
@dataclass(frozen=True, slots=True)
class ResizeRelativeBias(Adapter):
    """Tables of relative position biases ``[(2h-1)(2w-1) + extra, heads]`` for another window, resampled bicubically.

    Swin has ``extra=0``, BEiT ``extra=3`` rows for its class token, which stay. Windows are square unless
    given as (height, width): ``file`` and ``site``. The same window stays as it is.

    >>> ResizeRelativeBias().check([(169, 4)], (529, 4), "relative_position_bias_table")
    """

    extra: int = 0
    file: Grid | None = None
    site: Grid | None = None
    antialias: bool = False

    def __post_init__(self) -> None:
        if not is_whole(self.extra, 0):
            raise ValueError(f"extra must be a whole number from 0, but got {self.extra!r}")
        _check_grids(self)

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        (seen,) = shapes
        if len(shape) != 2:
            raise ValueError(f"{self} needs a site of 2 dimensions, but it has {list(shape)}")
        check_same(self, seen, shape, free={0})
        self._grids(seen, shape)

    def _grids(self, seen: Size, shape: Size) -> tuple[Grid, Grid]:
        return self._grid("file", self.file, seen[0]), self._grid("site", self.site, shape[0])

    def _grid(self, what: str, window: Grid | None, rows: int) -> Grid:
        """How many differences of rows and of columns there are."""
        rest = rows - self.extra
        if window is not None:
            grid = 2 * window[0] - 1, 2 * window[1] - 1
            if math.prod(grid) != rest:
                raise ValueError(
                    f"{what}={window} makes {math.prod(grid)} biases, but there are {rest} besides {self.extra} extra"
                )
            return grid
        side = math.isqrt(max(rest, 0))
        if side % 2 == 0 or side * side != rest:
            raise ValueError(
                f"{rows} rows with extra={self.extra} are no square window; give {what}=(h, w) or another extra"
            )
        return side, side

    def changes(self, shapes: Sequence[Size], shape: Size) -> bool:
        old, new = self._grids(shapes[0], shape)
        return old != new

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        (table,) = tensors
        old, new = self._grids(tuple(table.shape), shape)
        if old == new:
            return table
        made = computed(table).new_empty(shape)
        first = math.prod(new)
        made[first:] = table[math.prod(old) :]
        places = computed(table)[: math.prod(old)].view(1, *old, shape[1]).permute(0, 3, 1, 2)
        resized = F.interpolate(places, new, mode="bicubic", antialias=self.antialias)
        made[:first] = resized[0].permute(1, 2, 0).reshape(first, shape[1])
        return made


def _near(tokens: int) -> str:
    """The least prefix with which the tokens would be a square grid, as the beginning of advice."""
    for prefix in range(min(tokens, 9)):
        side = math.isqrt(tokens - prefix)
        if side * side == tokens - prefix:
            return f"with prefix={prefix} they are {side}x{side}, else "
    return ""


def _check_grids(adapter: ResizePositions | ResizeRelativeBias) -> None:
    for name in ("file", "site"):
        grid = getattr(adapter, name)
        if isinstance(grid, list):
            object.__setattr__(adapter, name, tuple(grid))
        if grid is not None and not (isinstance(grid, (list, tuple)) and len(grid) == 2 and all(map(is_whole, grid))):
            raise ValueError(f"{name} must be (height, width) in whole numbers from 1, but got {grid!r}")
