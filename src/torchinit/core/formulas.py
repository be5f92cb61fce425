"""Formulas: initializers that look at a site before they know their numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, final, get_args

from torchinit.core.fills import (
    Blockwise,
    Constant,
    Fill,
    Initializer,
    Normal,
    TruncNormal,
    Uniform,
    number,
    whole_number,
)
from torchinit.core.gains import gain
from torchinit.core.layouts import Layout
from torchinit.core.matrices import Orthogonal
from torchinit.core.scaling import is_elementwise, scaled
from torchinit.core.sites import Convention, Site

FanMode: TypeAlias = Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"]
Shape: TypeAlias = Literal["normal", "uniform", "truncated_normal"]


def fan_std(gain: float, fan_in: float, fan_out: float, mode: FanMode) -> float:
    r"""The standard deviation that keeps the variance of a signal through a layer.

    .. math:: \mathrm{std} = \mathrm{gain} / \sqrt{\mathrm{fan}}

    where fan is the fan-in, the fan-out, their arithmetic or their geometric mean. The arithmetic is that
    of ``torch.nn.init``, operation by operation, so that the last bit agrees, too.

    >>> fan_std(1.0, 100, 300, "fan_avg")
    0.07071067811865475
    """
    if mode == "fan_avg":
        return gain * math.sqrt(2.0 / (fan_in + fan_out))
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_geo_avg": math.sqrt(fan_in * fan_out)}[mode]
    return gain / math.sqrt(fan)


def _spread(std: float, distribution: Shape) -> Fill:
    """A fill of mean 0 and this standard deviation."""
    if distribution == "normal":
        return Normal(0.0, std)
    if distribution == "uniform":
        bound = math.sqrt(3.0) * std
        return Uniform(-bound, bound)
    return TruncNormal(0.0, std, -2.0, 2.0, unit="sigma", corrected=True)


def _by_fans(site: Site, gain: float, mode: FanMode, distribution: Shape, fans: Convention) -> Fill:
    fan_in, fan_out = site.fans(fans)
    if not site.numel:  # nothing to write, and a fan of 0 has no root
        return Constant(0.0)
    return _spread(fan_std(gain, fan_in, fan_out, mode), distribution)


def _choice(name: str, value: object, choices: object) -> None:
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, but got {value!r}")


@final
@dataclass(frozen=True, slots=True)
class VarianceScaling:
    r"""Variance ``scale`` / fan: the general formula behind Xavier, Kaiming and LeCun.

    .. math:: \mathrm{Var}(w) = \mathrm{scale} / n, \quad n = \text{fan-in, fan-out or one of their means}

    The truncated normal is cut at two standard deviations and corrected, as in ``jax.nn.initializers``.
    ``fans`` chooses how connections are counted: :meth:`torchinit.Site.fans`. Raises FanError (in a plan:
    PlanError) for a tensor with fewer than two dimensions.

    >>> VarianceScaling(2.0, "fan_in", "normal").resolve(Site("w", (10, 50)))
    Normal(mean=0.0, std=0.2)
    """

    scale: float = 1.0
    mode: FanMode = "fan_in"
    distribution: Shape = "truncated_normal"
    fans: Convention = "torch"

    def __post_init__(self) -> None:
        number("scale", self.scale, least=0)
        _choice("mode", self.mode, FanMode)
        _choice("distribution", self.distribution, Shape)
        _choice("fans", self.fans, Convention)

    def resolve(self, site: Site) -> Fill:
        return _by_fans(site, math.sqrt(self.scale), self.mode, self.distribution, self.fans)


@final
@dataclass(frozen=True, slots=True)
class Xavier:
    """Glorot & Bengio (2010): variance gain² · 2 / (fan_in + fan_out).

    https://proceedings.mlr.press/v9/glorot10a.html

    >>> Xavier().resolve(Site("w", (150, 50)))
    Normal(mean=0.0, std=0.1)
    """

    gain: float = 1.0
    distribution: Shape = "normal"
    fans: Convention = "torch"

    def __post_init__(self) -> None:
        number("gain", self.gain, least=0)
        _choice("distribution", self.distribution, Shape)
        _choice("fans", self.fans, Convention)

    def resolve(self, site: Site) -> Fill:
        return _by_fans(site, self.gain, "fan_avg", self.distribution, self.fans)


@final
@dataclass(frozen=True, slots=True)
class Kaiming:
    """He et al. (2015): variance gain² / fan, the gain that of the layer's nonlinearity.

    ``a`` is the negative slope of ``leaky_relu`` (and of ``prelu``). ``nonlinearity`` is one of :func:`gain`'s
    names. https://arxiv.org/abs/1502.01852

    >>> Kaiming().resolve(Site("w", (50, 10)))
    Normal(mean=0.0, std=0.2)
    >>> Kaiming(mode="fan_in", nonlinearity="linear", distribution="uniform").resolve(Site("w", (8, 3)))
    Uniform(a=-1.0, b=1.0)
    """

    a: float = 0.0
    mode: FanMode = "fan_out"
    nonlinearity: str = "relu"
    distribution: Shape = "normal"
    fans: Convention = "torch"

    def __post_init__(self) -> None:
        number("a", self.a)
        _choice("mode", self.mode, FanMode)
        _choice("distribution", self.distribution, Shape)
        _choice("fans", self.fans, Convention)
        gain(self.nonlinearity, self.a)

    def resolve(self, site: Site) -> Fill:
        return _by_fans(site, gain(self.nonlinearity, self.a), self.mode, self.distribution, self.fans)


@final
@dataclass(frozen=True, slots=True)
class LeCun:
    """LeCun et al. (1998), "Efficient BackProp": variance 1 / fan_in.

    >>> LeCun("uniform").resolve(Site("w", (7, 3)))
    Uniform(a=-1.0, b=1.0)
    """

    distribution: Shape = "truncated_normal"
    fans: Convention = "torch"

    def __post_init__(self) -> None:
        _choice("distribution", self.distribution, Shape)
        _choice("fans", self.fans, Convention)

    def resolve(self, site: Site) -> Fill:
        return _by_fans(site, 1.0, "fan_in", self.distribution, self.fans)


@final
@dataclass(frozen=True, slots=True)
class Caffe2Xavier:
    """Caffe2's XavierFill: uniform with variance 1 / fan_in.

    >>> Caffe2Xavier().resolve(Site("w", (7, 3)))
    Uniform(a=-1.0, b=1.0)
    """

    fans: Convention = "torch"

    def __post_init__(self) -> None:
        _choice("fans", self.fans, Convention)

    def resolve(self, site: Site) -> Fill:
        return _by_fans(site, gain("leaky_relu", 1.0), "fan_in", "uniform", self.fans)


@final
@dataclass(frozen=True, slots=True)
class Zeros:
    """Every element is 0.

    >>> Zeros().resolve(Site("w", (7, 3)))
    Constant(val=0.0)
    """

    def resolve(self, site: Site) -> Fill:
        return Constant(0.0)


@final
@dataclass(frozen=True, slots=True)
class Ones:
    """Every element is 1.

    >>> Ones().resolve(Site("w", (7, 3)))
    Constant(val=1.0)
    """

    def resolve(self, site: Site) -> Fill:
        return Constant(1.0)


@final
@dataclass(frozen=True, slots=True)
class Prior:
    """The bias with which a sigmoid starts at the probability ``prob``: -log((1 - prob) / prob).

    Lin et al. (2017) start detection heads so, https://arxiv.org/abs/1708.02002. Raises ValueError for a
    probability outside (0, 1).

    >>> Prior(0.01).resolve(Site("bias", (80,)))
    Constant(val=-4.59511985013459)
    """

    prob: float

    def __post_init__(self) -> None:
        if not 0 < number("prob", self.prob) < 1:
            raise ValueError(f"prob must lie in (0, 1), but got {self.prob!r}")

    def resolve(self, site: Site) -> Fill:
        return Constant(-math.log((1 - self.prob) / self.prob))


@final
@dataclass(frozen=True, slots=True)
class Scaled:
    """Another initializer with all its values times ``factor``.

    >>> Scaled(Normal(std=0.02), 0.5).resolve(Site("w", (4, 4)))
    Normal(mean=0.0, std=0.01)
    """

    init: Initializer
    factor: float

    def __post_init__(self) -> None:
        number("factor", self.factor)

    def resolve(self, site: Site) -> Fill | None:
        fill = self.init.resolve(site)
        return None if fill is None else scaled(fill, self.factor)


@final
@dataclass(frozen=True, slots=True)
class DepthScaled:
    r"""Another initializer, made smaller with depth, so that the sum of all residual branches stays bounded.

    .. math:: \text{factor} = 1 / \sqrt{\text{branches} \cdot n}

    with ``by="depth"`` n is the number of blocks (GPT-2 scales its output projections so, with two branches
    a block); with ``by="index"`` it is the block's own number, counted from 1 (Zhang et al. 2019,
    https://arxiv.org/abs/1908.11365). Raises ValueError (in a plan: PlanError) outside of a block.

    >>> site = Site("h.2.proj.weight", (8, 8), block=(2, 8))
    >>> DepthScaled(Normal(std=0.02)).resolve(site)
    Normal(mean=0.0, std=0.005)
    """

    init: Initializer
    branches: float = 2
    by: Literal["depth", "index"] = "depth"

    def __post_init__(self) -> None:
        if number("branches", self.branches) <= 0:
            raise ValueError(f"branches must be above 0, but got {self.branches!r}")
        _choice("by", self.by, Literal["depth", "index"])

    def resolve(self, site: Site) -> Fill | None:
        if site.block is None:
            raise ValueError(
                f"{site.name!r} stands in no ModuleList or Sequential of like blocks, so it has no depth to scale by"
            )
        index, depth = site.block
        number = depth if self.by == "depth" else index + 1
        return Scaled(self.init, 1 / math.sqrt(self.branches * number)).resolve(site)


@final
@dataclass(frozen=True, slots=True)
class Blocks:
    """An initializer for each block of a fused weight, as if the blocks were tensors of their own.

    ``parts`` is the number of equal blocks along the output axis, or their sizes. ``init`` is one
    initializer for all, or one for each.

    >>> Blocks(Xavier(), parts=3).resolve(Site("in_proj_weight", (12, 4)))
    Normal(mean=0.0, std=0.5)
    >>> Blocks((Zeros(), Ones(), Zeros(), Zeros()), parts=4).resolve(Site("bias_ih_l0", (8,))).sizes
    (2, 2, 2, 2)
    """

    init: Initializer | tuple[Initializer, ...]
    parts: int | tuple[int, ...]

    def __post_init__(self) -> None:
        sizes = (self.parts,) if isinstance(self.parts, int) else self.parts
        if not sizes or not all(map(whole_number, sizes)):
            raise ValueError(f"parts must be a whole number of at least 1, or a list of them, but got {self.parts!r}")
        parts = self.parts if isinstance(self.parts, int) else len(self.parts)
        if isinstance(self.init, tuple) and len(self.init) != parts:
            raise ValueError(f"{len(self.init)} initializers do not go with {parts} parts")

    def resolve(self, site: Site) -> Fill | None:
        layout = site.layout or Layout()
        axis = layout.out_axes[0]
        sizes = self._sizes(site, axis)
        each = self.init if isinstance(self.init, tuple) else (self.init,) * len(sizes)
        fills = [
            init.resolve(
                replace(site, shape=_put(site.shape, axis, size), layout=replace(layout, blocks=1), aliases=())
            )
            for init, size in zip(each, sizes, strict=True)
        ]
        known = tuple(fill for fill in fills if fill is not None)
        if len(known) < len(fills):
            return None
        return known[0] if len(set(known)) == 1 and is_elementwise(known[0]) else Blockwise(known, sizes, axis)

    def _sizes(self, site: Site, axis: int) -> tuple[int, ...]:
        extent = site.shape[axis] if axis < len(site.shape) else 0
        sizes = (extent // self.parts,) * self.parts if isinstance(self.parts, int) else self.parts
        if sum(sizes) != extent:
            raise ValueError(f"parts={self.parts} do not make up the {extent} of dimension {axis} of {site.name!r}")
        return sizes


@final
@dataclass(frozen=True, slots=True)
class Stacked:
    """An initializer for each weight of a stack: the experts of a mixture, along the dimension ``axis``.

    ``in_axis`` and ``out_axis`` tell where inputs and outputs run in the stack.

    >>> Stacked(Xavier()).resolve(Site("experts", (8, 150, 50)))
    Normal(mean=0.0, std=0.1)
    """

    init: Initializer
    axis: int = 0
    in_axis: int = 2
    out_axis: int = 1

    def __post_init__(self) -> None:
        if sorted({self.axis, self.in_axis, self.out_axis}) != [0, 1, 2]:
            raise ValueError(f"axis, in_axis and out_axis must be 0, 1 and 2 in some order, but got {self}")

    def resolve(self, site: Site) -> Fill | None:
        if len(site.shape) != 3:
            raise ValueError(f"Stacked needs 3 dimensions, but {site.name!r} has shape {site.shape}")
        shape = (site.shape[self.out_axis], site.shape[self.in_axis])
        fill = self.init.resolve(replace(site, shape=shape, layout=Layout(), aliases=()))
        if fill is None or is_elementwise(fill):
            return fill
        if not isinstance(fill, Orthogonal):
            raise ValueError(f"Stacked takes elementwise fills and Orthogonal, but got {fill}")
        fill = replace(fill, axis=(self.out_axis, self.in_axis)[fill.axis])
        count = site.shape[self.axis]
        return Blockwise((fill,) * count, (1,) * count, self.axis)


def _put(values: tuple[int, ...], at: int, value: int) -> tuple[int, ...]:
    return (*values[:at], value, *values[at + 1 :])
