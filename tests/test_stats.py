"""The assertions about samples let good samples pass and stop those that are off by a few percent."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from tests.stats import assert_distribution, assert_mean, assert_std

# A standard error of 1 / sqrt(2 n): 20,000 values see an error of 5 % in a std as 10 of them.
NORMAL = torch.randn(20_000, generator=torch.Generator().manual_seed(0))


def test_good_samples_pass() -> None:
    assert_mean(NORMAL, 0.0, 1.0)
    assert_std(NORMAL, 1.0)
    assert_distribution(NORMAL, stats.norm.cdf)


def test_an_error_of_five_percent_is_seen() -> None:
    with pytest.raises(AssertionError, match=r"std of .* is 1\.05"):
        assert_std(NORMAL * 1.05, 1.0)
    with pytest.raises(AssertionError, match=r"mean of .* is 0\.088"):
        assert_mean(NORMAL + 0.1, 0.0, 1.0)
    with pytest.raises(AssertionError, match="20000 values stray"):
        assert_distribution(NORMAL + 0.1, stats.norm.cdf)


def test_another_distribution_of_the_same_moments_is_seen() -> None:
    uniform = (torch.rand(20_000, generator=torch.Generator().manual_seed(0)) - 0.5) * 12**0.5
    assert_std(uniform, 1.0, kurtosis=1.8)
    with pytest.raises(AssertionError, match="values stray"):
        assert_distribution(uniform, stats.norm.cdf)


def test_parts_of_complex_values_are_taken_together() -> None:
    values = torch.complex(NORMAL, torch.zeros_like(NORMAL))
    assert_std(values, 0.5**0.5, kurtosis=6.0)
