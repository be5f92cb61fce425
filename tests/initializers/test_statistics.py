"""Moments against SciPy, measures against NumPy in float64, tolerances without false alarms; magnitudes and copies."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from tests.initializers.test_elementwise import drawn
from tests.strategies import elementwise_fills, matrix_fills, shapes
from torchinit import Constant, Normal, Orthogonal, TruncNormal, Uniform
from torchinit.initializers import Fill, Moments, Sparse, statistics
from torchinit.initializers.statistics import deviations, magnitude, measure, mixture, point, transfer, truncated
from torchinit.model import Shard
from torchinit.noise import Keyed
from torchinit.noise.engines.dispatch import chosen_kernel

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e5m2, torch.complex64]


def oracle(tensor: Tensor) -> tuple[float, ...]:
    values = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().double().numpy()
    return tuple(map(float, (np.mean(values), np.std(values), np.min(values), np.max(values))))


def measured(tensor: Tensor) -> tuple[float | None, ...]:
    moments = measure(tensor)
    assert moments is not None
    return moments.mean, moments.std, moments.min, moments.max


@given(shapes(0, 4), st.sampled_from(DTYPES), st.integers(0, 1000), st.floats(-100, 100))
def test_measure_is_numpys(shape: tuple[int, ...], dtype: torch.dtype, seed: int, shift: float) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + shift
    assert measured(values.to(dtype)) == pytest.approx(oracle(values.to(dtype)), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    "view",
    [
        torch.randn(300, 400).T,
        torch.randn(300, 400)[::3, 1::2],
        torch.randn(8, 16, 9, 9).to(memory_format=torch.channels_last),
        torch.randn(100_000, 2)[:, 0],
        torch.randn(2, 100_000).T,
        torch.randn(5).expand(4, 5),
        torch.randn(3, 200_000),
        torch.tensor(3.0),
        torch.nn.Parameter(torch.randn(4, 4)),
    ],
    ids=lambda view: f"{tuple(view.shape)} {view.stride()}",
)
def test_any_strides_and_more_than_one_chunk(view: Tensor) -> None:
    assert measured(view) == pytest.approx(oracle(view), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_measuring_changes_nothing(dtype: torch.dtype) -> None:
    values = torch.randn(10, 10).to(dtype)
    before = values.clone()
    measure(values)
    measure(values.T)
    assert torch.equal(values, before)


@given(shapes(0, 4), st.sampled_from(DTYPES[:4]), st.integers(0, 1000), st.floats(-100, 100))
def test_measuring_without_a_kernel(shape: tuple[int, ...], dtype: torch.dtype, seed: int, shift: float) -> None:
    values = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + shift).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "chosen_kernel", lambda: None)
        alone = measured(values)
    assert alone == pytest.approx(oracle(values), rel=1e-9, abs=1e-9)
    if chosen_kernel():
        # The mean distance from the first value is below 10 + 100 here.
        assert alone == pytest.approx(measured(values), rel=0, abs=2e-12 * 110)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "chosen_kernel", lambda: None)
    values = torch.randn(7, 11)
    expected = oracle(values)
    for chunk in (1, 2, 10, 76, 77, 1000):
        monkeypatch.setattr(statistics, "_CHUNK", chunk)
        assert measured(values) == pytest.approx(expected, rel=1e-12, abs=1e-12)
        assert measured(values.T) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_a_small_spread_around_a_large_mean() -> None:
    values = 1e8 + torch.randn(10_000, dtype=torch.float64)
    assert measured(values) == pytest.approx(oracle(values), rel=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 5, 99_999])
def test_what_is_not_finite_is_found_anywhere(bad: float, at: int) -> None:
    values = torch.randn(100_000)
    values[at] = bad
    moments = measure(values)
    assert moments is not None
    assert deviations(Moments(0.0, 1.0), moments, 100_000, torch.float32) == ["holds NaN or Inf"]


def test_nothing_to_measure() -> None:
    assert measure(torch.empty(0, 3)) is None
    assert measure(torch.empty(3, device="meta")) is None


def alarms(fill: Fill, values: Tensor) -> list[str]:
    expected, found = fill.moments(tuple(values.shape)), measure(values)
    assert expected is not None
    assert found is not None
    return deviations(expected, found, values.numel(), values.dtype)


FILLS = [
    Normal(0.0, 0.02),
    Normal(5.0, 0.02),
    Uniform(-0.1, 0.1),
    TruncNormal(0.0, 0.02, -0.04, 0.04),
    TruncNormal(0.0, 1.0, 4.0, 9.0),
    TruncNormal(0.0, 1.0, 0.0, 9.0),
]


@pytest.mark.parametrize("fill", FILLS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_false_alarm_over_many_seeds_and_sizes(fill: Fill, dtype: torch.dtype) -> None:
    for seed in range(60):
        for shape in ((1,), (2,), (5, 3), (16, 16), (40, 50)):
            assert alarms(fill, drawn(fill, shape, dtype, seed)) == []


@given(elementwise_fills() | matrix_fills(), st.integers(1, 12), st.integers(1, 12), st.sampled_from(DTYPES[:4]))
def test_no_false_alarm_for_any_fill(fill: Fill, rows: int, columns: int, dtype: torch.dtype) -> None:
    assert alarms(fill, drawn(fill, (rows, columns), dtype)) == []


@pytest.mark.parametrize("fill", [Orthogonal(), Orthogonal(2.0, 1), Sparse(0.9), Constant(0.1), Constant(-math.inf)])
def test_no_false_alarm_for_matrices(fill: Fill) -> None:
    for seed in range(40):
        assert alarms(fill, drawn(fill, (20, 30), seed=seed)) == []


@pytest.mark.parametrize("fill", FILLS, ids=str)
def test_an_error_of_five_percent_is_seen(fill: Fill) -> None:
    """At the size at which 5 % are nine standard errors: six of the tolerance, three of the sample."""
    moments = fill.moments()
    assert moments is not None
    assert moments.mean is not None
    numel = math.ceil((9 / 0.05) ** 2 * (moments.kurtosis - 1) / 4)
    for seed in range(10):
        good = drawn(fill, (numel,), seed=seed)
        assert alarms(fill, good) == []
        bad = moments.mean + 1.05 * (good - moments.mean)
        assert any(text.startswith("std is") for text in alarms(fill, bad)), seed


def test_a_shift_is_seen() -> None:
    values = drawn(Normal(0.0, 0.02), (100, 100))
    (text,) = alarms(Normal(0.0, 0.02), values + 0.002)
    assert text.startswith("mean is 0.00")
    assert text.endswith("planned 0 ± 0.0012")


def test_values_outside_of_the_bounds_are_seen() -> None:
    fill = TruncNormal(0.0, 1.0, -2.0, 2.0)
    values = drawn(fill, (1000,))
    values[3], values[5] = -2.001, 2.001
    assert alarms(fill, values) == ["smallest value is -2.001, planned -2", "largest value is 2.001, planned 2"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_rounding_is_no_error(dtype: torch.dtype) -> None:
    """A constant that the dtype cannot hold exactly."""
    tensor = torch.empty(5, dtype=dtype)
    Constant(0.1).write(Shard.whole("w", tensor), Keyed(0))
    assert alarms(Constant(0.1), tensor) == []
    assert alarms(Constant(0.2), tensor) != []


def test_nothing_expected_nothing_found() -> None:
    assert deviations(None, Moments(0.0, 1.0, -1.0, 1.0), 10, torch.float32) == []
    assert deviations(Moments(), Moments(0.0, 1.0, -1.0, 1.0), 10, torch.float32) == []


# --- expected ---------------------------------------------------------------------------------------------------------

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


LARGE = 600_011  # floats: more than is left to torch, and no round number
HELD = [
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    *(torch.float8_e5m2, torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.complex64),
]


@pytest.fixture(params=["kernel", "torch"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the compiled kernel, if there is one, and without."""
    if request.param == "torch":
        monkeypatch.setattr(statistics, "chosen_kernel", lambda: None)
    return str(request.param)


