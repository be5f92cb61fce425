"""Initializers and fills in general; a multiple of any fill, a fill for each matrix of a stack, fills side by side."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeGuard, final, runtime_checkable

import torch

from torchinit._text import ShortStr, dtype_name
from torchinit.errors import CheckpointError
from torchinit.initializers.statistics import Moments, mixture, point
from torchinit.model.shards import Box, Shard, replaced, without
from torchinit.noise import DrawRequest, Noise
from torchinit.serialization.schema import check_number, is_integer

if TYPE_CHECKING:
    from torchinit.model.sites import Site


@runtime_checkable
class Initializer(Protocol):
    """A formula: what a site starts with, once its shape is known.

    >>> from torchinit import Normal
    >>> isinstance(Normal(), Initializer)
    True
    """

    def resolve(self, site: Site) -> Fill | None:
        """The fill for this site; None declines, and the site stays with its other rules.

        Raises ValueError (for example FanError) when the formula has no answer for such a site.
        """


def is_initializer(value: object) -> TypeGuard[Initializer]:
    """Whether a value is one by the test of ``isinstance``, which takes Python 3.11 a hundred times as long."""
    return getattr(value, "resolve", None) is not None


def fill_of(init: Initializer, site: Site) -> Fill | None:
    """The fill that an initializer gives a site; raises ValueError, with what is missing, for anything else."""
    fill = init.resolve(site)
    if fill is None or isinstance(fill, Fill):
        return fill
    missing = [name for name in vars(Fill) if not (name.startswith("_") or hasattr(fill, name))]
    lacks = f": it has no {', no '.join(missing)}" if missing else ""
    given = f"{type(init).__name__} gives a {type(fill).__name__}"
    raise ValueError(f"{given}, which is not a torchinit.initializers.Fill{lacks}")


def block_of(site: Site) -> tuple[int, int]:
    """The place of a site among like blocks, and their number; raises ValueError where it stands in none."""
    if site.block is None:
        way_out = f'leave it out (exclude = "{site.name}"), or write the number itself'
        raise ValueError(f"{site.name!r} stands in no ModuleList or Sequential of like blocks; {way_out}")
    return site.block


def why_not(check: Callable[..., object], *arguments: object) -> str:
    """The text of the ValueError or CheckpointError that a call raises; empty if it raises none."""
    try:
        check(*arguments)
    except (ValueError, CheckpointError) as error:
        return str(error)
    return ""


class Fill(ShortStr, ABC):
    """Known numbers. A fill resolves to itself, writes itself into a shard, and says what to expect.

    A subclass has to define :meth:`write`; the defaults of all other methods hold for any fill.

    >>> from torchinit import Constant
    >>> Constant(2.0).moments((3,)).mean
    2.0
    """

    __slots__ = ()

    def resolve(self, site: Site) -> Fill | None:
        """The fill itself, once it has looked at the site."""
        self.check(site.shape, site.dtype)
        return self

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Raise ValueError where a tensor of this shape and dtype cannot hold the fill."""
        del shape, dtype

    @property
    def obstacle(self) -> str:
        """The reason why no run can write it; empty for a fill that can be written."""
        return ""

    @property
    def locked(self) -> bool:
        """Whether no later rule may write over it."""
        return False

    @property
    def content(self) -> str:
        """A digest of what it takes from elsewhere, which ranks compare; empty for a fill that knows its numbers."""
        return ""

    def prepare(self, shard: Shard) -> None:
        """Look at what can be known only now; raises ValueError or CheckpointError, while nothing is written yet."""
        del shard

    @classmethod
    def prepares(cls) -> bool:
        """Whether fills of this class look at anything before they are written."""
        above = cls.__mro__[: cls.__mro__.index(Fill)]
        return any({"prepare", "prepare_all"} & vars(kind).keys() for kind in above)

    @classmethod
    def prepare_all(cls, pairs: Sequence[tuple[Any, Shard]]) -> list[str]:
        """Prepare many fills of this class: for each the reason why it cannot be written, empty if it can."""
        return [why_not(fill.prepare, shard) for fill, shard in pairs]

    @abstractmethod
    def write(self, shard: Shard, noise: Noise) -> None:
        """Write ``shard.local``. Only :func:`torchinit.plans.run.run` calls this."""

    def write_parts(self, parts: Sequence[Shard], noise: Noise) -> None:
        """Write several parts of one tensor; a fill that must compute the whole does so once."""
        for part in parts:
            self.write(part, noise)

    batched: ClassVar[bool] = False
    """Whether fills of this class move no generator, and neighbours are written by one call of :meth:`write_all`."""

    @classmethod
    def write_all(cls, pairs: Sequence[tuple[Any, Shard]], noise: Noise) -> None:
        """Write many fills of this class, each into its shard."""
        for fill, shard in pairs:
            fill.write(shard, noise)

    def job(self, shard: Shard) -> DrawRequest | None:
        """The one draw that writes the shard; None where :meth:`write` does something else as well."""
        return None

    @property
    def elementwise(self) -> bool:
        """Whether every element stands for itself, so that a fill for a part is a fill for the whole."""
        return False

    def scaled(self, factor: float) -> Fill:
        """The fill that writes these values times ``factor``."""
        return ScaledFill(self, factor)

    def stacked(self, axis: int, rows: int, columns: int, count: int) -> Fill:
        """The fill for a stack of ``count`` matrices along ``axis``, whose own axes are ``rows`` and ``columns``."""
        return self if self.elementwise else StackedFill(self, axis, transposed=columns < rows)

    def regions(self, shape: tuple[int, ...]) -> tuple[tuple[Box, Fill], ...]:
        """The boxes that a tensor of this shape is made of, each with its fill; a later one lies over earlier ones."""
        return ((Box.whole(shape), self),)

    def moments(self, shape: tuple[int, ...] = ()) -> Moments | None:
        """The moments to expect of a tensor of this shape; None where they are not known."""
        return None

    def parts(self, shape: tuple[int, ...] = ()) -> Moments | None:
        """The moments to expect of the real and imaginary parts of a complex tensor, taken together."""
        return mixture([self.moments(shape), point(0.0)], (1, 1))

    def scratch(self, shape: tuple[int, ...]) -> int:
        """The bytes of memory beside the tensor's own, if any part of it needs the whole computed; else 0."""
        return 0

    def work(self, shape: tuple[int, ...]) -> int:
        """A number that the time for a tensor of this shape is proportional to: here its elements."""
        return math.prod(shape)


