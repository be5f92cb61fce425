"""Tables: fills that draw nothing, each value a function of its place: ramps, positions, slopes, kernels."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

from torchinit._text import dtype_name
from torchinit.initializers.base import Fill
from torchinit.initializers.statistics import Moments
from torchinit.model.shards import Box, Shard
from torchinit.noise import Noise
from torchinit.serialization.schema import check_choice, check_integers, check_number, is_integer

Index: TypeAlias = tuple[Tensor, ...]
"""The places of a box: whole numbers along each axis, in shapes that broadcast to that of the box."""

_MOST: int = 1 << 22
"""Of a table with more elements no moments are told."""


class IndexFill(Fill):
    """A fill whose values are a function of their place, so that any part of a tensor has those of the whole.

    They are computed in float64 on the host, with functions of which torch gives an element the same bits wherever in
    a tensor it stands (exp, log, sin, cos; not pow, nor exp2), then rounded to float32 (but for float64 tensors), as
    all draws are, and from there to the tensor's dtype.
    """

    __slots__ = ()

    @abstractmethod
    def values(self, index: Index, shape: tuple[int, ...]) -> Tensor:
        """The values at these places of a tensor of this shape, in float64; they may broadcast to the box."""

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if not dtype.is_floating_point:
            raise ValueError(f"{self} needs a real floating dtype, but got {dtype_name(dtype)}")

    def write(self, shard: Shard, noise: Noise) -> None:
        shard.local.copy_(rounded(self.here(shard), shard.local.dtype))

    def here(self, shard: Shard) -> Tensor:
        """The values of a shard."""
        # Places count from where the region begins: a block of a fused parameter has a table of its own.
        offsets = zip(shard.start, shard.region.start, strict=True)
        box = Box(tuple(first - low for first, low in offsets), tuple(shard.local.shape))
        return self.values(places(box), shard.region.shape)

    def moments(self, shape: tuple[int, ...] = ()) -> Moments | None:
        table = self.table(shape)
        return None if table is None else moments_of(table)

    def table(self, shape: tuple[int, ...]) -> Tensor | None:
        """All values that a tensor of this shape has, each equally often; None if they are too many."""
        return self.values(places(Box.whole(shape)), shape).flatten() if 0 < math.prod(shape) <= _MOST else None


def places(box: Box) -> Index:
    """The places in a box, an axis each."""
    dims = len(box.shape)
    along = (torch.arange(at, at + size, device="cpu") for at, size in zip(box.start, box.shape, strict=True))
    return tuple(axis.view([-1 if dim == d else 1 for d in range(dims)]) for dim, axis in enumerate(along))


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values on their way from float64 into a dtype: by float32, as the values of the stream."""
    return values if dtype == torch.float64 else values.to(torch.float32)


def moments_of(values: Tensor, shares: Tensor | None = None) -> Moments:
    """The moments of values that are all known, each as often as the others, or with a share of its own."""

    def mean(of: Tensor) -> Tensor:
        return of.mean() if shares is None else (of * shares).sum()

    middle = mean(values)
    variance, fourth = (float(mean((values - middle) ** power)) for power in (2, 4))
    low, high = map(float, torch.aminmax(values))
    return Moments(float(middle), math.sqrt(variance), low, high, fourth / variance**2 if variance**2 else 3.0)


class _AlongAxis(IndexFill):
    """A fill whose values change along one axis."""

    __slots__ = ()

    axis: int

    def __post_init__(self) -> None:
        if not is_integer(self.axis, least=-64):
            raise ValueError(f"axis must be a whole number, but got {self.axis!r}")

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        IndexFill.check(self, shape, dtype)
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(f"{type(self).__name__} has axis={self.axis}, but the shape is {shape}")


