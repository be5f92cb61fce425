"""Fills of matrices and kernels, most of which need the whole tensor before they can write a part of it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, ClassVar, Literal, Self, final

import torch
from torch import Tensor

from torchinit.initializers.base import Blockwise, Fill, check_fit
from torchinit.initializers.elementwise import Normal
from torchinit.initializers.statistics import Moments
from torchinit.model.shards import Shard
from torchinit.noise import Noise
from torchinit.noise.settings import on_one_thread
from torchinit.serialization.schema import check_integers, check_number, is_integer

if TYPE_CHECKING:
    from torchinit.model.sites import Site


class RegionFill(Fill):
    """A fill that computes its whole region, then keeps the parts that are here."""

    __slots__ = ()

    #: Peak memory an element of the region, in bytes: some float64 copies, as measured on the host.
    bytes_an_element: ClassVar[int] = 48

    @abstractmethod
    def compute(self, shard: Shard, noise: Noise) -> Tensor:
        """The values of ``shard.region``, in its shape, in any floating dtype."""

    def write(self, shard: Shard, noise: Noise) -> None:
        self.write_parts((shard,), noise)

    def write_parts(self, parts: Sequence[Shard], noise: Noise) -> None:
        here = [part for part in parts if part.local.numel()]
        if not here:
            return
        whole = self.compute(here[0], noise)
        for part in here:
            offsets = zip(part.start, part.region.start, part.local.shape, strict=True)
            part.local.copy_(whole[tuple(slice(at - low, at - low + size) for at, low, size in offsets)])

    def scratch(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * self.bytes_an_element


class _Gained(Fill):
    """A fill of zeros and of entries that go up to its ``gain``."""

    __slots__ = ()

    gain: float
    #: The numbers of dimensions that it takes, and how an error puts it.
    dimensions: ClassVar[tuple[range, str]] = (range(3, 6), "a kernel of 3 to 5 dimensions")

    def __post_init__(self) -> None:
        check_number("gain", self.gain)

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if len(shape) not in self.dimensions[0]:
            raise ValueError(f"{type(self).__name__} needs {self.dimensions[1]}, but the shape is {shape}")
        check_fit(self, -abs(self.gain), abs(self.gain), dtype)

    def scaled(self, factor: float) -> Self:
        return replace(self, gain=self.gain * factor)  # type: ignore[type-var]  # all of them are dataclasses


class FromGaussian(RegionFill):
    """A fill that is computed from a Gaussian matrix; of a complex one each part has half of the variance."""

    __slots__ = ()

    def parts(self, shape: tuple[int, ...] = ()) -> Moments | None:
        whole = self.moments(shape)
        return whole and whole.shrunk(math.sqrt(0.5))


def _gaussian(shard: Shard, noise: Noise) -> Tensor:
    """A standard normal tensor in the shape of the shard's region, from the same noise as its elements."""
    region = shard.region
    values = torch.empty(region.shape, dtype=noise.linalg_dtype(shard.local.dtype), device=shard.local.device)
    noise.fill(Shard(shard.name, values, shard.shape, region.start, region), "normal", (0.0, 1.0))
    return values


def _orthonormal(gaussian: Tensor, noise: Noise) -> Tensor:
    """The orthonormal factor of a Gaussian matrix, uniform over all of them (Mezzadri, math-ph/0609050).

    LAPACK leaves the signs of R's diagonal open; taking them into Q makes the draw uniform and the
    answer unique. With a seed the bits are those of one thread; without one, those of ``torch.nn.init`` called here.
    """
    wide = gaussian.shape[0] < gaussian.shape[1]
    matrix = gaussian.mT if wide else gaussian
    alone = not noise.is_stateful and matrix.device.type == "cpu"
    q, r = on_one_thread(torch.linalg.qr, matrix) if alone else torch.linalg.qr(matrix)
    unique: Tensor = q * r.diagonal().sgn()
    return unique.mT if wide else unique


