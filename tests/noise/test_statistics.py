"""The stream as a sample: every check has a tolerance derived from the number of draws, at 1e-7 or less per check."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from torchinit.model.shards import Shard
from torchinit.noise import Distribution, Keyed
from torchinit.noise.engines.torch_engine import key_of, words_between
from torchinit.noise.keyed import derive

N = 1 << 20
SIGMAS = 5.5
"""Two-sided: 4e-8."""
INF = math.inf


def sample(
    distribution: Distribution,
    params: tuple[float, ...],
    n: int = N,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    name: str = "weight",
) -> npt.NDArray[np.float64]:
    out = torch.empty(n, dtype=dtype)
    Keyed(seed).fill(Shard.whole(name, out), distribution, params)
    return out.double().numpy()


def near(observed: float, expected: float, variance: float, n: int = N) -> bool:
    return abs(observed - expected) <= SIGMAS * math.sqrt(variance / n)


def even_moment(k: int) -> int:
    """E z**(2k) of the standard normal: (2k - 1)!!."""
    return math.prod(range(1, 2 * k, 2))


@pytest.mark.parametrize("power", range(1, 7))
def test_moments_of_the_normal(power: int) -> None:
    expected = even_moment(power // 2) if power % 2 == 0 else 0
    variance = even_moment(power) - expected**2
    assert near(float((sample("normal", (0.0, 1.0)) ** power).mean()), expected, variance)


@pytest.mark.parametrize("power", range(1, 7))
def test_moments_of_the_uniform(power: int) -> None:
    expected = 1 / (power + 1)
    variance = 1 / (2 * power + 1) - expected**2
    assert near(float((sample("uniform", (0.0, 1.0)) ** power).mean()), expected, variance)


DISTRIBUTED: list[tuple[Distribution, tuple[float, ...], Any]] = [
    ("normal", (0.0, 1.0), stats.norm),
    ("normal", (3.0, 0.5), stats.norm(3.0, 0.5)),
    ("uniform", (-0.25, 0.5), stats.uniform(-0.25, 0.75)),
    ("truncated", (0.0, 1.0, -2.0, 2.0), stats.truncnorm(-2, 2)),
    ("truncated", (0.0, 1.0, -3.0, 3.0), stats.truncnorm(-3, 3)),
    ("truncated", (1.0, 2.0, 0.0, INF), stats.truncnorm(-0.5, INF, 1, 2)),
    ("truncated", (0.0, 1.0, 1.0, 1.01), stats.truncnorm(1, 1.01)),
    ("truncated", (0.0, 1.0, 5.0, INF), stats.truncnorm(5, INF)),
    ("truncated", (0.0, 1.0, -INF, -5.0), stats.truncnorm(-INF, -5)),
    ("truncated", (0.0, 1.0, 2.2, 2.21), stats.truncnorm(2.2, 2.21)),
    ("truncated", (0.0, 1.0, 20.0, 20.1), stats.truncnorm(20, 20.1)),
]


@pytest.mark.parametrize(("distribution", "params", "exact"), DISTRIBUTED)
def test_kolmogorov_smirnov(distribution: Distribution, params: tuple[float, ...], exact: Any) -> None:
    assert stats.kstest(sample(distribution, params, 1 << 17), exact.cdf).pvalue > 1e-7


@pytest.mark.parametrize(("distribution", "params", "exact"), DISTRIBUTED[:6])
def test_anderson_darling(distribution: Distribution, params: tuple[float, ...], exact: Any) -> None:
    n = 1 << 16
    p = np.clip(exact.cdf(np.sort(sample(distribution, params, n))), 1e-12, 1 - 1e-12)
    odd = 2 * np.arange(1, n + 1) - 1
    statistic = -n - float((odd * (np.log(p) + np.log1p(-p[::-1]))).mean())
    # P(A2 > 17) is about 1e-7 (its tail falls as exp(-A2) or faster; Marsaglia and Marsaglia 2004).
    assert statistic < 17


def test_tails_hold_what_they_should() -> None:
    z = np.abs(sample("normal", (0.0, 1.0), 1 << 22))
    for bound in (3.0, 4.0, 4.5, 5.0):
        mean = 2 * stats.norm.sf(bound) * len(z)
        assert stats.poisson.sf((z > bound).sum() - 1, mean) > 1e-7
        assert stats.poisson.cdf((z > bound).sum(), mean) > 1e-7


@pytest.mark.parametrize(
    ("distribution", "params", "values", "weights"),
    [
        ("bernoulli", (0.3,), [0.0, 1.0], [0.7, 0.3]),
        ("sign", (), [-1.0, 1.0], [0.5, 0.5]),
        ("integer", (-3.0, 10.0), list(range(-3, 10)), [1 / 13] * 13),
    ],
)
def test_discrete_frequencies(
    distribution: Distribution, params: tuple[float, ...], values: list[float], weights: list[float]
) -> None:
    seen, counts = np.unique(sample(distribution, params), return_counts=True)
    assert seen.tolist() == values
    assert stats.chisquare(counts, np.array(weights) * N).pvalue > 1e-7


def bits(n: int, name: str = "weight", seed: int = 0) -> npt.NDArray[np.uint32]:
    words = words_between(key_of(derive(seed, name)), 0, n, torch.device("cpu"))
    return words.numpy().astype(np.uint32)


def test_every_bit_is_fair() -> None:
    words = bits(N)
    ones = np.array([int(((words >> bit) & 1).sum()) for bit in range(32)])
    assert stats.chi2.sf(float((((ones - N / 2) ** 2) / (N / 4)).sum()), 32) > 1e-7


def test_bytes_are_even() -> None:
    words = bits(N)
    for shift in (0, 8, 16, 24):
        counts = np.bincount((words >> shift) & 255, minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-7


def correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    return float((a * b).mean() / (a.std() * b.std()))


@pytest.mark.parametrize("lag", [1, 2, 7, 8, 16, 31, 32, 33, 64, 768, 1024, 4096])
def test_no_serial_correlation(lag: int) -> None:
    z = sample("normal", (0.0, 1.0))
    assert near(correlation(z[lag:], z[:-lag]), 0, 1)
    assert near(correlation(z[lag:] ** 2 - 1, z[:-lag] ** 2 - 1), 0, 1)


def test_names_and_neighbouring_seeds_are_independent() -> None:
    n = 1 << 14
    rows = [sample("normal", (0.0, 1.0), n, name=f"layers.{i}.weight") for i in range(40)]
    rows += [sample("normal", (0.0, 1.0), n, seed=i) for i in range(40)]
    r = np.asarray(np.corrcoef(np.stack(rows)))[np.triu_indices(80, 1)]
    # 3160 pairs: the largest of them all stays below 6.5 sigmas but for 3e-7; their spread is chi-squared.
    assert np.abs(r).max() < 6.5 / math.sqrt(n)
    assert 1e-7 < stats.chi2.sf(float((r**2).sum() * n), len(r)) < 1 - 1e-7


class TestLowPrecision:
    """Torch sends bfloat16 and float16 draws that round up to the upper bound down to the lower one."""

    @pytest.mark.parametrize(("dtype", "half_cell"), [(torch.bfloat16, 2.0**-9), (torch.float16, 2.0**-12)])
    def test_uniform_has_no_bias(self, dtype: torch.dtype, half_cell: float) -> None:
        n = 1 << 22
        ours = sample("uniform", (0.0, 1.0), n, dtype)
        # Draws that would round to 1 become the number below it: a shift of 2 * half_cell**2, far below the noise.
        assert near(float(ours.mean()), 0.5 - 2 * half_cell**2, 1 / 12, n)
        # Zero is 1 of 2**24 uniforms: a quarter of a draw expected, and 20 are seen once in 10**30 runs.
        assert int((ours == 0).sum()) < 20
        assert float(ours.max()) < 1

    def test_torchs_own_is_biased(self) -> None:
        n = 1 << 22
        theirs = torch.empty(n, dtype=torch.bfloat16)
        torch.nn.init.uniform_(theirs, generator=torch.Generator().manual_seed(0))
        share = float((theirs == 0).double().mean())
        assert share > 0.0015
        assert abs(float(theirs.double().mean()) - 0.5) > 10 * math.sqrt(1 / 12 / n)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_normal_and_truncated_have_no_bias(self, dtype: torch.dtype) -> None:
        n = 1 << 22
        assert near(float(sample("normal", (0.0, 1.0), n, dtype).mean()), 0, 1, n)
        cut = stats.truncnorm(-2, 2)
        assert near(float(sample("truncated", (0.0, 1.0, -2.0, 2.0), n, dtype).mean()), 0, float(cut.var()), n)
