"""Moments: what to expect of many values: mean, standard deviation, bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torchinit._frozen import quickly_made


@quickly_made
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
        """The same distribution around the same mean with its standard deviation times ``factor``."""
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
    """The moments of one value."""
    return Moments(value, 0.0, value, value)


def mixture(parts: Sequence[Moments | None], weights: Sequence[float]) -> Moments | None:
    """The moments of a tensor made of parts, each with its share of the elements; None if one is not known.

    The kurtosis is that of parts which are symmetric, as all distributions here are but for cut-off tails.
    """
    total = sum(weights)
    present = [(part, weight / total) for part, weight in zip(parts, weights, strict=True) if weight]
    known = [
        (part, part.mean, part.std**2, share)
        for part, share in present
        if part and part.mean is not None and part.std is not None
    ]
    if not known or len(known) < len(present):
        return None
    centre = sum(mean * share for _, mean, _, share in known)
    variance = sum((square + (mean - centre) ** 2) * share for _, mean, square, share in known)
    fourth = sum(_fourth(part.kurtosis, square, mean - centre) * share for part, mean, square, share in known)
    lows = [part.min for part, *_ in known if part.min is not None]
    highs = [part.max for part, *_ in known if part.max is not None]
    return Moments(
        centre,
        math.sqrt(variance),
        min(lows) if len(lows) == len(known) else None,
        max(highs) if len(highs) == len(known) else None,
        fourth / variance**2 if variance**2 else 3.0,
    )


def _fourth(kurtosis: float, variance: float, offset: float) -> float:
    """The fourth moment of a symmetric distribution about a point that lies ``offset`` from its mean."""
    return kurtosis * variance**2 + 6 * variance * offset**2 + offset**4


def truncated(low: float, high: float) -> tuple[float, float]:
    """Mean and standard deviation of the standard normal cut to [low, high].

    By the closed form, where that can be. In a narrow interval it subtracts what is nearly equal: that is integrated;
    in the upper tail 1 - Phi loses its digits: that is turned over; and where doubles hold no mass any more, all of
    it sits at the end nearer to the middle.
    """
    if (high - low) * max(1.0, -low, high) < 4:
        return _narrow(low, high)
    if low > 0:
        mean, std = truncated(-high, -low)
        return -mean, std
    mass = _phi(high) - _phi(low)
    if mass <= 0:
        return high, 0.0
    mean = (_density(low) - _density(high)) / mass
    spread = (_edge(low) - _edge(high)) / mass
    return mean, math.sqrt(max(0.0, 1 + spread - mean * mean))


def _narrow(low: float, high: float) -> tuple[float, float]:
    """The same by Simpson's rule."""
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
