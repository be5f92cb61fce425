"""Fills whose every element stands for itself, be it a number or a draw; of complex ones in a disc around 0."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Final, Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from torchinit._frozen import quickly_made
from torchinit.initializers.base import Fill, Initializer, check_fit
from torchinit.initializers.statistics import Moments, point, truncated
from torchinit.model.shards import Box, Shard
from torchinit.noise import Distribution, DrawRequest, Noise
from torchinit.noise.distributions import MAX_SIGMAS, resolve
from torchinit.serialization.schema import check_number

__all__ = ["Constant", "Drawn", "Fill", "Initializer", "Normal", "TruncNormal", "Uniform"]

_ORDINARY: Final = frozenset((Tensor, nn.Parameter))


class Disc(NamedTuple):
    r"""A disc of complex numbers: its ``radius``, and E|z|² = ``sigma``² of the normal that is cut (inf: uniform).

    Both are turned around 0 by a uniform angle. The square of the distance has the distribution function

    .. math:: P(|z|^2 \le t) = t / R^2 \quad\text{or}\quad (1 - e^{-t/\sigma^2}) / (1 - e^{-R^2/\sigma^2})

    >>> Disc(2.0).parts().std
    1.0
    """

    radius: float
    sigma: float = math.inf

    def write(self, shard: Shard, noise: Noise) -> None:
        """Draw a complex shard: of each number the first word tells the distance, the second the angle."""
        local, axes = shard.local, (2,)
        wide = torch.float64 if noise.is_stateful and local.dtype == torch.complex128 else torch.float32
        uniform = torch.empty((*local.shape, *axes), dtype=wide, device=local.device)
        matrix = shard.matrix and Box((*shard.matrix.start, 0), (*shard.matrix.shape, *axes))
        pairs = replace(shard, local=uniform, shape=(*shard.shape, *axes), start=(*shard.start, 0), matrix=matrix)
        noise.fill(pairs, "uniform", (0.0, 1.0))
        share, angle = uniform.double().cpu().unbind(-1)
        if math.isinf(self.sigma):
            square = share * self.radius**2
        else:
            square = torch.log1p(share * math.expm1(-((self.radius / self.sigma) ** 2))) * -(self.sigma**2)
        distance, angle = square.sqrt_(), angle * (2 * math.pi)
        real, imaginary = (distance * turned for turned in (angle.cos(), angle.sin()))
        if local.dtype.to_real() != torch.float64:  # rounded once, by float32, as all values of the stream
            real, imaginary = real.float(), imaginary.float()
        local.copy_(torch.complex(real, imaginary))

    def parts(self) -> Moments:
        """The moments of the real and of the imaginary part."""
        square, fourth = self.means()
        low, high = (-self.radius, self.radius) if math.isfinite(self.radius) else (None, None)
        return Moments(0.0, math.sqrt(square / 2), low, high, 1.5 * fourth / square**2 if square else 3.0)

    def means(self) -> tuple[float, float]:
        """The means of |z|² and |z|⁴; close to uniform, where the closed forms lose their digits, those of uniform."""
        ratio = (self.radius / self.sigma) ** 2
        if ratio < 1e-5:
            return self.radius**2 / 2, self.radius**4 / 3
        tail = math.exp(-ratio) / -math.expm1(-ratio)
        square = 1 - (ratio * tail if tail else 0.0)
        return self.sigma**2 * square, self.sigma**4 * (2 * square - (ratio**2 * tail if tail else 0.0))


class Drawn(Fill):
    """A fill that draws every element by itself, so that any slice costs its own elements."""

    __slots__ = ()

    elementwise = True

    @property
    @abstractmethod
    def draw(self) -> tuple[Distribution, tuple[float, ...]]:
        """The distribution and its parameters."""

    @property
    def disc(self) -> Disc | None:
        """The disc in which the values of a complex tensor lie; None for a normal. Raises ValueError for no disc."""
        return None

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        distribution, params = self.draw
        if dtype.is_complex and (disc := self.disc):
            reach = min(disc.radius, MAX_SIGMAS * disc.sigma)
            check_fit(self, -reach, reach, dtype)
            return
        resolve(distribution, params, dtype.to_real())
        if distribution == "uniform":
            low, high = params
        else:  # of a normal nothing lies beyond its bounds, nor far from its mean
            mean, std, low, high = (*params, -math.inf, math.inf)[:4]
            reach = MAX_SIGMAS * std
            low, high = max(low, min(mean, high) - reach), min(high, max(mean, low) + reach)
        check_fit(self, low, high, dtype)

    def write(self, shard: Shard, noise: Noise) -> None:
        if shard.local.is_complex() and (disc := self.disc):
            disc.write(shard, noise)
        else:
            noise.fill(shard, *self.draw)

    def job(self, shard: Shard) -> DrawRequest | None:
        return None if shard.local.is_complex() and self.disc else DrawRequest(shard, *self.draw)

    def parts(self, shape: tuple[int, ...] = ()) -> Moments | None:
        return self.disc.parts() if self.disc else None


@final
@quickly_made
@dataclass(frozen=True, slots=True)
class Constant(Fill):
    """Every element is ``val``.

    >>> Constant(0.5)
    Constant(val=0.5)
    """

    val: float
    looks_at: ClassVar[tuple[str, ...]] = ()
    elementwise = True

    def __post_init__(self) -> None:
        check_number("val", self.val, finite=False)

    def check(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if math.isfinite(self.val):
            check_fit(self, self.val, self.val, dtype)

    def write(self, shard: Shard, noise: Noise) -> None:
        shard.local.fill_(self.val)

    def scaled(self, factor: float) -> Fill:
        return Constant(self.val * factor)

    def moments(self, shape: tuple[int, ...] = ()) -> Moments:
        return point(self.val)


@final
@quickly_made
@dataclass(frozen=True, slots=True)
class Normal(Drawn):
    """The normal distribution N(mean, std²).

    >>> Normal(std=0.02).moments()
    Moments(mean=0.0, std=0.02, min=None, max=None, kurtosis=3.0)
    """

    mean: float = 0.0
    std: float = 1.0
    looks_at: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_number("mean", self.mean)
        check_number("std", self.std, least=0)

    @property
    def draw(self) -> tuple[Distribution, tuple[float, ...]]:
        return "normal", (self.mean, self.std)

    def scaled(self, factor: float) -> Fill:
        return Normal(self.mean * factor, self.std * abs(factor))

    def moments(self, shape: tuple[int, ...] = ()) -> Moments:
        return Moments(float(self.mean), float(self.std))

    def parts(self, shape: tuple[int, ...] = ()) -> Moments:
        return self.moments().shrunk(math.sqrt(0.5))


@final
@quickly_made
@dataclass(frozen=True, slots=True)
class Uniform(Drawn):
    """The uniform distribution on [a, b). For a complex tensor that in the disc of radius b; a must be -b then.

    >>> Uniform(-1, 1).moments()
    Moments(mean=0.0, std=0.5773502691896258, min=-1.0, max=1.0, kurtosis=1.8)
    """

    a: float = 0.0
    b: float = 1.0
    looks_at: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_number("a", self.a)
        check_number("b", self.b)
        if self.a > self.b:
            raise ValueError(f"Uniform needs a <= b, but got a={self.a}, b={self.b}")

    @property
    def draw(self) -> tuple[Distribution, tuple[float, ...]]:
        return "uniform", (self.a, self.b)

    @property
    def disc(self) -> Disc:
        return Disc(_radius(self, self.a, self.b))

    def scaled(self, factor: float) -> Fill:
        return Uniform(*sorted((self.a * factor, self.b * factor)))

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
    ``"sigma"`` and the interval symmetric), as JAX and Keras do. For a complex tensor the interval is a disc around 0:
    ``mean`` must be 0 and the interval symmetric, and ``std`` is the root of the mean square of the modulus.

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
    looks_at: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_number("mean", self.mean)
        check_number("std", self.std, least=0)
        check_number("a", self.a, finite=False)
        check_number("b", self.b, finite=False)
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

    def scaled(self, factor: float) -> Fill:
        unit = abs(factor) if self.unit == "value" else 1.0
        low, high = (self.a, self.b) if factor >= 0 else (-self.b, -self.a)
        if not low * unit < high * unit:  # by a factor of 0, or one so small that the interval is gone
            return Constant(self.mean * factor)
        return replace(self, mean=self.mean * factor, std=self.std * abs(factor), a=low * unit, b=high * unit)

    @property
    def disc(self) -> Disc:
        if self.mean:
            raise ValueError(f"a complex tensor takes a disc around 0, but {self} has another mean")
        sigma = self.std / math.sqrt(Disc(self.b, 1.0).means()[0]) if self.corrected else float(self.std)
        scale = 1.0 if self.unit == "value" else sigma
        return Disc(_radius(self, self.a * scale, self.b * scale), sigma)

    def write(self, shard: Shard, noise: Noise) -> None:
        if self.std == 0:  # torch's algorithm divides by it
            shard.local.fill_(self.mean)
        else:
            Drawn.write(self, shard, noise)

    def job(self, shard: Shard) -> DrawRequest | None:
        return Drawn.job(self, shard) if self.std else None

    def parts(self, shape: tuple[int, ...] = ()) -> Moments | None:
        return self.disc.parts() if self.std else Fill.parts(self, shape)

    def moments(self, shape: tuple[int, ...] = ()) -> Moments:
        if self.std == 0:
            return point(float(self.mean))
        mean, std = truncated((self.low - self.mean) / self.sigma, (self.high - self.mean) / self.sigma)
        # Cut in its tail, a normal is close to an exponential, whose kurtosis is 9; a half normal has 3.87.
        kurtosis = 4.0 if self.low <= self.mean <= self.high else 9.0
        low, high = (end if math.isfinite(end) else None for end in (self.low, self.high))
        return Moments(self.mean + self.sigma * mean, self.sigma * std, low, high, kurtosis)


def _radius(fill: Fill, low: float, high: float) -> float:
    if low != -high:
        raise ValueError(f"a complex tensor takes a disc around 0, so the bounds must be -r and r, but got {fill}")
    return high


def write_each(pairs: Iterable[tuple[Fill, Shard]], noise: Noise) -> None:
    """Write each fill into its shard, in any order; one number into many ordinary tensors by one call of torch."""
    # A call of ``fill_`` takes ten times as long as a small tensor does, and half of a model may be zeros and ones.
    alike: dict[tuple[int, torch.dtype, torch.device], tuple[Constant, list[Tensor]]] = {}
    for fill, shard in pairs:
        out = shard.local
        if isinstance(fill, Constant) and type(out) in _ORDINARY:
            alike.setdefault((id(fill), out.dtype, out.device), (fill, []))[1].append(out)
        else:
            fill.write(shard, noise)
    for fill, outs in alike.values():
        write_constants(fill, outs)


def write_constants(fill: Constant, outs: list[Tensor]) -> None:
    """Write one number into many ordinary tensors of one dtype on one device."""
    if fill.val or math.copysign(1.0, fill.val) < 0:
        number = torch.full((), fill.val, dtype=outs[0].dtype, device=outs[0].device)
        torch._foreach_copy_(outs, [number] * len(outs))
    else:
        torch._foreach_zero_(outs)
