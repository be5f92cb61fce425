"""Initializers made of other initializers, the fill of an embedding with a padding row, and one for unknown code."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import torch

import torchinit._limits as limits
from torchinit._text import ShortStr
from torchinit.errors import RunError
from torchinit.initializers.base import Blockwise, Fill, Initializer, Wrapper, block_of, fill_of
from torchinit.initializers.elementwise import Constant
from torchinit.initializers.functions import as_initializer
from torchinit.initializers.statistics import Moments, mixture, point
from torchinit.model.layouts import Layout
from torchinit.model.shards import Box, Shard, replaced
from torchinit.model.sites import Site
from torchinit.noise import Noise
from torchinit.serialization.registry import Deferred
from torchinit.serialization.schema import check_choice, check_integers, check_number, is_integer


@final
@dataclass(frozen=True, slots=True)
class Scaled(ShortStr):
    """Another initializer with all its values times ``factor``.

    >>> from torchinit import Normal
    >>> Scaled(Normal(std=0.02), 0.5).resolve(Site("w", (4, 4)))
    Normal(mean=0.0, std=0.01)
    """

    init: Initializer
    factor: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "init", as_initializer(self.init))
        check_number("factor", self.factor)

    def resolve(self, site: Site) -> Fill | None:
        fill = fill_of(self.init, site)
        return fill and fill.scaled(self.factor)


@final
@dataclass(frozen=True, slots=True)
class DepthScaled(ShortStr):
    r"""Another initializer, made smaller with depth, so that the sum of all residual branches stays bounded.

    .. math:: \text{factor} = 1 / \sqrt{\text{branches} \cdot n}

    with ``by="depth"`` n is the number of blocks (GPT-2 scales its output projections so, with two branches
    a block); with ``by="index"`` it is the block's own number, counted from 1 (Zhang et al. 2019,
    https://arxiv.org/abs/1908.11365). Raises ValueError (in a plan: PlanError) outside of a block.

    >>> from torchinit import Normal
    >>> site = Site("h.2.proj.weight", (8, 8), block=(2, 8))
    >>> DepthScaled(Normal(std=0.02)).resolve(site)
    Normal(mean=0.0, std=0.005)
    """

    init: Initializer
    branches: float = 2
    by: Literal["depth", "index"] = "depth"

    def __post_init__(self) -> None:
        object.__setattr__(self, "init", as_initializer(self.init))
        if check_number("branches", self.branches) <= 0:
            raise ValueError(f"branches must be above 0, but got {self.branches!r}")
        check_choice("by", self.by, Literal["depth", "index"])

    def resolve(self, site: Site) -> Fill | None:
        index, depth = block_of(site)
        blocks = depth if self.by == "depth" else index + 1
        return Scaled(self.init, 1 / math.sqrt(self.branches * blocks)).resolve(site)


@final
@dataclass(frozen=True, slots=True)
class Blocks(ShortStr):
    """An initializer for each block of a fused weight, as if the blocks were tensors of their own, with their own fans.

    ``parts`` is the number of equal blocks along the output axis, or their sizes. ``init`` is one
    initializer for all, or one for each.

    >>> from torchinit import Ones, Xavier, Zeros
    >>> Blocks(Xavier(), parts=3).resolve(Site("in_proj_weight", (12, 4)))
    Normal(mean=0.0, std=0.5)
    >>> Blocks((Zeros(), Ones(), Zeros(), Zeros()), parts=4).resolve(Site("bias_ih_l0", (8,))).sizes
    (2, 2, 2, 2)
    """

    init: Initializer | tuple[Initializer, ...]
    parts: int | tuple[int, ...]

    def __post_init__(self) -> None:
        each = tuple(map(as_initializer, self.init)) if isinstance(self.init, tuple) else as_initializer(self.init)
        object.__setattr__(self, "init", each)
        sizes = (self.parts,) if isinstance(self.parts, int) else self.parts
        if not sizes or not all(map(is_integer, sizes)):
            raise ValueError(f"parts must be a whole number of at least 1, or a list of them, but got {self.parts!r}")
        count = self.parts if isinstance(self.parts, int) else len(self.parts)
        if count > limits.BLOCKS:
            raise ValueError(f"a weight has at most {limits.BLOCKS:,} parts")
        if isinstance(self.init, tuple) and len(self.init) != count:
            raise ValueError(f"{len(self.init)} initializers do not go with {count} parts")

    def resolve(self, site: Site) -> Fill | None:
        parts = self.parts_of(site)
        fills = tuple(fill for init, part in parts if (fill := fill_of(init, part)) is not None)
        if len(fills) < len(parts):
            return None
        if len(set(fills)) == 1 and fills[0].elementwise:
            return fills[0]
        axis = (site.layout or Layout()).out_axes[0]
        return Blockwise(fills, tuple(part.shape[axis] for _, part in parts), axis)

    def parts_of(self, site: Site) -> list[tuple[Initializer, Site]]:
        """The blocks of a site as sites of their own, each with its initializer; ValueError where it has none."""
        layout = site.layout or Layout()
        if not layout.out_axes or layout.out_axes[0] >= len(site.shape):
            raise ValueError(f"{site.name!r} of shape {site.shape} has no output axis to cut into blocks")
        axis = layout.out_axes[0]
        extent = site.shape[axis]
        sizes = (extent // self.parts,) * self.parts if isinstance(self.parts, int) else self.parts
        if sum(sizes) != extent:
            raise ValueError(f"parts={self.parts} do not make up the {extent} of dimension {axis} of {site.name!r}")
        each = self.init if isinstance(self.init, tuple) else (self.init,) * len(sizes)
        shared = math.gcd(layout.groups, len(sizes)) if axis == 0 and len(set(sizes)) == 1 else 1  # groups of their own
        own = site.layout and replace(layout, blocks=1, groups=layout.groups // shared)
        parts = [replace(site, shape=replaced(site.shape, axis, size), layout=own, aliases=()) for size in sizes]
        return list(zip(each, parts, strict=True))


@final
@dataclass(frozen=True, slots=True)
class Stacked(ShortStr):
    """An initializer for each weight of a stack: the experts of a mixture, along the dimension ``axis``.

    ``in_axis`` and ``out_axis`` tell where inputs and outputs run in the stack.

    >>> from torchinit import Xavier
    >>> Stacked(Xavier()).resolve(Site("experts", (8, 150, 50)))
    Normal(mean=0.0, std=0.1)
    """

    init: Initializer
    axis: int = 0
    in_axis: int = 2
    out_axis: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "init", as_initializer(self.init))
        if sorted({self.axis, self.in_axis, self.out_axis}) != [0, 1, 2]:
            raise ValueError(f"axis, in_axis and out_axis must be 0, 1 and 2 in some order, but got {self}")

    def resolve(self, site: Site) -> Fill | None:
        fill = fill_of(self.init, self.matrix_of(site))
        return fill and fill.stacked(self.axis, self.out_axis, self.in_axis, site.shape[self.axis])

    def matrix_of(self, site: Site) -> Site:
        """One matrix of a stack, as a site of its own; ValueError for a site that is not a stack."""
        if len(site.shape) != 3:
            raise ValueError(f"Stacked needs 3 dimensions, but {site.name!r} has shape {site.shape}")
        shape = (site.shape[self.out_axis], site.shape[self.in_axis])
        return replace(site, shape=shape, layout=Layout(), aliases=())


def innermost(init: object, site: Site) -> Iterator[tuple[object, Site]]:
    """The initializers that an initializer is made of in the end, each with the site as it sees it.

    >>> [(str(init), part.shape) for init, part in innermost(Blocks(Scaled(Constant(1.0), 2.0), 2), Site("w", (4, 8)))]
    [('Constant(1)', (2, 8)), ('Constant(1)', (2, 8))]
    """
    match init:
        case Scaled() | DepthScaled():
            yield from innermost(init.init, site)
        case Blocks():
            for each, part in init.parts_of(site):
                yield from innermost(each, part)
        case Stacked():
            yield from innermost(init.init, init.matrix_of(site))
        case _:
            yield init, site
            if isinstance(init, Deferred) and (inner := init.target_and_arguments()[1].get("init")):
                yield from innermost(inner, site)


@final
@dataclass(frozen=True, slots=True)
class Padded(Wrapper):
    """A fill whose row ``row`` is zero: the padding entry of an embedding.

    >>> Padded(Constant(1.0), row=0).moments((4, 8)).mean
    0.75
    """

    fill: Fill
    row: int

    def __post_init__(self) -> None:
        check_integers(self, "row", least=0)

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
        row = Box(replaced((0,) * len(shape), 0, self.row), replaced(shape, 0, 1))
        return (*self.fill.regions(shape), (row, Constant(0.0)))

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
