"""Fills: numbers known, ready to be written into a shard."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol, final, runtime_checkable

import torch

from torchinit.core.arguments import number
from torchinit.core.moments import Moments, mixture, point, truncated
from torchinit.core.shards import Shard
from torchinit.core.spelling import Spelled
from torchinit.noise import Distribution, Job, Noise
from torchinit.noise.draws import resolve

if TYPE_CHECKING:
    from torchinit.core.sites import Site


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


class Fill(Spelled, ABC):
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

    @property
    def locked(self) -> bool:
        """Whether no later rule may write over it."""
        return False

    def prepare(self, shard: Shard) -> None:
        """Looks at what can be known only now; raises ValueError or CheckpointError, while nothing is written yet."""
        del shard

    @abstractmethod
    def write(self, shard: Shard, noise: Noise) -> None:
        """Writes ``shard.local``. Only :func:`torchinit.core.runs.run` calls this."""

    def write_parts(self, parts: Sequence[Shard], noise: Noise) -> None:
        """Writes several parts of one tensor; a fill that must compute the whole does so once."""
        for part in parts:
            self.write(part, noise)

    def job(self, shard: Shard) -> Job | None:
        """The one draw that writes the shard; None where :meth:`write` does something else as well."""
        del shard
        return None

    def moments(self, shape: tuple[int, ...] = ()) -> Moments | None:
        """What to expect of a tensor of this shape; None where it is not known."""
        del shape
        return None

    def parts(self, shape: tuple[int, ...] = ()) -> Moments | None:
        """What to expect of the real and imaginary parts of a complex tensor, taken together."""
        return mixture([self.moments(shape), point(0.0)], (1, 1))

    def scratch(self, shape: tuple[int, ...]) -> int:
        """The bytes of memory that it takes beside the tensor's own while it writes any part of one of this shape."""
        del shape
        return 0


class Drawn(Fill):
    """A fill that draws every element by itself, so that any slice costs its own elements."""

    __slots__ = ()

    @property
    @abstractmethod
    def draw(self) -> tuple[Distribution, tuple[float, ...]]:
        """The distribution and its parameters."""

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        distribution, params = self.draw
        if dtype.is_complex and distribution != "normal":
            raise ValueError(f"a complex tensor can hold no {self}; use a normal distribution")
        resolve(distribution, params, dtype.to_real())
        self._check_range(dtype)

    @abstractmethod
    def _check_range(self, dtype: torch.dtype) -> None:
        """Raises ValueError where the values do not fit into the dtype."""

    def write(self, shard: Shard, noise: Noise) -> None:
        noise.fill(shard, *self.draw)

    def job(self, shard: Shard) -> Job | None:
        return Job(shard, *self.draw)


def check_fit(fill: Fill, low: float, high: float, dtype: torch.dtype) -> None:
    """Raises ValueError where a fill whose values lie between these does not fit into the dtype."""
    most = torch.finfo(dtype).max
    if max(-low, high) > most:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"{fill} goes beyond {most:.6g}, the largest number of {name}")


_REACH = 6.5
"""So many standard deviations from its mean a draw of a normal may be."""


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

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if math.isfinite(self.val):
            check_fit(self, self.val, self.val, dtype)

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

    def _check_range(self, dtype: torch.dtype) -> None:
        check_fit(self, self.mean - _REACH * self.std, self.mean + _REACH * self.std, dtype)

    def moments(self, shape: tuple[int, ...] = ()) -> Moments:
        return Moments(float(self.mean), float(self.std))

    def parts(self, shape: tuple[int, ...] = ()) -> Moments:
        return self.moments().shrunk(math.sqrt(0.5))


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

    def _check_range(self, dtype: torch.dtype) -> None:
        check_fit(self, self.a, self.b, dtype)

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
            number(name, getattr(self, name), finite=False)
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
        return self.std / truncated(self.a, self.b)[1] if self.corrected else float(self.std)

    @property
    def low(self) -> float:
        return float(self.a) if self.unit == "value" else self.mean + self.a * self.sigma

    @property
    def high(self) -> float:
        return float(self.b) if self.unit == "value" else self.mean + self.b * self.sigma

    @property
    def draw(self) -> tuple[Distribution, tuple[float, ...]]:
        return "truncated", (self.mean, self.sigma, self.low, self.high)

    def _check_range(self, dtype: torch.dtype) -> None:
        reach = _REACH * self.sigma
        low = max(self.low, min(self.mean, self.high) - reach)
        high = min(self.high, max(self.mean, self.low) + reach)
        check_fit(self, low, high, dtype)

    def write(self, shard: Shard, noise: Noise) -> None:
        if self.std == 0:  # torch's algorithm divides by it
            shard.local.fill_(self.mean)
        else:
            noise.fill(shard, *self.draw)

    def job(self, shard: Shard) -> Job | None:
        return Job(shard, *self.draw) if self.std else None

    def moments(self, shape: tuple[int, ...] = ()) -> Moments:
        if self.std == 0:
            return point(float(self.mean))
        mean, std = truncated((self.low - self.mean) / self.sigma, (self.high - self.mean) / self.sigma)
        # Cut in its tail, a normal is close to an exponential, whose kurtosis is 9; a half normal has 3.87.
        kurtosis = 4.0 if self.low <= self.mean <= self.high else 9.0
        low, high = (end if math.isfinite(end) else None for end in (self.low, self.high))
        return Moments(self.mean + self.sigma * mean, self.sigma * std, low, high, kurtosis)


def is_elementwise(fill: Fill) -> bool:
    """Whether every element stands for itself, so that a fill for a part is a fill for the whole.

    >>> is_elementwise(Normal())
    True
    """
    return isinstance(fill, (Constant, Drawn))