def normals(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(n)).to(dtype)


def largest(values: Tensor) -> float:
    parts = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    return float(parts.double().abs().max())


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("dtype", HELD, ids=str)
def test_magnitude_is_the_largest_absolute_value(dtype: torch.dtype) -> None:
    values = normals(501, dtype)
    for view in (values, values.T, values[3:4], values[::3, 1]):
        assert magnitude(view) == largest(view) > 0
    assert magnitude(values[:0]) == 0
    values[77, 1] = math.nan
    assert math.isnan(magnitude(values))


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_infinity_is_the_largest_magnitude_but_nan(dtype: torch.dtype) -> None:
    values = normals(9, dtype)
    values[3, 0] = -math.inf
    assert magnitude(values) == math.inf
    values[8, 1] = math.nan
    assert math.isnan(magnitude(values))


@pytest.mark.usefixtures("engine")
def test_views_that_mean_other_bits_than_they_hold() -> None:
    values = normals(5, torch.complex64).view(-1)
    assert magnitude(values.conj()) == largest(values)
    assert magnitude(values.conj().imag) == float(values.imag.abs().max())


@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_any_floats(values: list[float]) -> None:
    expected = math.nan if any(map(math.isnan, values)) else max(map(abs, values))
    found = magnitude(torch.tensor(values))
    assert found == expected or (math.isnan(found) and math.isnan(expected))


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("seen", [torch.float32, torch.bfloat16, torch.int64])
def test_a_transfer_is_a_copy(seen: torch.dtype, held: torch.dtype) -> None:
    values, out = normals(LARGE, seen), torch.zeros(LARGE, 2, dtype=held)
    transfer(values, out)
    assert torch.equal(out, values.to(held))


