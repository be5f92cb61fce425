"""Distributions reduced to numbers: bounds that the dtype holds, the choice of map, tail masses, what is refused."""

from __future__ import annotations

import decimal
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from torchinit.noise.distributions import Draw, DrawKind, binary32, floor_to, resolve, upper_tail

INF = math.inf
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]


@given(value=st.floats(-400, 400) | st.floats(-1e-6, 1e-6), dtype=st.sampled_from(FLOATS))
def test_floor_is_the_greatest_number_below(value: float, dtype: torch.dtype) -> None:
    low = floor_to(value, dtype)
    held = torch.tensor(low, dtype=torch.float64).to(dtype)
    assert held.double().item() == low <= value
    # One bit pattern further away from or nearer to zero is the next number above.
    bits = held.view(torch.int16 if dtype.itemsize == 2 else torch.int8 if dtype.itemsize == 1 else torch.int32)
    step = torch.ones_like(bits)
    above = (bits + step if low >= 0 else bits - step).view(dtype).double().item()
    assert above > value or above == low == 0


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (1e9, torch.float16, 65504.0),
        (-1e9, torch.float16, -65504.0),
        (INF, torch.float16, INF),
        (-INF, torch.float32, -INF),
        (0.0, torch.bfloat16, 0.0),
        (-1e-45, torch.float16, -(2.0**-24)),
    ],
)
def test_floor_at_the_ends(value: float, dtype: torch.dtype, expected: float) -> None:
    assert floor_to(value, dtype) == expected


@given(st.floats(-1e30, 1e30))
def test_binary32_is_torchs(value: float) -> None:
    assert binary32(value) == torch.tensor(value, dtype=torch.float32).item()
    assert math.copysign(1, binary32(-0.0)) == 1


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        ((0, 0.02, -2, 2), DrawKind.NORMAL),
        ((0, 1, -INF, INF), DrawKind.NORMAL),
        ((0, 1, -2, 2), DrawKind.SCALED),
        ((0, 1, 0, INF), DrawKind.SCALED),
        ((0, 1, 2.5, INF), DrawKind.SCALED),
        ((0, 1, 0, 0.001), DrawKind.NARROW),
        ((0, 1, -0.001, 0.001), DrawKind.NARROW),
        ((0, 1, 2.1, 2.11), DrawKind.NARROW),
        ((0, 1, 2.2, 2.21), DrawKind.TAIL),
        ((0, 1, 5, INF), DrawKind.TAIL),
        ((0, 1, -INF, -5), DrawKind.TAIL),
        ((0, 1, 38, INF), DrawKind.TAIL),
        ((1, 0, 0, 2), DrawKind.UNIFORM),
    ],
)
def test_map_of_a_truncation(params: tuple[float, ...], kind: DrawKind) -> None:
    assert resolve("truncated", params, torch.float32).kind is kind


def test_cells_of_a_truncation_are_counted_exactly() -> None:
    draw = resolve("truncated", (0.0, 1.0, -2.0, 1.0), torch.float32)
    assert draw.width == round((special.ndtr(1) - special.ndtr(-2)) * 2**32)
    assert draw.start == (round(special.ndtr(-2) * 2**32) + 2**31) % 2**32
    assert (draw.low, draw.high) == (-2.0, 1.0)


def test_bounds_out_of_reach_cost_nothing() -> None:
    assert resolve("truncated", (0.5, 0.02, -2.0, 2.0), torch.float32) == resolve("normal", (0.5, 0.02), torch.float32)


def test_bounds_are_those_that_the_dtype_holds() -> None:
    draw = resolve("uniform", (-0.1, 0.1), torch.bfloat16)
    assert (draw.low, draw.high) == (-0.099609375, 0.099609375)
    wide = resolve("uniform", (-0.1, 0.1), torch.float64)
    assert wide == resolve("uniform", (-0.1, 0.1), torch.float32)
    assert wide.high < 0.1
    assert wide.low > -0.1


@pytest.mark.parametrize(
    "what", [("uniform", (0.0, 1.0)), ("truncated", (50.0, 1000.0, -0.0, 1.0)), ("integer", (0, 3))]
)
def test_a_bound_of_zero_is_not_negative(what: tuple[str, tuple[float, ...]]) -> None:
    assert math.copysign(1, resolve(*what, torch.float32).low) == 1


def test_bounds_without_a_number_between_them() -> None:
    draw = resolve("uniform", (0.1, 0.10005), torch.bfloat16)
    assert draw.low == draw.high == 0.099609375


def test_equal_bounds_are_that_number() -> None:
    draw = resolve("uniform", (0.5, 0.5), torch.float32)
    assert (draw.low, draw.high, draw.scale) == (0.5, 0.5, 0.0)


def test_impossible_probability_is_never() -> None:
    assert resolve("bernoulli", (0.0,), torch.float32) == Draw(DrawKind.INTEGER)
    assert resolve("bernoulli", (1.0,), torch.float32).width == 2**32 - 1


@pytest.mark.parametrize(
    ("distribution", "params", "text"),
    [
        ("cauchy", (0.0, 1.0), r"unknown distribution 'cauchy'; known are bernoulli, integer, normal"),
        ("normal", (0.0,), r"normal takes 2 numbers, got \(0\.0,\)"),
        ("normal", (math.nan, 1.0), "has a parameter that is not a number"),
        ("normal", (0.0, -1.0), "normal needs a finite std >= 0, got -1.0"),
        ("normal", (0.0, INF), "normal needs a finite std >= 0, got inf"),
        ("normal", (INF, 1.0), "normal needs a finite mean, got inf"),
        ("normal", (0.0, 1e300), r"1e\+300 is too large for float32"),
        (
            "uniform",
            (1.0, 0.0),
            r"uniform needs finite low <= high at most 3.403e\+38 apart, got \(1.0, 0.0\)",
        ),
        ("uniform", (0.0, INF), "uniform needs finite low <= high"),
        ("uniform", (-3e38, 3e38), "uniform needs finite low <= high"),
        ("truncated", (0.0, -1.0, -2.0, 2.0), "truncated normal needs a finite std >= 0"),
        ("truncated", (0.0, 1.0, 2.0, -2.0), "needs low <= high, got low=2.0, high=-2.0"),
        ("truncated", (0.0, 1.0, 2.0, 2.0), "low=2.0, high=2.0 has no mass between its bounds"),
        ("truncated", (0.0, 1.0, 39.0, INF), "has no mass between its bounds"),
        ("truncated", (0.0, 1.0, -INF, -39.0), "has no mass between its bounds"),
        ("truncated", (0.0, 1.0, INF, INF), "has no mass between its bounds"),
        ("truncated", (0.0, 0.0, 1.0, 2.0), "has no mass between its bounds"),
        ("bernoulli", (1.5,), "bernoulli needs a probability between 0 and 1, got 1.5"),
        ("integer", (0.5, 2.0), r"integer needs whole numbers -2\*\*24 <= low < high <= 2\*\*24"),
        ("integer", (0.0, 0.0), "integer needs whole numbers"),
        ("integer", (0.0, INF), "integer needs whole numbers"),
        ("integer", (0.0, 2.0**25), "integer needs whole numbers"),
    ],
)
def test_what_is_no_distribution(distribution: Any, params: tuple[float, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        resolve(distribution, params, torch.float32)


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
