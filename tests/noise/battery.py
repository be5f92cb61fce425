"""Battery: the stream as a very large sample: moments, distances of distributions, bits, correlations.

``python -m tests.noise.battery [LOG2]`` looks at 2**27 draws of each kind (134 million; minutes, and 3 GiB)
or at 2**LOG2, and prints a p-value for each statistic. Many p-values are looked at, so one below 1e-6 is a failure, one
below 1e-3 is not. What it printed is in docs/reference/stream.md; a smaller one is part of the tests.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import special, stats

from tests.noise.feed import words
from torchinit.model.shards import Shard
from torchinit.noise import Distribution, DrawRequest, Keyed
from torchinit.noise.keyed import derive

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint32]
Cdf = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]

LEAST = 1e-6
_CHUNK = 1 << 22
_STREAMS = 256
_LAGS = [*range(1, 65), *(1 << k for k in range(7, 18))]


@dataclass(frozen=True)
class Finding:
    """A statistic, and how likely a perfect stream gives one that is as far off."""

    what: str
    statistic: float
    p: float

    def __str__(self) -> str:
        return f"{self.what:60} {self.statistic:12.4f}  p = {self.p:.3g}"


def draw(n: int, distribution: Distribution, params: tuple[float, ...], name: str = "weight") -> Floats:
    """So many draws of one name."""
    out = torch.empty(n)
    Keyed(0).fill(Shard.whole(name, out), distribution, params)
    return out.numpy()


def _chunks(values: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float64]]:
    yield from (values[at : at + _CHUNK].astype(np.float64) for at in range(0, len(values), _CHUNK))


def _score(what: str, z: float) -> Finding:
    return Finding(what, z, math.erfc(abs(z) / math.sqrt(2)))


def moments(what: str, values: Floats, expected: Callable[[int], float]) -> Iterator[Finding]:
    """The means of the first six powers, in standard errors."""
    for power in range(1, 7):
        mean = math.fsum(float((chunk**power).sum()) for chunk in _chunks(values)) / len(values)
        error = math.sqrt((expected(2 * power) - expected(power) ** 2) / len(values))
        yield _score(f"{what}: moment {power}", (mean - expected(power)) / error)


def distances(what: str, values: Floats, cdf: Cdf) -> Iterator[Finding]:
    """Kolmogorov-Smirnov and Anderson-Darling."""
    ordered, n = np.sort(values), len(values)
    most, logs = 0.0, 0.0
    for at in range(0, n, _CHUNK):
        place = np.arange(at, min(at + _CHUNK, n))
        low = cdf(ordered[place].astype(np.float64))
        high = cdf(ordered[n - 1 - place].astype(np.float64))
        most = max(most, float(np.maximum((place + 1) / n - low, low - place / n).max()))
        with np.errstate(divide="ignore"):
            terms = (2 * place + 1.0) * (np.log(np.maximum(low, 1e-18)) + np.log(np.maximum(1 - high, 1e-18)))
        logs += math.fsum(terms) / n
    most *= math.sqrt(n)
    yield Finding(f"{what}: Kolmogorov-Smirnov, sqrt(n) D", most, float(special.kolmogorov(most)))
    yield Finding(f"{what}: Anderson-Darling A2", -n - logs, _anderson_darling(-n - logs))


def _anderson_darling(z: float) -> float:
    """How likely the statistic is above z: Marsaglia and Marsaglia (2004), https://doi.org/10.18637/jss.v009.i02."""
    if z < 2:
        series = np.polyval([0.00168691, -0.011672, 0.0347962, -0.0649821, 0.247105, 2.00012], z)
        return 1 - math.exp(-1.2337141 / z) / math.sqrt(z) * float(series)
    series = np.polyval([0.0003146, -0.008056, 0.082433, -0.43424, 2.30695, -1.0776], z)
    return -math.expm1(-math.exp(-float(series)))


