"""Values measured: their moments, how far these may be from what was planned, the largest of those to load."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from torchinit.initializers.moments import Moments
from torchinit.noise.engines.dispatch import chosen_kernel
from torchinit.noise.engines.tasks import ValueSums, is_simple

# Torch shares nothing smaller than this among threads: waiting for each other costs more than the sums do,
# most of all on a machine that has other work.
_CHUNK = 1 << 15
_SIGMAS = 6.0

_SMALL = 1 << 20
"""Fewer bytes than this are copied by torch: whoever reads them next finds them in the caches."""

_SAME_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integers whose bits the kernel gives back, by their bytes."""


def measure(*tensors: Tensor) -> Moments | None:
    """Mean, population standard deviation, smallest and largest value of all elements of the tensors together.

    None of no elements and of the meta device. Sums are carried in float64 without a copy of a tensor, by the compiled
    kernel where that can, else chunk by chunk in torch; the two differ by at most 2e-12 of the values' mean distance
    from the first of them. Of a complex tensor the real and imaginary parts are taken together.
    """
    return measure_each([tensors])[0]


def measure_each(groups: Iterable[Sequence[Tensor]]) -> list[Moments | None]:
    """The moments of each group of tensors; all those that the kernel takes are added up in one call of it."""
    kernel = chosen_kernel()
    simple: list[Tensor] = []
    readable: list[list[Tensor]] = []
    for group in groups:
        readable.append([])
        for tensor in group:
            if tensor.numel() and not tensor.is_meta:
                is_ready = kernel is not None and is_simple(tensor)
                values = tensor if is_ready else _real(tensor.detach())
                readable[-1].append(values)
                if is_ready or (kernel is not None and is_simple(values)):
                    simple.append(values)
    found = kernel.sums(simple, torch.get_num_threads()) if kernel else []
    sums = {id(values): each for values, each in zip(simple, found, strict=False)}
    return [
        _moments([(values.numel(), sums.get(id(values)) or _sums(values)) for values in group]) for group in readable
    ]


def _moments(parts: Iterable[tuple[int, ValueSums]]) -> Moments | None:
    """The moments of the numbers of several parts together, from how many they are and their sums."""
    numel, mean, around, low, high = 0, 0.0, 0.0, math.inf, -math.inf
    for here, sums in parts:
        apart = sums.shift + sums.total / here - mean
        # The squares of distances from the mean of all: those from either mean, and of the means from each other.
        around += sums.square - sums.total * sums.total / here + apart * apart * numel * here / (numel + here)
        mean += apart * here / (numel + here)
        low, high, numel = _least(low, sums.low), -_least(-high, -sums.high), numel + here
    if not numel:
        return None
    around = around if math.isnan(around) else max(0.0, around)  # rounding may leave a little below zero
    return Moments(mean, math.sqrt(around / numel), low, high)


def _sums(values: Tensor) -> ValueSums:
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
    return ValueSums(shift, total, square, low, high)


def _real(values: Tensor) -> Tensor:
    return torch.view_as_real(values.resolve_conj()) if values.is_complex() else values


def _least(first: float, second: float) -> float:
    """The smaller number; NaN if either is, which ``min`` forgets."""
    return second if second < first or math.isnan(second) else first


def _chunks(values: Tensor) -> Iterator[Tensor]:
    if values.is_contiguous():
        return iter(values.view(-1).split(_CHUNK))
    rows = max(1, _CHUNK * len(values) // values.numel())
    return (part.reshape(-1) for part in values.split(rows))


def deviations(expected: Moments | None, measured: Moments, numel: int, dtype: torch.dtype) -> list[str]:
    """The moments, measured of so many numbers of a dtype, that leave the tolerance around the expected ones."""
    seen = (measured.mean, measured.std, measured.min, measured.max)
    if expected and expected.min == expected.max == measured.min == measured.max is not None:
        return []
    if any(value is None or not math.isfinite(value) for value in seen):
        return ["holds NaN or Inf"]
    if expected is None or expected.mean is None or expected.std is None:
        return []
    mean, std, low, high = (value or 0.0 for value in seen)
    info = torch.finfo(torch.float32 if dtype.itemsize > 2 else dtype)  # wider ones hold numbers drawn in float32
    rounding, floor = 2 * info.eps, info.smallest_normal * info.eps
    reach = rounding * max(abs(expected.mean), expected.std) + floor
    # Six standard errors: that of a mean, and that of a standard deviation, which the kurtosis widens.
    error = _SIGMAS * expected.std / math.sqrt(numel)
    problems = []
    for name, value, planned, sampling in (
        ("mean", mean, expected.mean, error),
        ("std", std, expected.std, error * math.sqrt(max(expected.kurtosis - 1, 0.5)) / 2),
    ):
        if abs(value - planned) > sampling + reach:
            problems.append(f"{name} is {value:.6g}, planned {planned:.6g} ± {sampling + reach:.2g}")
    if expected.min is not None and low < expected.min - rounding * abs(expected.min) - floor:
        problems.append(f"smallest value is {low:.6g}, planned {expected.min:.6g}")
    if expected.max is not None and high > expected.max + rounding * abs(expected.max) + floor:
        problems.append(f"largest value is {high:.6g}, planned {expected.max:.6g}")
    return problems


def magnitude(values: Tensor) -> float:
    """The largest absolute value of floating-point numbers, NaN if one is, 0 of none; of complex ones of all parts."""
    if not values.numel():
        return 0.0
    values = _real(values)
    if kernel := chosen_kernel() if is_simple(values) else None:
        bits = kernel.largest(values, torch.get_num_threads())
        return float(torch.tensor(bits, dtype=_SAME_SIZE[values.dtype.itemsize], device="cpu").view(values.dtype))
    if values.dtype.itemsize == 1:  # torch compares no 8-bit floats
        values = values.float()
    low, high = torch.aminmax(values)
    return float(torch.maximum(-low, high))


def transfer(values: Tensor, out: Tensor) -> None:
    """Copy values into a tensor, as ``out.copy_(values)`` does; large ones without a detour through the caches.

    That pays for the pass in which :func:`magnitude` looks through the values of a checkpoint before any is written.
    """
    kernel = chosen_kernel() if _is_large_twin(values, out) else None
    if kernel:
        kernel.copy(out, values, torch.get_num_threads())
    else:
        out.copy_(values)


def _is_large_twin(values: Tensor, out: Tensor) -> bool:
    """Whether bytes can be copied as they are, between memory of their own."""
    return (
        out.nbytes >= _SMALL
        and is_simple(values)
        and is_simple(out)
        and (values.dtype, values.shape) == (out.dtype, out.shape)
        and out.untyped_storage().resizable()  # what torch allocated can be written, what is mapped perhaps not
        and abs(values.data_ptr() - out.data_ptr()) >= out.nbytes
    )