@final
@dataclass(frozen=True, slots=True)
class Orthogonal(_Gained, FromGaussian):
    """A matrix with orthonormal rows or columns, whichever are fewer, times ``gain``.

    ``axis`` runs over the rows; the other dimensions are flattened into the columns. Drawn uniformly (Haar measure) by
    the QR factorization of a Gaussian. On the global stream it has the bits of ``torch.nn.init.orthogonal_``.
    Saxe et al. (2013), https://arxiv.org/abs/1312.6120

    >>> Orthogonal(gain=2.0).moments((3, 3)).std
    1.1547005383792517
    """

    gain: float = 1.0
    axis: int = 0
    bytes_an_element: ClassVar[int] = 34
    dimensions: ClassVar[tuple[range, str]] = (range(2, 65), "at least 2 dimensions")

    def __post_init__(self) -> None:
        _Gained.__post_init__(self)
        check_integers(self, "axis", least=0)

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        _Gained.check(self, shape, dtype)
        if self.axis >= len(shape):
            raise ValueError(f"Orthogonal has axis={self.axis}, but the shape is {shape}")

    def compute(self, shard: Shard, noise: Noise) -> Tensor:
        gaussian = _gaussian(shard, noise).movedim(self.axis, 0)
        matrix = _orthonormal(gaussian.reshape(gaussian.shape[0], -1), noise).mul_(self.gain)
        return matrix.reshape(gaussian.shape).movedim(0, self.axis)

    def stacked(self, axis: int, rows: int, columns: int, count: int) -> Fill:
        # The draws are those at the matrices' own places in the stack.
        each = replace(self, axis=(rows, columns)[self.axis])
        return Blockwise((each,) * count, (1,) * count, axis)

    def work(self, shape: tuple[int, ...]) -> int:
        numel = math.prod(shape)
        return numel * min(shape[self.axis], numel // shape[self.axis])

    def moments(self, shape: tuple[int, ...] = ()) -> Moments | None:
        # Haar matrices have mean 0 and, because their rows or columns have length 1, mean square 1 / longer side.
        rows, bound = shape[self.axis], abs(self.gain)
        longer = max(rows, math.prod(shape) // rows if rows else 0)
        return Moments(0.0, bound / math.sqrt(longer), -bound, bound) if longer else None


@final
@dataclass(frozen=True, slots=True)
class DeltaOrthogonal(_Gained, FromGaussian):
    """A convolution kernel that is orthogonal at its centre and zero elsewhere.

    Needs at least as many outputs (``axis``) as inputs (the other of the first two dimensions).
    Xiao et al. (2018), https://arxiv.org/abs/1806.05393

    >>> DeltaOrthogonal(gain=1.0, axis=0)
    DeltaOrthogonal(gain=1.0, axis=0)
    """

    gain: float = 1.0
    axis: int = 0
    bytes_an_element: ClassVar[int] = 20

    def __post_init__(self) -> None:
        _Gained.__post_init__(self)
        if self.axis not in (0, 1):
            raise ValueError(f"axis must be 0 or 1, but got {self.axis!r}")

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        _Gained.check(self, shape, dtype)
        if shape[self.axis] < shape[1 - self.axis]:
            raise ValueError(f"DeltaOrthogonal needs at least as many outputs as inputs, but the shape is {shape}")

    def compute(self, shard: Shard, noise: Noise) -> Tensor:
        gaussian = _gaussian(shard, noise)
        centre = [(size - 1) // 2 for size in gaussian.shape[2:]]
        matrix = _orthonormal(_tap(gaussian, centre).movedim(self.axis, 0), noise).mul_(self.gain)
        whole = torch.zeros_like(gaussian)
        _tap(whole, centre).copy_(matrix.movedim(0, self.axis))
        return whole

    def work(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) + shape[0] * shape[1] * min(shape[:2])

    def moments(self, shape: tuple[int, ...] = ()) -> Moments:
        energy = shape[1 - self.axis] * self.gain**2 / max(1, math.prod(shape))
        return Moments(0.0, math.sqrt(energy), -abs(self.gain), abs(self.gain))


@final
@dataclass(frozen=True, slots=True)
class Identity(_Gained):
    """``gain`` on the main diagonal of a matrix, zero elsewhere.

    Le et al. (2015) start recurrent weights so, https://arxiv.org/abs/1504.00941

    >>> Identity().moments((2, 2)).mean
    0.5
    """

    gain: float = 1.0
    dimensions: ClassVar[tuple[range, str]] = (range(2, 3), "2 dimensions")

    def write(self, shard: Shard, noise: Noise) -> None:
        # Unlike its siblings it needs no other element to know one, nor their memory.
        row, column = (at - low for at, low in zip(shard.start, shard.region.start, strict=True))
        shard.local.zero_()
        if -shard.local.shape[0] < row - column < shard.local.shape[1]:
            shard.local.diagonal(row - column).fill_(self.gain)

    def moments(self, shape: tuple[int, ...] = ()) -> Moments:
        return _sprinkled(self.gain, min(shape), math.prod(shape))


@final
@dataclass(frozen=True, slots=True)
class Dirac(_Gained, RegionFill):
    """A convolution kernel that passes its inputs on: ``gain`` at the centre where output and input agree.

    ``groups`` parts of the outputs each pass on the same inputs, as ``torch.nn.init.dirac_``; ``"layer"`` takes the
    number of groups of the convolution itself, so that each passes on the inputs that it has.

    >>> Dirac(groups=2).scaled(0.5)
    Dirac(groups=2, gain=0.5)
    """

    groups: int | Literal["layer"] = 1
    gain: float = 1.0
    bytes_an_element: ClassVar[int] = 4

    def __post_init__(self) -> None:
        _Gained.__post_init__(self)
        if self.groups != "layer" and not is_integer(self.groups):
            raise ValueError(f"groups must be a whole number of at least 1, or 'layer', but got {self.groups!r}")

    def resolve(self, site: Site) -> Fill | None:
        found = site.layout.groups if site.layout else 1
        return Fill.resolve(replace(self, groups=found) if self.groups == "layer" else self, site)

    @property
    def parts_of_outputs(self) -> int:
        """The number of groups; 1 where it is the layer's, which only a site can tell."""
        return 1 if isinstance(self.groups, str) else self.groups

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        _Gained.check(self, shape, dtype)
        if shape[0] % self.parts_of_outputs:
            raise ValueError(f"Dirac has groups={self.groups}, which does not divide dimension 0 of {shape}")

    def compute(self, shard: Shard, noise: Noise) -> Tensor:
        shape = shard.region.shape
        whole = torch.zeros(shape, dtype=torch.float32, device=shard.local.device)
        for group in _tap(whole, [size // 2 for size in shape[2:]]).chunk(self.parts_of_outputs):
            group.fill_diagonal_(self.gain)
        return whole

    def moments(self, shape: tuple[int, ...] = ()) -> Moments:
        return _sprinkled(self.gain, dirac_ones(shape, self.parts_of_outputs), math.prod(shape))


def dirac_ones(shape: tuple[int, ...], groups: int) -> int:
    """The number of outputs that a Dirac kernel of so many groups passes something on to."""
    return groups * min(shape[0] // groups, shape[1])


@final
@dataclass(frozen=True, slots=True)
class Sparse(FromGaussian):
    """N(0, std²) with the share ``sparsity`` of each column zero, the places drawn at random.

    Martens (2010), "Deep learning via Hessian-free optimization". On the global stream it has the bits of
    ``torch.nn.init.sparse_``.

    >>> Sparse(0.5, std=1.0).moments((10, 4)).std
    0.7071067811865476
    """

    sparsity: float
    std: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= check_number("sparsity", self.sparsity) <= 1:
            raise ValueError(f"sparsity must lie in [0, 1], but got {self.sparsity!r}")
        check_number("std", self.std, least=0)

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if len(shape) != 2:
            raise ValueError(f"Sparse needs 2 dimensions, but the shape is {shape}")
        Normal(0.0, self.std).check(shape, dtype)

    def compute(self, shard: Shard, noise: Noise) -> Tensor:
        whole = _gaussian(shard, noise).mul_(self.std)
        zeros = math.ceil(self.sparsity * whole.shape[0])
        return whole.scatter_(0, noise.order(shard, 1)[:zeros], 0.0)

    def scaled(self, factor: float) -> Fill:
        return replace(self, std=self.std * abs(factor))

    def moments(self, shape: tuple[int, ...] = ()) -> Moments:
        share = 1 - math.ceil(self.sparsity * shape[0]) / shape[0] if shape[0] else 0.0
        return Moments(0.0, self.std * math.sqrt(share), kurtosis=3 / share if share else 3.0)


def _tap(kernel: Tensor, at: Sequence[int]) -> Tensor:
    """The matrix of a convolution kernel at one place of its receptive field."""
    return reduce(lambda inner, index: inner.select(2, index), at, kernel)


def _sprinkled(value: float, times: int, among: int) -> Moments:
    """``value`` so many times among zeros."""
    share = times / among if among else 0.0
    spread = abs(value) * math.sqrt(share * (1 - share))
    return Moments(value * share, spread, min(0.0, value), max(0.0, value))
