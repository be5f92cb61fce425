"""Mapped: a function of another initializer's values; log-uniform, chrono and repeated draws, all of a part alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple, TypeAlias, final

import torch
from torch import Tensor

from torchinit._text import ShortStr, dtype_name
from torchinit.initializers.base import Fill, Initializer, ScaledFill, Wrapper, check_fit, fill_of
from torchinit.initializers.elementwise import Constant, Drawn, Uniform
from torchinit.initializers.functions import as_initializer
from torchinit.initializers.matrices import RegionFill
from torchinit.initializers.statistics import Moments, mixture, point
from torchinit.initializers.tables import IndexFill, moments_of, rounded
from torchinit.model.shards import Box, Shard, replaced
from torchinit.model.sites import Site
from torchinit.noise import Noise
from torchinit.noise.distributions import MAX_SIGMAS
from torchinit.serialization.schema import check_choice, check_integers, check_number

FunctionName: TypeAlias = Literal["exp", "log", "inverse_softplus", "logit"]


class _Increasing(NamedTuple):
    """A function of float64 tensors that grows with its argument, and the open interval where it is finite."""

    of: Callable[[Tensor], Tensor]
    above: float = -math.inf
    below: float = math.inf


FUNCTIONS: Final[dict[FunctionName, _Increasing]] = {
    "exp": _Increasing(torch.exp),
    "log": _Increasing(torch.log, 0.0),
    "inverse_softplus": _Increasing(lambda x: x + torch.log(-torch.expm1(-x)), 0.0),
    "logit": _Increasing(torch.logit, 0.0, 1.0),
}
"""The functions that :class:`Mapped` knows."""

_STEPS: Final = 4096


@final
@dataclass(frozen=True, slots=True)
class Mapped(ShortStr):
    """A ``function`` of the values of another initializer, which are cut to [``low``, ``high``] before, if given.

    Functions: ``exp``, ``log``, ``inverse_softplus`` (log(e^x - 1)), ``logit``, computed in float64 and rounded once.
    State-space models start so: Mamba's bias of dt is ``Mapped(LogUniform(0.001, 0.1), "inverse_softplus", low=1e-4)``,
    the ``A_log`` of Mamba-2 ``Mapped(Uniform(1, 16), "log")`` (https://arxiv.org/abs/2405.21060). Raises ValueError (in
    a plan: PlanError) where a value may be one that the function makes infinite, and of initializers whose values do
    not each stand for themselves.

    >>> from torchinit import Uniform
    >>> print(Mapped(Uniform(1, 16), "log").resolve(Site("A_log", (8,))))
    log(Uniform(a=1, b=16))
    >>> Mapped(Uniform(0, 16), "log").resolve(Site("A_log", (8,)))
    Traceback (most recent call last):
    ValueError: log needs values above 0, but Uniform(b=16) goes down to 0; give a low above 0
    """

    init: Initializer
    function: FunctionName
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "init", as_initializer(self.init))
        _check_map(self.function, self.low, self.high)

    def resolve(self, site: Site) -> Fill | None:
        fill = fill_of(self.init, site)
        return fill and MappedFill(fill, self.function, self.low, self.high).resolve(site)


def _check_map(function: str, low: float | None, high: float | None) -> None:
    check_choice("function", function, FunctionName)
    for name, end in (("low", low), ("high", high)):
        if end is not None:
            check_number(name, end)
    if low is not None and high is not None and low > high:
        raise ValueError(f"low must not be above high, but got low={low!r}, high={high!r}")


@final
@dataclass(frozen=True, slots=True)
class MappedFill(Wrapper):
    """What :class:`Mapped` resolves to.

    >>> round(MappedFill(Uniform(0.0, 1.0), "exp").moments().mean, 6)  # e - 1
    1.718282
    """

    fill: Fill
    function: FunctionName
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        _check_map(self.function, self.low, self.high)

    def __str__(self) -> str:
        cut = "".join(f", {name}={end:g}" for name, end in (("low", self.low), ("high", self.high)) if end is not None)
        return f"{self.function}({self.fill}{cut})"

    @property
    def elementwise(self) -> bool:
        return self.fill.elementwise

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if not dtype.is_floating_point:
            raise ValueError(f"{self} needs a real floating dtype, but got {dtype_name(dtype)}")
        if not _is_simple(self.fill):
            raise ValueError(f"{self.function} can be taken of draws and of tables, but not of {self.fill}")
        self.fill.check(shape, torch.float64)
        if not math.prod(shape):
            return
        function, ends = FUNCTIONS[self.function], self._ends(shape)
        least, most = ends.tolist()
        wrong = [("above", function.above, f"down to {least:g}", "low")] * (least <= function.above > -math.inf)
        wrong += [("below", function.below, f"up to {most:g}", "high")] * (most >= function.below < math.inf)
        for side, end, reach, name in wrong:
            reaches = f"{self.fill} goes {reach}; give a {name} {side} {end:g}"
            raise ValueError(f"{self.function} needs values {side} {end:g}, but {reaches}")
        low, high = (float(self.of(end)) if end.isfinite() else 0.0 for end in ends)
        check_fit(self, low, high, dtype)

    def _ends(self, shape: tuple[int, ...]) -> Tensor:
        """The smallest and the largest value of which the function is taken."""
        ends = self.fill.moments(shape) or Moments()
        low, high = (-math.inf if ends.min is None else ends.min, math.inf if ends.max is None else ends.max)
        return self._cut(torch.tensor([low, high], dtype=torch.float64, device="cpu"))

    def write_parts(self, parts: Sequence[Shard], noise: Noise) -> None:
        # Torch's generator gives the draws of code that is written by hand: in the tensor's dtype, or float32.
        wide = torch.float32 if noise.is_stateful else torch.float64
        dtypes = [torch.float64 if part.local.dtype == torch.float64 else wide for part in parts]
        inner = [
            replace(part, local=torch.empty_like(part.local, dtype=dtype, memory_format=torch.contiguous_format))
            for part, dtype in zip(parts, dtypes, strict=True)
        ]
        self.fill.write_parts(inner, noise)
        # On the host, wherever the tensor is: the functions of two devices differ in their last bits, and some of that
        # would be left after rounding.
        for part, drawn in zip(parts, inner, strict=True):
            part.local.copy_(rounded(self.of(drawn.local.double().cpu()), part.local.dtype))

    def of(self, values: Tensor) -> Tensor:
        """The function of values, cut before."""
        return FUNCTIONS[self.function].of(self._cut(values))

    def _cut(self, values: Tensor) -> Tensor:
        return values if self.low is None and self.high is None else values.clamp(self.low, self.high)

    def scaled(self, factor: float) -> Fill:
        return ScaledFill(self, factor)

    def moments(self, shape: tuple[int, ...] = ()) -> Moments | None:
        values, shares = _spread(self, shape)
        if values is None or not values.numel():
            return None
        low, high = (end if math.isfinite(end) else None for end in self.of(self._ends(shape)).tolist())
        return replace(moments_of(values, shares), min=low, max=high)

    def parts(self, shape: tuple[int, ...] = ()) -> Moments | None:
        return None


def _is_simple(fill: Fill) -> bool:
    """Whether each value of a fill is drawn for itself, or one of a table, or a function of such."""
    if isinstance(fill, (MappedFill, ScaledFill)):
        return _is_simple(fill.fill)
    return isinstance(fill, (Constant, Drawn, IndexFill))


def _spread(fill: Fill, shape: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
    """Values as those of a fill, with their shares where these are not equal: some of a draw, all of a table."""
    if isinstance(fill, (MappedFill, ScaledFill)):
        inner, shares = _spread(fill.fill, shape)
        if inner is None:
            return None, None
        return fill.of(inner) if isinstance(fill, MappedFill) else inner * fill.factor, shares
    if isinstance(fill, IndexFill):
        return fill.table(shape), None
    if isinstance(fill, Constant):
        return torch.tensor([fill.val], dtype=torch.float64, device="cpu"), None
    return _drawn_spread(fill) if isinstance(fill, Drawn) else (None, None)


def _drawn_spread(fill: Drawn) -> tuple[Tensor | None, Tensor | None]:
    # Equal steps over all that may be drawn, each with its share of the mass. Quantiles would need no shares, but few
    # of them lie far out: of 4,096 the last is at 3.7 standard deviations, and beyond them are a half of the variance
    # of exp(N(0, 2)) and nearly all of its fourth moment. A mass that doubles cannot hold has no moments.
    distribution, params = fill.draw
    steps = (torch.arange(_STEPS, dtype=torch.float64, device="cpu") + 0.5) / _STEPS
    if distribution == "uniform":
        low, high = params
        return low + (high - low) * steps, None
    mean, std, low, high = (*params, -math.inf, math.inf)[:4]
    if not std:
        return torch.tensor([mean], dtype=torch.float64, device="cpu"), None
    low, high = (low - mean) / std, (high - mean) / std
    reach = MAX_SIGMAS + max(low, -high, 0.0)
    low, high = max(low, -reach), min(high, reach)
    z = low + (high - low) * steps
    mass = (-z * z / 2).exp()
    return (mean + std * z, mass / mass.sum()) if mass.any() else (None, None)


@final
@dataclass(frozen=True, slots=True)
class LogUniform(ShortStr):
    """The distribution on [a, b] whose logarithm is uniform.

    Raises ValueError unless 0 < a <= b.

    >>> print(LogUniform(0.001, 0.1).resolve(Site("dt", (4,))))
    exp(Uniform(a=-6.90776, b=-2.30259))
    """

    a: float
    b: float

    def __post_init__(self) -> None:
        check_number("a", self.a)
        check_number("b", self.b)
        if not 0 < self.a <= self.b:
            low, high = sorted((self.a, self.b))
            if low > 0:
                advice = f"LogUniform({low!r}, {high!r})"
            elif high < 0:
                advice = f"Scaled(LogUniform({-high!r}, {-low!r}), -1)"
            else:
                advice = f"Uniform({low!r}, {high!r}), or an a above 0: zero has no logarithm"
            raise ValueError(f"LogUniform needs 0 < a <= b, but got a={self.a!r}, b={self.b!r}; write {advice}")

    def resolve(self, site: Site) -> Fill | None:
        return MappedFill(Uniform(math.log(self.a), math.log(self.b)), "exp").resolve(site)


@final
@dataclass(frozen=True, slots=True)
class Chrono(RegionFill):
    r"""The biases of an LSTM that remembers up to ``longest`` steps: in PyTorch's order of gates i, f, g, o

    .. math:: b_f = \log u, \quad u \sim U(1, \mathrm{longest} - 1), \quad b_i = -b_f, \quad b_g = b_o = 0

    Tallec & Ollivier (2018), https://arxiv.org/abs/1804.11188. ``nn.LSTM`` adds two biases: give it to ``bias_ih``
    and zeros to ``bias_hh``. Raises ValueError for a tensor that is not four gates in one dimension.

    >>> Chrono(longest=784)
    Chrono(longest=784.0)
    """

    longest: float

    def __post_init__(self) -> None:
        if check_number("longest", self.longest) < 2:
            raise ValueError(f"longest must be at least 2 steps, but got {self.longest!r}")
        object.__setattr__(self, "longest", float(self.longest))

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if len(shape) != 1 or shape[0] % 4:
            raise ValueError(f"Chrono needs the biases of four gates in one dimension, but the shape is {shape}")
        if not dtype.is_floating_point:
            raise ValueError(f"Chrono needs a real floating dtype, but got {dtype_name(dtype)}")

    def compute(self, shard: Shard, noise: Noise) -> Tensor:
        region = shard.region
        size = region.shape[0] // 4
        whole = torch.zeros(region.shape, dtype=torch.float64, device=shard.local.device)
        forget = Shard(shard.name, whole[size : 2 * size], shard.shape, (region.start[0] + size,))
        self._forget.write(forget, noise)
        whole[:size] = -forget.local
        return rounded(whole, shard.local.dtype)

    @property
    def _forget(self) -> MappedFill:
        return MappedFill(Uniform(1.0, self.longest - 1), "log")

    def moments(self, shape: tuple[int, ...] = ()) -> Moments | None:
        forget = self._forget.moments()
        return forget and mixture([forget, forget.scaled(-1.0), point(0.0)], (1, 1, 2))


@final
@dataclass(frozen=True, slots=True)
class ICNR(ShortStr):
    """A convolution before a pixel shuffle by ``factor``: all outputs that become one pixel's block start alike.

    ``init`` starts a convolution with factor^d times fewer outputs (d spatial dimensions); each is repeated, so that
    the shuffle begins as nearest-neighbour interpolation. Aitken et al. (2017), https://arxiv.org/abs/1707.02937.
    Raises ValueError for outputs that the factor does not divide.

    >>> from torchinit import Kaiming
    >>> print(ICNR(Kaiming()).resolve(Site("up.weight", (64, 8, 3, 3))))
    Normal(std=0.117851), each row 4 times
    """

    init: Initializer
    factor: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "init", as_initializer(self.init))
        check_integers(self, "factor")

    def resolve(self, site: Site) -> Fill | None:
        times = self.factor ** max(0, len(site.shape) - 2)
        if len(site.shape) < 3 or site.shape[0] % times:
            has = f"{site.name!r} has shape {site.shape}"
            raise ValueError(f"ICNR({self.factor}) needs a kernel whose outputs {times} divides, but {has}")
        inner = replaced(site.shape, 0, site.shape[0] // times)
        fill = fill_of(self.init, replace(site, shape=inner, aliases=()))
        return fill and RepeatedFill(fill, times)


@final
@dataclass(frozen=True, slots=True)
class RepeatedFill(Wrapper):
    """A fill for a tensor of fewer rows, each of which comes ``times`` times in a row.

    >>> RepeatedFill(Uniform(), 4).inner_shape((64, 3))
    (16, 3)
    """

    fill: Fill
    times: int

    def __post_init__(self) -> None:
        check_integers(self, "times")

    def __str__(self) -> str:
        return f"{self.fill}, each row {self.times} times"

    def inner_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return replaced(shape, 0, shape[0] // self.times) if shape else shape

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if not shape or shape[0] % self.times:
            raise ValueError(f"rows cannot come {self.times} times each in the shape {shape}")
        self.fill.check(self.inner_shape(shape), dtype)

    def write_parts(self, parts: Sequence[Shard], noise: Noise) -> None:
        inner = [self._inner(part) for part in parts]
        self.fill.write_parts(inner, noise)
        for part, rows in zip(parts, inner, strict=True):
            # A part may begin and end amid the copies of a row. So all rows that it has any of are drawn, each at its
            # place in the smaller tensor, and what lies before the part and behind it is cut off the copies.
            skip = part.start[0] - rows.start[0] * self.times
            part.local.copy_(rows.local.repeat_interleave(self.times, dim=0)[skip:][: part.local.shape[0]])

    def _inner(self, part: Shard) -> Shard:
        """The rows that the part repeats, as a shard of the smaller tensor."""
        first, last = part.start[0] // self.times, -(-(part.start[0] + part.local.shape[0]) // self.times)
        local, region = part.local.new_empty((last - first, *part.local.shape[1:])), part.region
        matrix = Box(replaced(region.start, 0, region.start[0] // self.times), self.inner_shape(region.shape))
        shape, start = self.inner_shape(part.shape), replaced(part.start, 0, first)
        return replace(part, local=local, shape=shape, start=start, matrix=part.matrix and matrix)
