"""Moments: against float64 on all elements, and against what distributions promise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.probing.nets import Answer
from torchinit.probing.moments import BatchMoments, by_sample, first_floating, moments


def measured(tensor: Tensor, size: int | None = None) -> BatchMoments:
    return BatchMoments(*moments(tensor, size or len(tensor)).tolist())


def oracle(tensor: Tensor) -> tuple[float, float, float]:
    """RMS, signal and spread by their definitions, pair by pair."""
    rows = tensor.double().reshape(len(tensor), -1)
    pairs = [1 - float(one @ two / one.norm() / two.norm()) for i, one in enumerate(rows) for two in rows[i + 1 :]]
    return float(rows.square().mean().sqrt()), float(rows.var(0).mean().sqrt()), sum(pairs) / len(pairs)


@pytest.mark.parametrize("shape", [(6, 10), (5, 3, 4), (4, 3, 5, 5)])
def test_small_tensors_are_measured_whole(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    tensor = torch.randn(*shape, generator=generator) + 0.5
    found = measured(tensor)
    assert (found.rms, found.signal, found.spread) == pytest.approx(oracle(tensor), rel=1e-5)
    assert found.top == float(tensor.abs().max())


@given(st.floats(-37, 37), st.integers(0, 100))
def test_size_is_a_factor_and_spread_is_none(power: float, seed: int) -> None:
    tensor = torch.randn(4, 32, generator=torch.Generator().manual_seed(seed))
    scale = 10.0**power
    one, other = measured(tensor), measured(tensor * scale)
    assert other.rms / scale == pytest.approx(one.rms, rel=1e-3)
    assert other.signal / scale == pytest.approx(one.signal, rel=1e-3)
    assert other.spread == pytest.approx(one.spread, rel=1e-3)


def test_a_spread_far_below_the_resolution_of_a_cosine_is_seen() -> None:
    apart = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).double()
    rows = torch.ones(8, 64).double() + 1e-6 * apart
    assert measured(rows).spread == pytest.approx(1e-12, rel=0.2)


def test_a_sample_of_an_image_sees_all_of_its_columns() -> None:
    # Half of the columns are zero: a stride that goes along with the width would see one half alone.
    tensor = torch.randn(16, 8, 128, 128, generator=torch.Generator().manual_seed(0))
    tensor[..., ::2] = 0
    assert measured(tensor).rms == pytest.approx(math.sqrt(0.5), rel=0.05)


def test_tokens_are_compared_within_a_sample() -> None:
    alike = torch.randn(4, 1, 32, generator=torch.Generator().manual_seed(0)).expand(4, 7, 32)
    assert measured(alike).token_spread == pytest.approx(0, abs=1e-9)
    assert measured(alike).spread > 0.5
    assert math.isnan(measured(alike[:, 0]).token_spread)


def test_samples_are_found_in_other_places() -> None:
    steps = torch.zeros(7, 4, 3)
    assert by_sample(steps, 4).shape == (4, 7, 3)
    assert by_sample(torch.zeros(12, 5), 4).shape == (4, 15)
    assert by_sample(torch.zeros(5), 5).shape == (5, 1)
    assert math.isnan(measured(torch.ones(3, 5), 2).signal)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_element_that_is_not_finite_is_seen(bad: float) -> None:
    tensor = torch.zeros(16, 100_000)
    tensor[3, 77_777] = bad
    assert not measured(tensor).finite
    assert measured(torch.zeros(2, 3)) == pytest.approx((0, 0, 0, math.nan, 0), nan_ok=True)


def test_the_first_tensor_of_numbers_is_found() -> None:
    hidden = torch.zeros(2)
    for output in (hidden, (None, [hidden]), {"a": torch.tensor([1]), "b": hidden}, Answer(1, hidden)):
        assert first_floating(output) is hidden
    assert first_floating((torch.tensor([1]), "text", None)) is None
