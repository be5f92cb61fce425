"""Statistics: assertions about samples, with tolerances derived from the number of values."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SIGMAS = 6.0
"""How many standard errors an estimate may be off: a sound test fails once in 500 million runs."""

Cdf = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def mean_tolerance(numel: int, std: float, sigmas: float = SIGMAS) -> float:
    """The mean of n values has the standard error std / sqrt(n)."""
    return sigmas * std / math.sqrt(numel)


def std_tolerance(numel: int, std: float, kurtosis: float = 3.0, sigmas: float = SIGMAS) -> float:
    """The standard deviation of n values has the standard error std * sqrt((kurtosis - 1) / (4 n))."""
    return sigmas * std * math.sqrt((kurtosis - 1) / (4 * numel))


def values_of(tensor: Tensor) -> NDArray[np.float64]:
    """All values in float64; of a complex tensor the real and the imaginary parts."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return np.asarray(real.detach().double().cpu().numpy(), dtype=np.float64).ravel()


def assert_mean(tensor: Tensor, target: float, std: float, sigmas: float = SIGMAS) -> None:
    """The mean is ``target``, as well as the mean of so many values of deviation ``std`` can tell."""
    seen = float(values_of(tensor).mean())
    tolerance = mean_tolerance(tensor.numel(), std, sigmas)
    assert abs(seen - target) <= tolerance, f"mean of {tuple(tensor.shape)} is {seen}, not {target} ± {tolerance}"


def assert_std(tensor: Tensor, target: float, kurtosis: float = 3.0, sigmas: float = SIGMAS) -> None:
    """The standard deviation is ``target``, as well as so many values of this kurtosis can tell."""
    seen = float(values_of(tensor).std())
    tolerance = std_tolerance(tensor.numel(), target, kurtosis, sigmas)
    assert abs(seen - target) <= tolerance, f"std of {tuple(tensor.shape)} is {seen}, not {target} ± {tolerance}"


def assert_distribution(tensor: Tensor, cdf: Cdf, chance: float = 1e-9) -> None:
    """The values follow the distribution function.

    The inequality of Dvoretzky, Kiefer, Wolfowitz and Massart bounds, for every n, the chance that the
    empirical distribution function strays by more than d: 2 exp(-2 n d**2).
    """
    ordered = np.sort(values_of(tensor))
    expected = cdf(ordered)
    ranks = np.arange(len(ordered) + 1) / len(ordered)
    distance = float(max(np.max(ranks[1:] - expected), np.max(expected - ranks[:-1])))
    tolerance = math.sqrt(math.log(2 / chance) / (2 * len(ordered)))
    assert distance <= tolerance, f"{len(ordered)} values stray by {distance} from it, allowed are {tolerance}"