def check_fit(fill: Fill, low: float, high: float, dtype: torch.dtype) -> None:
    """Raise ValueError where a fill whose values lie between these does not fit into the dtype."""
    if max(-low, high) > (most := torch.finfo(dtype).max):
        raise ValueError(f"{fill} goes beyond {most:.6g}, the largest number of {dtype_name(dtype)}")


class Wrapper(Fill):
    """A fill around another one, :attr:`fill`, to which it leaves what it does not do itself."""

    __slots__ = ()

    fill: Fill

    def inner_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what the inner fill writes at a time, in a tensor of this shape."""
        return shape

    def expected(self, inner: Moments, shape: tuple[int, ...]) -> Moments | None:
        """The moments of a tensor, out of those that the inner fill gives it."""
        return inner

    @property
    def obstacle(self) -> str:
        return self.fill.obstacle

    @property
    def locked(self) -> bool:
        return self.fill.locked

    @property
    def content(self) -> str:
        return self.fill.content

    def prepare(self, shard: Shard) -> None:
        self.fill.prepare(shard)

    def write(self, shard: Shard, noise: Noise) -> None:
        self.write_parts((shard,), noise)

    def scaled(self, factor: float) -> Fill:
        return replace(self, fill=self.fill.scaled(factor))  # type: ignore[type-var]  # a subclass is a dataclass

    def moments(self, shape: tuple[int, ...] = ()) -> Moments | None:
        inner = self.fill.moments(self.inner_shape(shape))
        return inner and self.expected(inner, shape)

    def parts(self, shape: tuple[int, ...] = ()) -> Moments | None:
        inner = self.fill.parts(self.inner_shape(shape))
        return inner and self.expected(inner, shape)

    def scratch(self, shape: tuple[int, ...]) -> int:
        return self.fill.scratch(self.inner_shape(shape))


@final
@dataclass(frozen=True, slots=True)
class ScaledFill(Wrapper):
    """The values of any other fill times ``factor``.

    >>> from torchinit import Uniform
    >>> fill = ScaledFill(Uniform(0.0, 1.0), -2.0)
    >>> print(fill, fill.moments().mean)
    -2 * Uniform() -1.0
    """

    fill: Fill
    factor: float

    def __post_init__(self) -> None:
        check_number("factor", self.factor)

    def __str__(self) -> str:
        return f"{self.factor:.6g} * {self.fill}"

    @property
    def elementwise(self) -> bool:
        return self.fill.elementwise

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if not (dtype.is_floating_point or dtype.is_complex):
            raise ValueError(f"{self} needs a floating dtype, but got {dtype_name(dtype)}")
        self.fill.check(shape, dtype)
        ends = self.moments(shape) or Moments()
        check_fit(self, ends.min or 0.0, ends.max or 0.0, dtype)

    def write_parts(self, parts: Sequence[Shard], noise: Noise) -> None:
        # Keyed values are rounded to the dtype once, after the product; torch's generator gives what `mul_` would.
        drawn = list(parts)
        for at, part in enumerate(parts):
            wide = torch.complex64 if part.local.is_complex() else torch.float32
            if not noise.is_stateful and part.local.dtype.itemsize < wide.itemsize:
                drawn[at] = replace(part, local=torch.empty_like(part.local, dtype=wide))
        self.fill.write_parts(drawn, noise)
        for part, product in zip(parts, drawn, strict=True):
            product.local.mul_(self.factor)
            if product is not part:
                part.local.copy_(product.local)

    def scaled(self, factor: float) -> Fill:
        return ScaledFill(self.fill, self.factor * factor)

    def expected(self, inner: Moments, shape: tuple[int, ...]) -> Moments:
        return inner.scaled(self.factor)


@final
@dataclass(frozen=True, slots=True)
class StackedFill(Wrapper):
    """A fill for each matrix of a stack along ``axis``: matrix i of ``experts`` gets what a site ``experts[i]`` would.

    ``transposed`` says that the columns of the matrices come before their rows in the stack.

    >>> from torchinit.initializers import Identity
    >>> StackedFill(Identity(), axis=0).moments((8, 2, 2)).mean
    0.5
    """

    fill: Fill
    axis: int
    transposed: bool = False

    def inner_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return without(shape, self.axis)[:: -1 if self.transposed else 1]

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if len(shape) != 3 or not 0 <= self.axis < 3:
            raise ValueError(f"a stack of matrices along axis {self.axis} needs 3 dimensions, but the shape is {shape}")
        self.fill.check(self.inner_shape(shape), dtype)

    def write_parts(self, parts: Sequence[Shard], noise: Noise) -> None:
        matrices: dict[int, list[Shard]] = defaultdict(list)
        for part in parts:
            first = part.start[self.axis]
            for index in range(first, first + part.local.shape[self.axis]):
                matrices[index].append(self._matrix(part, index))
        for _, here in sorted(matrices.items()):
            self.fill.write_parts(here, noise)

    def _matrix(self, part: Shard, index: int) -> Shard:
        """The part's piece of one matrix, as a shard of a tensor of its own."""
        local = part.local.select(self.axis, index - part.start[self.axis])
        local = local.mT if self.transposed else local
        shape, start = self.inner_shape(part.shape), self.inner_shape(part.start)
        matrix = Box(self.inner_shape(part.region.start), self.inner_shape(part.region.shape))
        return replace(part, name=f"{part.name}[{index}]", local=local, shape=shape, start=start, matrix=matrix)

    def regions(self, shape: tuple[int, ...]) -> tuple[tuple[Box, Fill], ...]:
        each = replaced(shape, self.axis, 1)
        return tuple((Box(replaced((0, 0, 0), self.axis, at), each), self) for at in range(shape[self.axis]))