@final
@dataclass(frozen=True, slots=True)
class Ramp(_AlongAxis):
    r"""From ``start`` to ``stop`` along one axis, the same in all others.

    .. math:: w_i = \mathrm{start} + (\mathrm{stop} - \mathrm{start}) \, t^\mathrm{power}, \quad t = i / (n - 1)

    and with ``spacing="geometric"`` start · (stop / start)^(t^power). Without ``endpoint`` t is i / n, and ``stop`` is
    not reached. Rotary frequencies are ``Ramp(1, 1e-4, spacing="geometric", endpoint=False)``; Mamba's ``A_log`` is
    ``Mapped(Ramp(1, "columns"), "log")``. Raises ValueError for a geometric ramp that meets or crosses zero.

    >>> import torch
    >>> from torchinit.noise import Keyed
    >>> row = torch.empty(2, 4)
    >>> Ramp(1.0, 4.0).write(Shard.whole("w", row), Keyed(0))
    >>> row.tolist()
    [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]
    """

    start: float = 0.0
    stop: float = 1.0
    axis: int = -1
    spacing: Literal["linear", "geometric"] = "linear"
    power: float = 1.0
    endpoint: bool = True

    def __post_init__(self) -> None:
        check_number("start", self.start)
        check_number("stop", self.stop)
        if check_number("power", self.power) <= 0:
            raise ValueError(f"power must be above 0, but got {self.power!r}")
        _AlongAxis.__post_init__(self)
        check_choice("spacing", self.spacing, Literal["linear", "geometric"])
        if self.spacing == "geometric" and not self.start * self.stop > 0:
            raise ValueError(f"a geometric ramp stays on one side of zero, but got {self.start!r} to {self.stop!r}")

    def values(self, index: Index, shape: tuple[int, ...]) -> Tensor:
        steps, at = max(1, shape[self.axis] - self.endpoint), index[self.axis].double()
        if self.power == 1 and self.spacing == "linear":  # the product first: whole numbers stay whole
            return self.start + (self.stop - self.start) * at / steps
        # `**` was used here, and gave some elements other bits in a shard than in the whole: torch computes the bulk of
        # a tensor with vectors, and its end without, by another pow. exp and log are the same in both. log(0) is -inf,
        # whose exp is 0, as it should be: `power` is above 0.
        share = at / steps if self.power == 1 else ((at / steps).log() * self.power).exp()
        if self.spacing == "geometric":
            return self.start * (share * math.log(self.stop / self.start)).exp()
        return self.start + (self.stop - self.start) * share