@pytest.mark.usefixtures("engine")
def test_views_are_copied_as_they_read() -> None:
    values = normals(LARGE)
    for source, target in (
        (values.T, torch.zeros(2, LARGE)),
        (values, torch.zeros(2, LARGE).T),
        (values[:, 1], torch.zeros(LARGE)),
        (values.view(torch.complex64).conj(), torch.zeros(LARGE, 1, dtype=torch.complex64)),
        (torch._neg_view(values), torch.zeros(LARGE, 2)),
        (values[:1], torch.zeros(LARGE, 2)),  # broadcast
    ):
        transfer(source, target)
        assert torch.equal(target, source.expand_as(target).resolve_conj().resolve_neg())


def test_neighbours_are_left_alone_and_autograd_is_told() -> None:
    values, whole = normals(LARGE).view(-1), torch.zeros(2 * LARGE + 10)
    out, before = whole[5:-5], whole._version
    transfer(values, out)
    assert torch.equal(out, values)
    assert not whole[:5].any()
    assert not whole[-5:].any()
    assert whole._version > before


def test_memory_that_is_mapped_is_left_to_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "raw"
    path.write_bytes(bytes(8 * LARGE))
    out = torch.from_file(str(path), shared=False, size=2 * LARGE)
    monkeypatch.setattr(statistics, "chosen_kernel", lambda: pytest.fail("the kernel does not ask whether it may"))
    transfer(normals(LARGE).view(-1), out)
    assert torch.equal(out, normals(LARGE).view(-1))


def test_a_tensor_onto_itself() -> None:
    values = normals(LARGE)
    transfer(values, values)
    assert torch.equal(values, normals(LARGE))


def test_the_default_device_does_not_matter() -> None:
    values = torch.tensor([1.0, -3.0])
    with torch.device("meta"):
        assert magnitude(values) == 3.0