@final
@dataclass(frozen=True, slots=True)
class Blockwise(Fill):
    """Fills side by side along one axis, each for its own block: the q, k and v of a fused projection.

    Blocks draw at their own places in the stream of the whole, so they differ, and are the same under any sharding.

    >>> from torchinit import Constant
    >>> Blockwise((Constant(0.0), Constant(1.0)), sizes=(2, 2)).moments((4,)).mean
    0.5
    """

    fills: tuple[Fill, ...]
    sizes: tuple[int, ...]
    axis: int = 0

    def __post_init__(self) -> None:
        if len(self.fills) != len(self.sizes):
            raise ValueError(f"{len(self.fills)} fills do not go with {len(self.sizes)} sizes")
        if not self.fills or not all(map(is_integer, self.sizes)) or not is_integer(self.axis, least=0):
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
        # Blocks are laid from where the region begins, which all parts of a tensor share: blocks may lie within a
        # block. They keep their places in the stream of the whole, unlike the matrices of a stack, which have names and
        # so streams of their own.
        low = parts[0].region.start[self.axis] if parts else 0
        for fill, size in zip(self.fills, self.sizes, strict=True):
            fill.write_parts([part.cut(self.axis, low, low + size) for part in parts], noise)
            low += size

    def scaled(self, factor: float) -> Fill:
        return replace(self, fills=tuple(fill.scaled(factor) for fill in self.fills))

    def regions(self, shape: tuple[int, ...]) -> tuple[tuple[Box, Fill], ...]:
        return tuple(
            (Box(replaced(box.start, self.axis, box.start[self.axis] + at), box.shape), inner)
            for at, (fill, block) in zip(accumulate(self.sizes, initial=0), self._blocks(shape), strict=False)
            for box, inner in fill.regions(block)
        )

    def moments(self, shape: tuple[int, ...] = ()) -> Moments | None:
        return mixture([fill.moments(block) for fill, block in self._blocks(shape)], self.sizes)

    def parts(self, shape: tuple[int, ...] = ()) -> Moments | None:
        return mixture([fill.parts(block) for fill, block in self._blocks(shape)], self.sizes)

    def scratch(self, shape: tuple[int, ...]) -> int:
        return max(fill.scratch(block) for fill, block in self._blocks(shape))

    def _blocks(self, shape: tuple[int, ...]) -> Iterator[tuple[Fill, tuple[int, ...]]]:
        for fill, size in zip(self.fills, self.sizes, strict=True):
            yield fill, replaced(shape, self.axis, size)
