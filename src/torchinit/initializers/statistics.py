"""Measures: the moments of the values that a tensor holds, and how far they may be from what was planned."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from torchinit.initializers.moments import Moments
from torchinit.noise.engines.dispatch import chosen_kernel
from torchinit.noise.engines.tasks import Sums, is_simple

# Torch shares nothing smaller than this among threads: waiting for each other costs more than the sums do,
# most of all on a machine that has other work.
_CHUNK = 1 << 15
_SIGMAS = 6.0


def measure(*tensors: Tensor) -> Moments | None:
    """Mean, population standard deviation, smallest and largest value of all elements of the tensors together.

    None of no elements and of the meta device. Sums are carried in float64 without a copy of a tensor, by the compiled
    kernel where that can, else chunk by chunk in torch; the two differ by at most 2e-12 of the values' mean distance
    from the first of them. Of a complex tensor the real and imaginary parts are taken together.

    >>> measure(torch.tensor([1.0, 3.0]))
    Moments(mean=2.0, std=1.0, min=1.0, max=3.0, kurtosis=3.0)
    """
    numel, mean, around, low, high = 0, 0.0, 0.0, math.inf, -math.inf
    for values in (_real(tensor) for tensor in tensors if tensor.numel() and not tensor.is_meta):
        here, sums = values.numel(), _compiled_sums(values) or _sums(values)
        apart = sums.shift + sums.total / here - mean
        # The squares of distances from the mean of all: those from either mean, and of the means from each other.
        around += sums.square - sums.total * sums.total / here + apart * apart * numel * here / (numel + here)
        mean += apart * here / (numel + here)
        low, high, numel = _least(low, sums.low), -_least(-high, -sums.high), numel + here
    if not numel:
        return None
    around = around if math.isnan(around) else max(0.0, around)  # rounding may leave a little below zero
    return Moments(mean, math.sqrt(around / numel), low, high)


def _compiled_sums(values: Tensor) -> Sums | None:
    kernel = chosen_kernel() if is_simple(values) else None
    return kernel.sums(values, torch.get_num_threads()) if kernel else None


def _sums(values: Tensor) -> Sums:
    total = square = 0.0
    low, high = math.inf, -math.inf
    shift = float(values[(0,) * values.dim()])  # sums of squares around a value of the data cancel less
    for chunk in _chunks(values):
        wide = chunk.to(torch.float64, copy=True)  # it is shifted in place, and must not be the tensor itself
        small, large = torch.aminmax(wide)
        low, high = _least(low, float(small)), -_least(-high, -float(large))
        wide -= shift
        total += float(wide.sum())
        square += float(wide.square_().sum())
    return Sums(shift, total, square, low, high)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()


def _least(one: float, other: float) -> float:
    """The smaller number; NaN if either is, which ``min`` forgets."""
    return other if other < one or math.isnan(other) else one


def _chunks(values: Tensor) -> Iterator[Tensor]:
    if values.is_contiguous():
        flat = values.view(-1)
        yield from (flat[at : at + _CHUNK] for at in range(0, len(flat), _CHUNK))
    else:
        rows = max(1, _CHUNK * len(values) // values.numel())
        yield from (part.reshape(-1) for part in values.split(rows))


def deviations(expected: Moments | None, measured: Moments, numel: int, dtype: torch.dtype) -> list[str]:
    """Where the measured moments of so many numbers of a dtype leave the tolerance around the expected ones.

    >>> deviations(Moments(0.0, 1.0), Moments(0.0, 1.1, -4.0, 4.0), 100, torch.float32)
    []
    >>> deviations(Moments(0.0, 1.0), Moments(0.0, 1.1, -4.0, 4.0), 10_000, torch.float32)
    ['std is 1.1, planned 1 ± 0.042']
    """
    seen = (measured.mean, measured.std, measured.min, measured.max)
    if expected and expected.min == expected.max == measured.min == measured.max is not None:
        return []
    if any(value is None or not math.isfinite(value) for value in seen):
        return ["holds NaN or Inf"]
    if expected is None or expected.mean is None or expected.std is None:
        return []
    mean, std, low, high = (value or 0.0 for value in seen)
    held = torch.finfo(torch.float32 if dtype.itemsize > 2 else dtype)  # wider ones hold numbers drawn in float32
    rounding, floor = 2 * held.eps, held.smallest_normal * held.eps
    root = math.sqrt(numel)
    reach = max(abs(expected.mean), expected.std)
    error = _SIGMAS * expected.std / root
    slack_mean = error + rounding * reach + floor
    slack_std = error * math.sqrt(max(expected.kurtosis - 1, 0.5)) / 2 + rounding * reach + floor
    found = []
    if abs(mean - expected.mean) > slack_mean:
        found.append(f"mean is {mean:.6g}, planned {expected.mean:.6g} ± {slack_mean:.2g}")
    if abs(std - expected.std) > slack_std:
        found.append(f"std is {std:.6g}, planned {expected.std:.6g} ± {slack_std:.2g}")
    if expected.min is not None and low < expected.min - rounding * abs(expected.min) - floor:
        found.append(f"smallest value is {low:.6g}, planned {expected.min:.6g}")
    if expected.max is not None and high > expected.max + rounding * abs(expected.max) + floor:
        found.append(f"largest value is {high:.6g}, planned {expected.max:.6g}")
    return found
