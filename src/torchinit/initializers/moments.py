"""Moments: what to expect of many values: mean, standard deviation, bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


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

    def shrunk(self, factor: float) -> Moments:
        """The same distribution around the same mean with its standard deviation times ``factor``.

        >>> Moments(1.0, 2.0).shrunk(0.5)
        Moments(mean=1.0, std=1.0, min=None, max=None, kurtosis=3.0)
        """
        return replace(self, std=None if self.std is None else self.std * factor)

    def scaled(self, factor: float) -> Moments:
        """The same distribution with all its values times ``factor``.

        >>> Moments(1.0, 2.0, max=3.0).scaled(-2.0)
        Moments(mean=-2.0, std=4.0, min=-6.0, max=None, kurtosis=3.0)
        """
        mean, low, high = (None if end is None else end * factor for end in (self.mean, self.min, self.max))
        ends = (low, high) if factor >= 0 else (high, low)
        return replace(self.shrunk(abs(factor)), mean=mean, min=ends[0], max=ends[1])


def point(value: float) -> Moments:
    """The moments of one value.

    >>> point(2.0)
    Moments(mean=2.0, std=0.0, min=2.0, max=2.0, kurtosis=3.0)
    """
    return Moments(value, 0.0, value, value)


def mixture(parts: Sequence[Moments | None], weights: Sequence[float]) -> Moments | None:
    """The moments of a tensor made of parts, each with its share of the elements; None if one is not known.

    >>> mixture([point(0.0), point(1.0)], [3, 1]).mean
    0.25
    """
    known = [(part, weight / sum(weights)) for part, weight in zip(parts, weights, strict=True) if weight]
    if not known or any(part is None or part.mean is None or part.std is None for part, _ in known):
        return None
    mean = sum((part.mean or 0.0) * share for part, share in known if part)
    variance = sum(_square(part, mean) * share for part, share in known if part)
    fourth = sum(_fourth(part, mean) * share for part, share in known if part)
    lows = [part.min for part, _ in known if part]
    highs = [part.max for part, _ in known if part]
    return Moments(
        mean,
        math.sqrt(variance),
        None if None in lows else min(low for low in lows if low is not None),
        None if None in highs else max(high for high in highs if high is not None),
        fourth / variance**2 if variance**2 else 3.0,
    )


def _square(part: Moments, centre: float) -> float:
    """The second moment of a part about another centre."""
    return float((part.std or 0.0) ** 2 + ((part.mean or 0.0) - centre) ** 2)


def _fourth(part: Moments, centre: float) -> float:
    """The fourth moment of a symmetric part about another centre."""
    variance, offset = (part.std or 0.0) ** 2, (part.mean or 0.0) - centre
    return part.kurtosis * variance**2 + 6 * variance * offset**2 + offset**4


def truncated(low: float, high: float) -> tuple[float, float]:
    """Mean and standard deviation of the standard normal cut to [low, high].

    >>> truncated(-2.0, 2.0)
    (0.0, 0.8796256610342398)
    """
    if (high - low) * max(1.0, -low, high) < 4:
        return _narrow(low, high)
    if low > 0:  # the upper tail loses all its digits in 1 - Phi: turn it over
        mean, std = truncated(-high, -low)
        return -mean, std
    mass = _phi(high) - _phi(low)
    if mass <= 0:  # beyond the reach of doubles: all the mass sits at the end nearer to the middle
        return high, 0.0
    mean = (_density(low) - _density(high)) / mass
    spread = (_edge(low) - _edge(high)) / mass
    return mean, math.sqrt(max(0.0, 1 + spread - mean * mean))


def _narrow(low: float, high: float) -> tuple[float, float]:
    """The same by Simpson's rule, where the closed form would subtract what is nearly equal."""
    middle, half = (low + high) / 2, (high - low) / 2
    points = [half * step / 64 for step in range(-64, 65)]
    simpson = [1, *(4, 2) * 63, 4, 1]
    mass = [weight * math.exp(-t * (middle + t / 2)) for weight, t in zip(simpson, points, strict=True)]
    total = math.fsum(mass)
    mean = math.fsum(p * t for p, t in zip(mass, points, strict=True)) / total
    square = math.fsum(p * (t - mean) ** 2 for p, t in zip(mass, points, strict=True)) / total
    return middle + mean, math.sqrt(square)


def _phi(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def _density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _edge(x: float) -> float:
    return x * _density(x) if math.isfinite(x) else 0.0
