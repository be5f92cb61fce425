"""Images: first layers for other channels, patches and videos; positions on a grid of another size."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from torchinit.checkpoints.adapters.base import Adapter, ReadPlan, register
from torchinit.checkpoints.adapters.tensors import Size, check_same, upcast
from torchinit.model.shards import Box, replaced, without
from torchinit.serialization.schema import is_integer

Channels: TypeAlias = Literal["sum", "repeat"]
Frames: TypeAlias = Literal["repeat", "centre"]
Grid: TypeAlias = tuple[int, int]  # height and width


@register
class InputChannels(Adapter):
    """The input channels of a convolution, made fewer or more: RGB to grey, to infrared and so on.

    The n channels of the file are repeated in turn until there are m. With ``how="sum"`` they are scaled by n/m, and
    for m = 1 summed, so that the layer answers as before to an image whose channels are all alike, if m is 1 or a
    multiple of n. With ``how="repeat"`` they stay as they are. ``axis`` is the dimension of the input channels: 1 for a
    convolution and a Linear, 0 for a transposed one.

    >>> rgb = torch.tensor([[[[1.0]], [[2.0]], [[4.0]]]])
    >>> InputChannels().adapt([rgb], (1, 1, 1, 1), "conv1.weight").item()
    7.0
    """

    only_resizes: ClassVar[bool] = True
    how: Channels = "sum"
    axis: int = 1

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        check_same(self, shapes, shape, {self.axis}, least=self.axis + 1)

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        weight = tensors[0]
        have, want = weight.shape[self.axis], shape[self.axis]
        if have == want:
            return weight
        if self.how == "sum" and want == 1:
            return upcast(weight).sum(self.axis, keepdim=True)
        repeated = weight.index_select(self.axis, torch.arange(want, device=weight.device) % have)
        return upcast(repeated) * (have / want) if self.how == "sum" else repeated

    def slices_along(self) -> int | None:
        return self.axis if self.how == "repeat" else None


@register
class Inflate(Adapter):
    """A kernel for images made one for video: ``[out, in, h, w]`` becomes ``[out, in, t, h, w]``.

    ``how="repeat"`` gives every frame the kernel divided by t (I3D, https://arxiv.org/abs/1705.07750): a
    video that stands still is stored as its image was. ``how="centre"`` gives it to the middle frame, t // 2,
    and zeros to the others (ViViT, https://arxiv.org/abs/2103.15691). ``axis`` is where time comes in.

    >>> Inflate().adapt([torch.ones(1, 1, 1, 1)], (1, 1, 4, 1, 1), "conv1.weight").flatten()
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    how: Frames = "repeat"
    axis: int = 2

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        if len(shape) <= self.axis or shapes[0] != without(shape, self.axis):
            wanted = f"the site's shape without dimension {self.axis}"
            raise ValueError(f"{self} needs {wanted}, but got {list(shapes[0])} for a site of {list(shape)}")

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        frames = shape[self.axis]
        if self.how == "repeat":
            return (upcast(tensors[0]) / frames).unsqueeze(self.axis).expand(shape)
        video = tensors[0].new_zeros(shape)
        video.select(self.axis, frames // 2).copy_(tensors[0])
        return video

    def read_plan(self, shapes: Sequence[Size], shape: Size, box: Box, key: str) -> ReadPlan:
        axis, frames = self.axis, (box.start[self.axis], box.shape[self.axis])
        image = Box(without(box.start, axis), without(box.shape, axis))
        video = replaced(box.shape, axis, shape[axis])
        return ReadPlan((image,), lambda tensors: self.adapt(tensors, video, key).narrow(axis, *frames))


@register
class ResizePatches(Adapter):
    r"""A patch embedding ``[out, in, h, w]`` for patches of another size (FlexiViT, https://arxiv.org/abs/2212.08013).

    With B the matrix that resizes a patch of the file's size to the site's, bicubically, the new weight is

    .. math:: w' = (B^\top)^+ w

    so that the embedding of an enlarged patch is that of the patch itself; for smaller patches it is as near
    as least squares can make it.

    >>> ResizePatches().check([(768, 3, 16, 16)], (768, 3, 32, 32), "patch_embed.proj.weight")
    """

    only_resizes: ClassVar[bool] = True
    antialias: bool = True

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        check_same(self, shapes, shape, {-2, -1}, least=3)

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        weight = tensors[0]
        old, new = tuple(weight.shape[-2:]), shape[-2:]
        if old == new:
            return weight
        # The patches of unit vectors, resized, are the rows of B transposed. In float64, to be rounded once.
        unit = torch.eye(old[0] * old[1], dtype=torch.float64, device="cpu").view(-1, 1, *old)
        resize = F.interpolate(unit, new, mode="bicubic", antialias=self.antialias).flatten(1)
        inverse = torch.linalg.pinv(resize).to(weight.device)
        resized: Tensor = weight.double().flatten(-2) @ inverse.T
        return resized.view(shape).to(upcast(weight).dtype)


class _ResizeGrid(Adapter):
    """A table ``[..., rows, width]`` some of whose rows lie on a grid, row by row, and are resampled bicubically.

    The first rows have no place: as many as ``_heads`` says of the file and of the site. Those that both have stay, as
    do those behind the grid; others of the site are zero. Grids are square unless ``file`` and ``site`` say more.
    """

    __slots__ = ()

    file: Grid | None
    site: Grid | None
    antialias: bool

    @property
    def _heads(self) -> tuple[int, int]:
        return 0, 0

    @abstractmethod
    def _grid(self, name: str, given: Grid | None, rows: int) -> Grid:
        """The grid of so many rows; raises ValueError where they cannot be one."""

    def _grids(self, stored: Size, shape: Size) -> tuple[Grid, Grid]:
        return self._grid("file", self.file, stored[-2]), self._grid("site", self.site, shape[-2])

    def changes(self, shapes: Sequence[Size], shape: Size) -> bool:
        old, new = self._grids(shapes[0], shape)
        return old != new or len({*self._heads}) > 1

    def adapt(self, tensors: Sequence[Tensor], shape: Size, key: str) -> Tensor:
        table = tensors[0]
        old, new = self._grids(tuple(table.shape), shape)
        if not self.changes([tuple(table.shape)], shape):
            return table
        table = table if old == new else upcast(table)
        had, wanted = self._heads
        before, grid, behind = table.tensor_split([had, had + math.prod(old)], -2)
        before = before.narrow(-2, 0, min(had, wanted))
        added = before.new_zeros(*shape[:-2], max(0, wanted - had), shape[-1])
        if old != new:
            places = grid.reshape(-1, *old, shape[-1]).permute(0, 3, 1, 2)
            resized = F.interpolate(places, new, mode="bicubic", antialias=self.antialias).permute(0, 2, 3, 1)
            grid = resized.reshape(*shape[:-2], -1, shape[-1])
        return torch.cat([before, added, grid, behind], -2)

    def __post_init__(self) -> None:
        for name in ("file", "site"):
            if (grid := getattr(self, name)) is not None:
                if not (isinstance(grid, (list, tuple)) and len(grid) == 2 and all(map(is_integer, grid))):
                    raise ValueError(f"{name} must be (height, width) in whole numbers from 1, but got {grid!r}")
                object.__setattr__(self, name, tuple(grid))


@register
class ResizePositions(_ResizeGrid):
    """Absolute position embeddings ``[..., tokens, width]`` for another number of patches, resampled bicubically.

    The first ``prefix`` tokens (class, distillation, registers) have no place and stay; the others lie row by row on a
    grid. Where the site has another number of such tokens, ``site_prefix``, those that both have stay, and new ones are
    zero. Grids are square unless given as (height, width): ``file`` and ``site``. With ``antialias=True`` a smaller
    grid averages, as timm's ``resample_abs_pos_embed`` does. The same grid stays as it is, bit for bit.

    >>> ResizePositions(prefix=0).check([(1, 197, 768)], (1, 576, 768), "pos_embed")
    Traceback (most recent call last):
    ValueError: 197 tokens with prefix=0 are not a square grid; with prefix=1 they are 14x14, else give file=(h, w)
    """

    prefix: int = 1
    file: Grid | None = None
    site: Grid | None = None
    antialias: bool = True
    site_prefix: int | None = None

    @property
    def _heads(self) -> tuple[int, int]:
        return self.prefix, self.prefix if self.site_prefix is None else self.site_prefix

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        self._grids(check_same(self, shapes, shape, {-2}, least=2), shape)

    def _grid(self, name: str, given: Grid | None, rows: int) -> Grid:
        prefix = self._heads[name == "site"]
        rest = rows - prefix
        side = math.isqrt(max(rest, 0))
        if given is not None and math.prod(given) != rest:
            places = f"{name}={given} has {math.prod(given)} places"
            raise ValueError(f"{places}, but there are {rest} tokens besides the prefix")
        if given is None and (rest < 1 or side * side != rest):
            squares = (rows - first for first in range(min(rows, 9)))
            near = next((square for square in squares if math.isqrt(square) ** 2 == square), 0)
            hint = f"with prefix={rows - near} they are {math.isqrt(near)}x{math.isqrt(near)}, else " if near else ""
            hint += f"give {name}=(h, w)"
            hint += f"; site_prefix={rows - near} is for the site alone" if near and name == "site" else ""
            raise ValueError(f"{rows} tokens with prefix={prefix} are not a square grid; {hint}")
        return given or (side, side)


@register
class ResizeRelativeBias(_ResizeGrid):
    """Tables of relative position biases ``[(2h-1)(2w-1) + extra, heads]`` for another window, resampled bicubically.

    Swin has ``extra=0``, BEiT ``extra=3`` rows for its class token, which stay. Windows are square unless
    given as (height, width): ``file`` and ``site``. The same window stays as it is.

    >>> ResizeRelativeBias().check([(169, 4)], (529, 4), "relative_position_bias_table")
    """

    extra: int = 0
    file: Grid | None = None
    site: Grid | None = None
    antialias: bool = False

    def check(self, shapes: Sequence[Size], shape: Size, key: str) -> None:
        self._grids(check_same(self, shapes, shape, {0}, least=2, most=2), shape)

    def _grid(self, name: str, given: Grid | None, rows: int) -> Grid:
        """The differences of rows and of columns in a window."""
        rest = rows - self.extra
        side = math.isqrt(max(rest, 0))
        grid = (2 * given[0] - 1, 2 * given[1] - 1) if given else (side, side)
        if given and math.prod(grid) != rest:
            biases = f"{name}={given} makes {math.prod(grid)} biases"
            raise ValueError(f"{biases}, but there are {rest} besides {self.extra} extra")
        if not given and (side % 2 == 0 or side * side != rest):
            remedy = f"give {name}=(h, w) or another extra"
            raise ValueError(f"{rows} rows with extra={self.extra} are not a square window; {remedy}")
        return grid
