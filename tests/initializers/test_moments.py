"""Moments against SciPy, and against values that are written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from torchinit.initializers.statistics import Moments, mixture, point, truncated

FINITE = st.floats(-6, 6)


@given(FINITE, st.floats(0.01, 12))
def test_truncated_is_scipys(low: float, width: float) -> None:
    oracle = stats.truncnorm(low, low + width)
    mean, std = truncated(low, low + width)
    assert mean == pytest.approx(oracle.mean(), rel=1e-8, abs=1e-9)
    assert std == pytest.approx(oracle.std(), rel=1e-4)


@pytest.mark.parametrize("low", [-2.0, 0.0, 1.0, 30.0])
@pytest.mark.parametrize("width", [1e-3, 1e-5, 1e-8, 1e-12])
def test_a_narrow_interval_is_uniform(low: float, width: float) -> None:
    width = (low + width) - low
    mean, std = truncated(low, low + width)
    assert mean == pytest.approx(low + width / 2, rel=1e-3 * width)
    assert std == pytest.approx(width / math.sqrt(12), rel=2e-3)


@pytest.mark.parametrize(("low", "high"), [(-2.0, math.inf), (-math.inf, 1.0), (-math.inf, math.inf), (25.0, math.inf)])
def test_open_intervals(low: float, high: float) -> None:
    oracle = stats.truncnorm(low, high)
    assert truncated(low, high) == pytest.approx((oracle.mean(), oracle.std()), rel=1e-6)


def test_beyond_doubles_the_mass_sits_at_the_nearer_end() -> None:
    assert truncated(50.0, 60.0) == (50.0, 0.0)
    assert truncated(-60.0, -50.0) == (-50.0, 0.0)


@given(st.lists(st.tuples(FINITE, st.integers(1, 5)), min_size=1, max_size=6))
def test_a_mixture_of_points_has_their_moments(points: list[tuple[float, int]]) -> None:
    values = np.repeat([value for value, _ in points], [times for _, times in points])
    mixed = mixture([point(value) for value, _ in points], [times for _, times in points])
    assert mixed is not None
    assert mixed.mean == pytest.approx(values.mean(), abs=1e-12)
    assert mixed.std == pytest.approx(values.std(), abs=1e-9)
    assert (mixed.min, mixed.max) == (values.min(), values.max())
    if values.std() > 1e-3:
        assert mixed.kurtosis == pytest.approx(stats.kurtosis(values, fisher=False), rel=1e-6)


def test_a_mixture_of_normals_has_scipys_moments() -> None:
    """By the moments of each part about zero."""
    one, other = stats.norm(1, 2), stats.norm(-3, 0.5)
    raw = [0.25 * one.moment(k) + 0.75 * other.moment(k) for k in range(1, 5)]
    mean, variance = raw[0], raw[1] - raw[0] ** 2
    fourth = raw[3] - 4 * mean * raw[2] + 6 * mean**2 * raw[1] - 3 * mean**4
    mixed = mixture([Moments(1.0, 2.0), Moments(-3.0, 0.5)], [1, 3])
    assert mixed is not None
    assert mixed.mean == pytest.approx(mean)
    assert mixed.std == pytest.approx(math.sqrt(variance))
    assert mixed.kurtosis == pytest.approx(fourth / variance**2)
    assert mixed.min is mixed.max is None


def test_what_is_not_known_stays_unknown() -> None:
    assert mixture([point(1.0), None], [1, 1]) is None
    assert mixture([point(1.0), Moments()], [1, 1]) is None
    assert mixture([point(1.0), None], [1, 0]) == point(1.0)
    assert mixture([], []) is None
    assert Moments().shrunk(0.5) == Moments()
