"""Compositions: initializers made of other initializers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, final

from torchinit._text import Spelled
from torchinit.initializers.base import Fill, Initializer, fill_of
from torchinit.initializers.composites import Blockwise
from torchinit.initializers.functions import as_initializer
from torchinit.model.layouts import Layout
from torchinit.model.shards import replaced
from torchinit.model.sites import Site
from torchinit.serialization.validation import choice, is_whole, number


@final
@dataclass(frozen=True, slots=True)
class Scaled(Spelled):
    """Another initializer with all its values times ``factor``.

    >>> from torchinit.initializers.elementwise import Normal
    >>> Scaled(Normal(std=0.02), 0.5).resolve(Site("w", (4, 4)))
    Normal(mean=0.0, std=0.01)
    """

    init: Initializer
    factor: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "init", as_initializer(self.init))
        number("factor", self.factor)

    def resolve(self, site: Site) -> Fill | None:
        fill = fill_of(self.init, site)
        return None if fill is None else fill.scaled(self.factor)


@final
@dataclass(frozen=True, slots=True)
class DepthScaled(Spelled):
    r"""Another initializer, made smaller with depth, so that the sum of all residual branches stays bounded.

    .. math:: \text{factor} = 1 / \sqrt{\text{branches} \cdot n}

    with ``by="depth"`` n is the number of blocks (GPT-2 scales its output projections so, with two branches
    a block); with ``by="index"`` it is the block's own number, counted from 1 (Zhang et al. 2019,
    https://arxiv.org/abs/1908.11365). Raises ValueError (in a plan: PlanError) outside of a block.

    >>> from torchinit.initializers.elementwise import Normal
    >>> site = Site("h.2.proj.weight", (8, 8), block=(2, 8))
    >>> DepthScaled(Normal(std=0.02)).resolve(site)
    Normal(mean=0.0, std=0.005)
    """

    init: Initializer
    branches: float = 2
    by: Literal["depth", "index"] = "depth"

    def __post_init__(self) -> None:
        object.__setattr__(self, "init", as_initializer(self.init))
        if number("branches", self.branches) <= 0:
            raise ValueError(f"branches must be above 0, but got {self.branches!r}")
        choice("by", self.by, Literal["depth", "index"])

    def resolve(self, site: Site) -> Fill | None:
        if site.block is None:
            raise ValueError(
                f"{site.name!r} stands in no ModuleList or Sequential of like blocks, so it has no depth to scale by"
            )
        index, depth = site.block
        blocks = depth if self.by == "depth" else index + 1
        return Scaled(self.init, 1 / math.sqrt(self.branches * blocks)).resolve(site)


@final
@dataclass(frozen=True, slots=True)
class Blocks(Spelled):
    """An initializer for each block of a fused weight, as if the blocks were tensors of their own.

    ``parts`` is the number of equal blocks along the output axis, or their sizes. ``init`` is one
    initializer for all, or one for each.

    >>> from torchinit.initializers.variance_scaling import Ones, Xavier, Zeros
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
        if not sizes or not all(map(is_whole, sizes)):
            raise ValueError(f"parts must be a whole number of at least 1, or a list of them, but got {self.parts!r}")
        parts = self.parts if isinstance(self.parts, int) else len(self.parts)
        if isinstance(self.init, tuple) and len(self.init) != parts:
            raise ValueError(f"{len(self.init)} initializers do not go with {parts} parts")

    def resolve(self, site: Site) -> Fill | None:
        layout = site.layout or Layout()
        if not layout.out_axes or layout.out_axes[0] >= len(site.shape):
            raise ValueError(f"{site.name!r} of shape {site.shape} has no output axis to cut into blocks")
        axis = layout.out_axes[0]
        sizes = self._sizes(site, axis)
        each = self.init if isinstance(self.init, tuple) else (self.init,) * len(sizes)
        block = replace(site, layout=replace(layout, blocks=1), aliases=())
        fills = [
            fill_of(init, replace(block, shape=replaced(site.shape, axis, size)))
            for init, size in zip(each, sizes, strict=True)
        ]
        known = tuple(fill for fill in fills if fill is not None)
        if len(known) < len(fills):
            return None
        return known[0] if len(set(known)) == 1 and known[0].elementwise else Blockwise(known, sizes, axis)

    def _sizes(self, site: Site, axis: int) -> tuple[int, ...]:
        extent = site.shape[axis]
        sizes = (extent // self.parts,) * self.parts if isinstance(self.parts, int) else self.parts
        if sum(sizes) != extent:
            raise ValueError(f"parts={self.parts} do not make up the {extent} of dimension {axis} of {site.name!r}")
        return sizes


@final
@dataclass(frozen=True, slots=True)
class Stacked(Spelled):
    """An initializer for each weight of a stack: the experts of a mixture, along the dimension ``axis``.

    ``in_axis`` and ``out_axis`` tell where inputs and outputs run in the stack.

    >>> from torchinit.initializers.variance_scaling import Xavier
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
        if len(site.shape) != 3:
            raise ValueError(f"Stacked needs 3 dimensions, but {site.name!r} has shape {site.shape}")
        shape = (site.shape[self.out_axis], site.shape[self.in_axis])
        fill = fill_of(self.init, replace(site, shape=shape, layout=Layout(), aliases=()))
        return fill and fill.stacked(self.axis, self.out_axis, self.in_axis, site.shape[self.axis])