@final
@dataclass(frozen=True, slots=True)
class SinCos(IndexFill):
    r"""The sines and cosines of positions (the last axis but one) at falling frequencies (the last axis, of size d).

    .. math:: \sin(p \, \omega_k), \ \cos(p \, \omega_k), \quad \omega_k = \mathrm{base}^{-2k/d}, \ k = 0 \ldots d/2 - 1

    ``order`` says how they lie: ``"interleaved"`` (sin, cos, sin, ...; Vaswani et al. 2017,
    https://arxiv.org/abs/1706.03762) or ``"halves"`` (all sines first). With ``endpoint`` the last frequency is
    1 / base, as in tensor2tensor and Whisper. With ``grid=(rows, columns)`` positions are those of an image, row by
    row, and each coordinate has half of the last axis: the column the first one, as in the code of MAE
    (https://arxiv.org/abs/2111.06377) and DiT, or ``first="row"``, as in transformers. The first ``prefix`` positions,
    those of class tokens, are zero. Raises ValueError where sizes do not fit.

    >>> import torch
    >>> from torchinit.noise import Keyed
    >>> table = torch.empty(2, 4)
    >>> SinCos().write(Shard.whole("w", table), Keyed(0))
    >>> [[round(value, 4) for value in row] for row in table.tolist()]
    [[0.0, 1.0, 0.0, 1.0], [0.8415, 0.5403, 0.01, 0.9999]]
    """

    base: float = 10000.0
    order: Literal["interleaved", "halves"] = "interleaved"
    endpoint: bool = False
    grid: tuple[int, int] | None = None
    first: Literal["column", "row"] = "column"
    prefix: int = 0

    def __post_init__(self) -> None:
        if check_number("base", self.base) <= 0:
            raise ValueError(f"base must be above 0, but got {self.base!r}")
        check_choice("order", self.order, Literal["interleaved", "halves"])
        check_choice("first", self.first, Literal["column", "row"])
        if self.grid is not None and not (len(self.grid) == 2 and all(map(is_integer, self.grid))):
            raise ValueError(f"grid must be two whole numbers, rows and columns, but got {self.grid!r}")
        check_integers(self, "prefix", least=0)

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        IndexFill.check(self, shape, dtype)
        parts = 4 if self.grid else 2
        if len(shape) < 2 or shape[-1] % parts:
            raise ValueError(f"SinCos needs positions and a last axis that {parts} divides, but the shape is {shape}")
        if self.grid and shape[-2] != self.prefix + math.prod(self.grid):
            whole = f"{self.grid[0]} x {self.grid[1]} and a prefix of {self.prefix}"
            raise ValueError(f"a grid of {whole} is not the {shape[-2]} positions of the shape {shape}")

    def values(self, index: Index, shape: tuple[int, ...]) -> Tensor:
        position, column = index[-2] - self.prefix, index[-1]
        width = shape[-1]
        if self.grid:
            width //= 2
            along_rows = (column < width) == (self.first == "column")
            position = torch.where(along_rows, position % self.grid[1], position // self.grid[1])
            column = column % width
        # From here on `column` and `width` are those of one coordinate's table: of an image the row's or the column's.
        half = width // 2
        interleaved = self.order == "interleaved"
        number = column // 2 if interleaved else column % half
        is_cos = column % 2 == 1 if interleaved else column >= half
        steps = max(1, half - self.endpoint)
        angle = position.double() * (number.double() * (-math.log(self.base) / steps)).exp()
        values = torch.where(is_cos, angle.cos(), angle.sin())
        return torch.where(index[-2] < self.prefix, 0.0, values)


@final
@dataclass(frozen=True, slots=True)
class AlibiSlopes(_AlongAxis):
    """The slope of each attention head along ``axis``: 2^(-8 h / H), h = 1 ... H, as ALiBi has them.

    For a number of heads that is not a power of two: those of the next smaller one, then every other slope of the next
    larger one. Press et al. (2022), https://arxiv.org/abs/2108.12409

    >>> [round(slope, 8) for slope in AlibiSlopes().table((4,)).tolist()]
    [0.25, 0.0625, 0.015625, 0.00390625]
    """

    axis: int = -1

    def values(self, index: Index, shape: tuple[int, ...]) -> Tensor:
        # Behind `power` heads come the slopes with odd numbers of twice as many heads: their exponents are -8 / (2 *
        # power) times 1, 3, 5, ... All exponents are exact. exp2 would need no logarithm, but has the fault of pow.
        head, power = index[self.axis].double(), 2 ** (max(1, shape[self.axis]).bit_length() - 1)
        exponent = torch.where(head < power, -8 / power * (head + 1), -4 / power * (2 * (head - power) + 1))
        return (exponent * math.log(2)).exp()


@final
@dataclass(frozen=True, slots=True)
class Bilinear(IndexFill):
    """The kernel with which a transposed convolution interpolates linearly along each axis, channel by channel.

    For outputs as many as inputs, or a depthwise kernel (one output a group); stride and padding should be those of
    the upsampling: stride s, kernel 2 s - s % 2, padding (s - 1) / 2 rounded up. Long et al. (2015),
    https://arxiv.org/abs/1411.4038. Raises ValueError for anything else than a kernel of 3 to 5 dimensions.

    >>> Bilinear().table((1, 1, 4)).tolist()
    [0.25, 0.75, 0.75, 0.25]
    """

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        IndexFill.check(self, shape, dtype)
        if not 3 <= len(shape) <= 5:
            alone = 'select kernels alone, as layer = "ConvTranspose2d" does'
            raise ValueError(f"Bilinear needs a kernel of 3 to 5 dimensions, but the shape is {shape}; {alone}")
        if shape[1] not in (1, shape[0]):
            needs = f"Bilinear needs as many outputs as inputs, or one a group, but the shape is {shape}"
            raise ValueError(f"{needs}; make the layer depthwise (groups = {shape[0]}), or take Kaiming")

    def values(self, index: Index, shape: tuple[int, ...]) -> Tensor:
        # The taps are a tent, 1 - |distance from the centre| / s, of which neighbours at a stride of s add up to 1; the
        # centre of an even kernel lies between two taps. Channels are interpolated each by itself: a depthwise kernel
        # has one output a group, and any other has taps on its diagonal alone.
        whole = (torch.ones_like(index[0]) if shape[1] == 1 else index[0] == index[1]).double()
        for at, size in zip(index[2:], shape[2:], strict=True):
            whole = whole * (1 - (at.double() - (size - 1) / 2).abs() / ((size + 1) // 2))
        return whole


@final
@dataclass(frozen=True, slots=True)
class DeformableRing(IndexFill):
    """The bias of the sampling offsets of deformable attention: a direction for each head, farther with each point.

    For ``heads`` x ``levels`` x ``points`` x 2 values: head h looks along the angle 2 pi h / heads, scaled so that the
    longer coordinate is 1, and point p goes p + 1 steps. Zhu et al. (2021), https://arxiv.org/abs/2010.04159

    >>> [abs(round(value, 4)) for value in DeformableRing(heads=4, points=2).table((16,)).tolist()[:4]]
    [1.0, 0.0, 2.0, 0.0]
    """

    heads: int
    levels: int = 1
    points: int = 4

    def __post_init__(self) -> None:
        check_integers(self, "heads", "levels", "points")

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        IndexFill.check(self, shape, dtype)
        if shape != (self.heads * self.levels * self.points * 2,):
            raise ValueError(f"{self} is for {self.heads * self.levels * self.points * 2} values, not for {shape}")

    def values(self, index: Index, shape: tuple[int, ...]) -> Tensor:
        (at,) = index
        point, head = at // 2 % self.points, at // (2 * self.points * self.levels)
        angle = head.double() * (2 * math.pi / self.heads)
        cos, sin = angle.cos(), angle.sin()
        along = torch.where(at % 2 == 0, cos, sin) / torch.maximum(cos.abs(), sin.abs())
        return along * (point + 1)
