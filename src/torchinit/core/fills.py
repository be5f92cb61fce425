"""Fills: numbers known, ready to be written into a shard."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol, final, runtime_checkable

import torch

from torchinit.core.shards import Shard
from torchinit.noise import Distribution, Noise

if TYPE_CHECKING:
    from torchinit.core.sites import Site


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean, standard deviation, smallest and largest value; None where unknown or unbounded.

    ``kurtosis`` (3 for a normal) tells how far the standard deviation of a sample may stray.

    >>> Moments(0.0, 1.0).max is None
    True
    """

    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    kurtosis: float = 3.0


@runtime_checkable
class Initializer(Protocol):
    """A formula: what a site starts with, once its shape is known.

    >>> isinstance(Normal(), Initializer)
    True
    """

    def resolve(self, site: Site) -> Fill | None:
        """The fill for this site; None declines, and the site stays with its other rules.

        Raises ValueError (for example FanError) when the formula has no answer for such a site.
        """


class Fill(ABC):
    """Numbers known. A fill resolves to itself, writes itself into a shard, and says what to expect.

    >>> Constant(2.0).moments((3,)).mean
    2.0
    """

    __slots__ = ()

    def resolve(self, site: Site) -> Fill | None:
        """The fill itself, once it has looked at the site."""
        self.check(site.shape, site.dtype)
        return self

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Raises ValueError where a tensor of this shape and dtype cannot hold the fill."""
        del shape, dtype

    @abstractmethod
    def write(self, shard: Shard, noise: Noise) -> None:
        """Writes ``shard.local``. Only :func:`torchinit.core.runs.run` calls this."""

    def moments(self, shape: tuple[int, ...] = ()) -> Moments | None:
        """What to expect of a tensor of this shape; None where it is not known."""
        del shape
        return None


class Drawn(Fill):
    """A fill that draws every element by itself, so that any slice costs its own elements."""

    __slots__ = ()

    @property
    @abstractmethod
    def draw(self) -> tuple[Distribution, tuple[float, ...]]:
        """The distribution and its parameters."""

    def write(self, shard: Shard, noise: Noise) -> None:
        noise.fill(shard, *self.draw)


@final
@dataclass(frozen=True, slots=True)
class Constant(Fill):
    """Every element is ``val``.

    >>> Constant(0.5)
    Constant(val=0.5)
    """

    val: float

    def __post_init__(self) -> None:
        number("val", self.val, finite=False)

    def write(self, shard: Shard, noise: Noise) -> None:
        shard.local.fill_(self.val)

    def moments(self, shape: tuple[int, ...] = ()) -> Moments:
        return Moments(self.val, 0.0, self.val, self.val)


@final
@dataclass(frozen=True, slots=True)
class Normal(Drawn):
    """The normal distribution N(mean, std²).

    >>> Normal(std=0.02).moments()
    Moments(mean=0.0, std=0.02, min=None, max=None, kurtosis=3.0)
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        number("mean", self.mean)
        number("std", self.std, least=0)

    @property
    def draw(self) -> tuple[Distribution, tuple[float, ...]]:
        return "normal", (self.mean, self.std)

    def moments(self, shape: tuple[int, ...] = ()) -> Moments:
        return Moments(float(self.mean), float(self.std))


@final
@dataclass(frozen=True, slots=True)
class Uniform(Drawn):
    """The uniform distribution on [a, b).

    >>> Uniform(-1, 1).moments()
    Moments(mean=0.0, std=0.5773502691896258, min=-1.0, max=1.0, kurtosis=1.8)
    """

    a: float = 0.0
    b: float = 1.0

    def __post_init__(self) -> None:
        number("a", self.a)
        number("b", self.b)
        if self.a > self.b:
            raise ValueError(f"Uniform needs a <= b, but got a={self.a}, b={self.b}")

    @property
    def draw(self) -> tuple[Distribution, tuple[float, ...]]:
        return "uniform", (self.a, self.b)

    def moments(self, shape: tuple[int, ...] = ()) -> Moments:
        width = float(self.b) - float(self.a)
        return Moments((self.a + self.b) / 2, width / math.sqrt(12), float(self.a), float(self.b), 1.8)