def bits(drawn: Words) -> Iterator[Finding]:
    """Each bit's ones, neighbouring pairs of words, and the frequencies of all halves of words."""
    n = len(drawn)
    ones = np.array([int(np.count_nonzero(drawn & np.uint32(1 << bit))) for bit in range(32)])
    chi = float((((ones - n / 2) ** 2) / (n / 4)).sum())
    yield Finding("bits: ones of each, chi-square of 32", chi, float(stats.chi2.sf(chi, 32)))
    flips = np.array([int(np.count_nonzero((drawn[1:] ^ drawn[:-1]) & np.uint32(1 << bit))) for bit in range(32)])
    chi = float((((flips - (n - 1) / 2) ** 2) / ((n - 1) / 4)).sum())
    yield Finding("bits: changes from word to word, chi-square of 32", chi, float(stats.chi2.sf(chi, 32)))
    for where, half in (("lower", drawn & np.uint32(0xFFFF)), ("upper", drawn >> np.uint32(16))):
        counts = np.bincount(half, minlength=1 << 16)
        chi = float((((counts - n / 65536) ** 2) / (n / 65536)).sum())
        yield Finding(f"bits: {where} halves, chi-square of 65,535", chi, _two_sided(chi, 65535))


def _two_sided(chi: float, freedom: int) -> float:
    return min(1.0, 2 * float(min(stats.chi2.sf(chi, freedom), stats.chi2.cdf(chi, freedom))))


def serial(values: Floats) -> Iterator[Finding]:
    """The correlation of standard normals with those some places on: all lags together, and the largest."""
    scores = []
    for lag in _LAGS:
        pairs = zip(_chunks(values[:-lag]), _chunks(values[lag:]), strict=True)
        scores.append(math.fsum(float(one @ other) for one, other in pairs) / math.sqrt(len(values) - lag))
    yield from _together(f"serial correlation, {len(_LAGS)} lags to {_LAGS[-1]:,}", np.array(scores))


def across(what: str, rows: Floats) -> Iterator[Finding]:
    """The correlations of every two of many streams of standard normals."""
    table = rows.astype(np.float64)
    scores = (table @ table.T / math.sqrt(table.shape[1]))[np.triu_indices(len(table), 1)]
    yield from _together(f"{what}, {len(scores):,} pairs", scores)


def _together(what: str, scores: npt.NDArray[np.float64]) -> Iterator[Finding]:
    chi, most = float((scores**2).sum()), float(np.abs(scores).max())
    yield Finding(f"{what}: chi-square", chi, _two_sided(chi, len(scores)))
    yield Finding(f"{what}: largest", most, -math.expm1(len(scores) * math.log1p(-math.erfc(most / math.sqrt(2)))))


def _streams(n: int, noises: list[Keyed], names: list[str]) -> Floats:
    out = torch.empty(_STREAMS, n // _STREAMS)
    for noise, name, row in zip(noises, names, out, strict=True):
        noise.fill_many([DrawRequest(Shard.whole(name, row), "normal", (0.0, 1.0))])
    return out.numpy()


def battery(n: int) -> Iterator[Finding]:
    """All findings of so many draws of each kind."""
    cut = stats.norm.cdf(2) - stats.norm.cdf(-2)
    normal, uniform = draw(n, "normal", (0.0, 1.0)), draw(n, "uniform", (0.0, 1.0), "uniform")
    yield from moments("normal", normal, lambda k: float(special.factorial2(k - 1)) if k % 2 == 0 else 0.0)
    yield from moments("uniform", uniform, lambda k: 1 / (k + 1))
    yield from distances("normal", normal, special.ndtr)
    yield from distances("uniform", uniform, lambda x: x + 2.0**-25)
    truncated = draw(n, "truncated", (0.0, 1.0, -2.0, 2.0), "truncated")
    yield from distances("truncated at 2", truncated, lambda z: (special.ndtr(z) - special.ndtr(-2.0)) / cut)
    yield from serial(normal)
    del normal, uniform, truncated
    yield from bits(words([(derive(0, "words"), 0)], n)[0])
    same, names = [Keyed(0)] * _STREAMS, [f"blocks.{i}.weight" for i in range(_STREAMS)]
    yield from across("names", _streams(n, same, names))
    yield from across("neighbouring seeds", _streams(n, [Keyed(i) for i in range(_STREAMS)], ["weight"] * _STREAMS))


def main() -> None:
    """Prints all findings; fails where one is too unlikely."""
    n = 1 << int(sys.argv[1] if len(sys.argv) > 1 else "27")
    print(f"{n:,} draws of each kind")
    bad = 0
    for finding in battery(n):
        print(finding, flush=True)
        bad += finding.p < LEAST
    if bad:
        sys.exit(f"{bad} findings with p < {LEAST}")


if __name__ == "__main__":
    main()
