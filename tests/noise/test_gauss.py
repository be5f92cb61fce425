"""Tail masses against SciPy, and their independence of the caller's decimal settings."""

from __future__ import annotations

import decimal
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from torchinit.noise.distributions import upper_tail


@given(st.floats(-38, 38))
def test_tail_is_scipys(z: float) -> None:
    assert float(upper_tail(z)) == pytest.approx(math.exp(special.log_ndtr(-z)), rel=1e-11, abs=1e-307)


@given(st.floats(0, 38))
def test_tails_add_up(z: float) -> None:
    assert abs(upper_tail(z) + upper_tail(-z) - 1) < decimal.Decimal("1e-27")


def test_series_and_fraction_meet() -> None:
    below, above = upper_tail(6.0), upper_tail(math.nextafter(6.0, 7.0))
    density = math.exp(-18) / math.sqrt(2 * math.pi)
    step = float(below - above)
    assert step == pytest.approx(density * (math.nextafter(6.0, 7.0) - 6.0), rel=1e-9)


def test_infinities() -> None:
    assert upper_tail(math.inf) == decimal.Decimal(0)
    assert upper_tail(-math.inf) == decimal.Decimal(1)


def test_callers_decimal_context_does_not_matter() -> None:
    upper_tail.cache_clear()
    with decimal.localcontext(decimal.Context(prec=3, rounding=decimal.ROUND_DOWN)):
        rough = upper_tail(1.25)
    upper_tail.cache_clear()
    assert rough == upper_tail(1.25)