@final
@dataclass(frozen=True)
class TruncNormal(Drawn):
    r"""The normal distribution, given that the value lies in an interval.

    With ``unit="value"`` the interval is [a, b], as in ``torch.nn.init.trunc_normal_``; with
    ``unit="sigma"`` it is [mean + a·std, mean + b·std]. Truncation makes the standard deviation smaller:
    with ``corrected=True`` the parent's is raised so that the result's is ``std`` (then ``unit`` must be
    ``"sigma"`` and the interval symmetric), as JAX and Keras do.

    .. math:: \sigma^2 = \mathrm{std}^2 \Big/ \Big(1 - \frac{2 b \varphi(b)}{2\Phi(b) - 1}\Big)

    >>> TruncNormal(std=1, a=-2, b=2, unit="sigma").moments().std
    0.8796256610342398
    >>> TruncNormal(std=1, a=-2, b=2, unit="sigma", corrected=True).sigma
    1.1368472343385565
    """

    mean: float = 0.0
    std: float = 1.0
    a: float = -2.0
    b: float = 2.0
    unit: Literal["value", "sigma"] = "value"
    corrected: bool = False

    def __post_init__(self) -> None:
        number("mean", self.mean)
        number("std", self.std, least=0)
        for name in ("a", "b"):
            if math.isnan(number(name, getattr(self, name), finite=False)):
                raise ValueError(f"{name} must not be NaN")
        if self.unit not in ("value", "sigma"):
            raise ValueError(f"unit must be 'value' or 'sigma', but got {self.unit!r}")
        if self.a >= self.b:
            raise ValueError(f"TruncNormal needs a < b, but got a={self.a}, b={self.b}")
        if self.corrected and (self.unit != "sigma" or self.a != -self.b):
            raise ValueError("corrected=True needs unit='sigma' and a == -b")
        if self.std == 0 and not self.low <= self.mean <= self.high:
            raise ValueError(f"with std=0 the mean must lie in [a, b], but got {self}")

    @cached_property
    def sigma(self) -> float:
        """The standard deviation of the normal that is cut."""
        return self.std / _truncated(self.a, self.b)[1] if self.corrected else float(self.std)

    @property
    def low(self) -> float:
        return float(self.a) if self.unit == "value" else self.mean + self.a * self.sigma

    @property
    def high(self) -> float:
        return float(self.b) if self.unit == "value" else self.mean + self.b * self.sigma

    @property
    def draw(self) -> tuple[Distribution, tuple[float, ...]]:
        return "truncated", (self.mean, self.sigma, self.low, self.high)

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if dtype.is_complex:
            raise ValueError("a complex tensor has no truncated normal here; use Normal or Uniform")

    def moments(self, shape: tuple[int, ...] = ()) -> Moments:
        if self.std == 0:
            return Moments(float(self.mean), 0.0, float(self.mean), float(self.mean))
        mean, std = _truncated((self.low - self.mean) / self.sigma, (self.high - self.mean) / self.sigma)
        # Cut in its tail, a normal is close to an exponential, whose kurtosis is 9; cut around its mean, below 3.
        kurtosis = 3.0 if self.low <= self.mean <= self.high else 9.0
        return Moments(self.mean + self.sigma * mean, self.sigma * std, self.low, self.high, kurtosis)


def _truncated(low: float, high: float) -> tuple[float, float]:
    """Mean and standard deviation of the standard normal cut to [low, high]."""
    if low > 0:  # the upper tail loses all its digits in 1 - Phi: turn it over
        mean, std = _truncated(-high, -low)
        return -mean, std
    mass = _phi(high) - _phi(low)
    if mass <= 0:  # beyond the reach of doubles: all the mass sits at the end nearer to the middle
        return high, 0.0
    mean = (_density(low) - _density(high)) / mass
    spread = (_edge(low) - _edge(high)) / mass
    return mean, math.sqrt(max(0.0, 1 + spread - mean * mean))


def _phi(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def _density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _edge(x: float) -> float:
    return x * _density(x) if math.isfinite(x) else 0.0


@final
@dataclass(frozen=True, slots=True)
class Blockwise(Fill):
    """Fills side by side along one axis, each for its own block: the q, k and v of a fused projection.

    >>> Blockwise((Constant(0.0), Constant(1.0)), sizes=(2, 2)).moments((4,)).mean
    0.5
    """

    fills: tuple[Fill, ...]
    sizes: tuple[int, ...]
    axis: int = 0

    def __post_init__(self) -> None:
        if len(self.fills) != len(self.sizes):
            raise ValueError(f"{len(self.fills)} fills do not go with {len(self.sizes)} sizes")

    def write(self, shard: Shard, noise: Noise) -> None:
        low = shard.region.start[self.axis]
        for fill, size in zip(self.fills, self.sizes, strict=True):
            fill.write(shard.cut(self.axis, low, low + size), noise)
            low += size

    def moments(self, shape: tuple[int, ...] = ()) -> Moments | None:
        parts = [fill.moments(_put(shape, self.axis, size)) for fill, size in zip(self.fills, self.sizes, strict=True)]
        return mixture(parts, self.sizes)


@final
@dataclass(frozen=True, slots=True)
class Padded(Fill):
    """A fill whose row ``row`` is zero: the padding entry of an embedding.

    >>> Padded(Constant(1.0), row=0).moments((4, 8)).mean
    0.75
    """

    fill: Fill
    row: int

    def write(self, shard: Shard, noise: Noise) -> None:
        self.fill.write(shard, noise)
        row = self.row - shard.start[0]
        if 0 <= row < shard.local.shape[0]:
            shard.local[row].zero_()

    def moments(self, shape: tuple[int, ...] = ()) -> Moments | None:
        return mixture([self.fill.moments(shape), Constant(0.0).moments()], (shape[0] - 1, 1))


def mixture(parts: Sequence[Moments | None], weights: Sequence[float]) -> Moments | None:
    """The moments of a tensor made of parts, each with its share of the elements."""
    known = [(part, weight / sum(weights)) for part, weight in zip(parts, weights, strict=True) if weight]
    if not known or any(part is None or part.mean is None or part.std is None for part, _ in known):
        return None
    mean = sum((part.mean or 0.0) * share for part, share in known if part)
    square = sum(((part.std or 0.0) ** 2 + (part.mean or 0.0) ** 2) * share for part, share in known if part)
    variance = max(0.0, square - mean * mean)
    fourth = sum(_fourth(part, mean) * share for part, share in known if part)
    lows = [part.min for part, _ in known if part]
    highs = [part.max for part, _ in known if part]
    return Moments(
        mean,
        math.sqrt(variance),
        None if None in lows else min(low for low in lows if low is not None),
        None if None in highs else max(high for high in highs if high is not None),
        fourth / variance**2 if variance else 3.0,
    )


def _fourth(part: Moments, centre: float) -> float:
    """The fourth moment of a symmetric part about another centre."""
    variance, offset = (part.std or 0.0) ** 2, (part.mean or 0.0) - centre
    return part.kurtosis * variance**2 + 6 * variance * offset**2 + offset**4


def _put(values: tuple[int, ...], at: int, value: int) -> tuple[int, ...]:
    return (*values[:at], value, *values[at + 1 :]) if values else values


def number(name: str, value: object, *, least: float = -math.inf, finite: bool = True) -> float:
    """The value as a float, or why it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, but got {value!r}")
    if finite and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, but got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least:g}, but got {value!r}")
    return float(value)


def whole_number(value: object) -> bool:
    """Whether this is a count: an int of at least 1, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
