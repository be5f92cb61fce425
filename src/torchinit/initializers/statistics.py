"""Moments: those to expect of many values, those measured, and how far they may be apart; the largest values."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchinit._frozen import quickly_made
from torchinit._text import dtype_name
from torchinit.noise.engines.dispatch import chosen_kernel
from torchinit.noise.engines.tasks import ValueSums, is_simple

# Torch shares nothing smaller than this among threads: waiting for each other costs more than the sums do,
# most of all on a machine that has other work.
_CHUNK = 1 << 15
_SIGMAS = 6.0

_SAMPLE = 4096
FEWEST = 20
"""The order of fewer values than this says nothing."""

_SMALL = 1 << 20
"""Fewer bytes than this are copied by torch: whoever reads them next finds them in the caches."""

_FLOATS = {2: "<e", 4: "<f", 8: "<d"}
"""The floats whose bits the kernel gives back, by their bytes."""


@quickly_made
@dataclass(frozen=True, slots=True)
class Moments:
    """Mean, standard deviation, smallest and largest value; None where unknown or unbounded.

    ``kurtosis`` (3 for a normal) tells how far the standard deviation of a sample may stray.

    >>> Moments(0.0, 1.0).max is None
    True
    """

    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    kurtosis: float = 3.0

    def shrunk(self, factor: float) -> Moments:
        """The same distribution around the same mean with its standard deviation times ``factor``."""
        return replace(self, std=None if self.std is None else self.std * factor)

    def scaled(self, factor: float) -> Moments:
        """The same distribution with all its values times ``factor``.

        >>> Moments(1.0, 2.0, max=3.0).scaled(-2.0)
        Moments(mean=-2.0, std=4.0, min=-6.0, max=None, kurtosis=3.0)
        """
        mean, low, high = (None if end is None else end * factor for end in (self.mean, self.min, self.max))
        ends = (low, high) if factor >= 0 else (high, low)
        return replace(self.shrunk(abs(factor)), mean=mean, min=ends[0], max=ends[1])


def point(value: float) -> Moments:
    """The moments of one value."""
    return Moments(value, 0.0, value, value)


def mixture(parts: Sequence[Moments | None], weights: Sequence[float]) -> Moments | None:
    """The moments of a tensor made of parts, each with its share of the elements; None if one is not known."""
    total = sum(weights)
    present = [(part, weight / total) for part, weight in zip(parts, weights, strict=True) if weight]
    known = [
        (part, part.mean, part.std**2, share)
        for part, share in present
        if part and part.mean is not None and part.std is not None
    ]
    if not known or len(known) < len(present):
        return None
    centre = sum(mean * share for _, mean, _, share in known)
    variance = sum((square + (mean - centre) ** 2) * share for _, mean, square, share in known)
    fourth = sum(  # of parts that are symmetric, as all distributions here are but for cut-off tails
        (part.kurtosis * square**2 + 6 * square * (mean - centre) ** 2 + (mean - centre) ** 4) * share
        for part, mean, square, share in known
    )
    lows, highs = [part.min for part, *_ in known], [part.max for part, *_ in known]
    low = None if None in lows else min(low for low in lows if low is not None)
    high = None if None in highs else max(high for high in highs if high is not None)
    return Moments(centre, math.sqrt(variance), low, high, fourth / variance**2 if variance**2 else 3.0)


def truncated(low: float, high: float) -> tuple[float, float]:
    """Mean and standard deviation of the standard normal cut to [low, high].

    By the closed form, where that can be. In a narrow interval it subtracts what is nearly equal: that is integrated;
    in the upper tail 1 - Phi loses its digits: that is turned over; and where doubles hold no mass any more, all of
    it sits at the end nearer to the middle.
    """
    if (high - low) * max(1.0, -low, high) < 4:
        return _narrow(low, high)
    if low > 0:
        mean, std = truncated(-high, -low)
        return -mean, std
    mass = math.erfc(-high / math.sqrt(2)) / 2 - math.erfc(-low / math.sqrt(2)) / 2
    if mass <= 0:
        return high, 0.0
    densities = [math.exp(-end * end / 2) / math.sqrt(2 * math.pi) for end in (low, high)]
    edges = [end * density if density else 0.0 for end, density in zip((low, high), densities, strict=True)]
    mean, spread = (densities[0] - densities[1]) / mass, (edges[0] - edges[1]) / mass
    return mean, math.sqrt(max(0.0, 1 + spread - mean * mean))


def _narrow(low: float, high: float) -> tuple[float, float]:
    """The same by Simpson's rule."""
    middle, half = (low + high) / 2, (high - low) / 2
    points = [half * step / 64 for step in range(-64, 65)]
    simpson = [1, *(4, 2) * 63, 4, 1]
    mass = [weight * math.exp(-t * (middle + t / 2)) for weight, t in zip(simpson, points, strict=True)]
    total = math.fsum(mass)
    mean = math.fsum(p * t for p, t in zip(mass, points, strict=True)) / total
    square = math.fsum(p * (t - mean) ** 2 for p, t in zip(mass, points, strict=True)) / total
    return middle + mean, math.sqrt(square)


# --- measured -------------------------------------------------------------------------------------------------------


def measure(*tensors: Tensor) -> Moments | None:
    """Mean, population standard deviation, smallest and largest value of all elements of the tensors together.

    None of no elements and of the meta device. Sums are carried in float64 without a copy of a tensor, by the compiled
    kernel where that can, else chunk by chunk in torch; the two differ by at most 2e-12 of the values' mean distance
    from the first of them. Of a complex tensor the real and imaginary parts are taken together.
    """
    return measure_each([tensors])[0]


def measure_each(groups: Iterable[Sequence[Tensor]]) -> list[Moments | None]:
    """The moments of each group of tensors; those that the kernel takes are added up in one call of it."""
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


def measure_simple(tensors: Sequence[Tensor]) -> Callable[[], list[Moments | None]]:
    """The function that gives the moments that tensors have now, which the kernel takes and which are not empty."""
    kernel = chosen_kernel()
    found = kernel.sums(tensors, torch.get_num_threads()) if kernel else []
    found += [_sums(values) for values in tensors[len(found) :]]
    sizes = [values.numel() for values in tensors]
    return lambda: [_moments([row]) for row in zip(sizes, found, strict=True)]


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
    total, square, low, high = 0.0, 0.0, math.inf, -math.inf
    shift = float(values[(0,) * values.dim()])  # sums of squares around a value of the data cancel less
    if values.is_contiguous():
        chunks = iter(values.view(-1).split(_CHUNK))
    else:
        rows = max(1, _CHUNK * len(values) // values.numel())
        chunks = (part.reshape(-1) for part in values.split(rows))
    for chunk in chunks:
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
    dtype = dtype.to_real()
    info = torch.finfo(torch.float32 if dtype.itemsize > 2 else dtype)  # wider ones hold numbers drawn in float32
    rounding, floor = 2 * info.eps, info.smallest_normal * info.eps
    reach = rounding * max(abs(expected.mean), expected.std) + floor
    # Rounding may move a value by a half of its last place; two whole ones are allowed, and the smallest subnormal
    # number.
    # Six standard errors: that of a mean, and that of a standard deviation, which the kurtosis widens.
    error = _SIGMAS * expected.std / math.sqrt(numel)
    rows = (
        ("mean", mean, expected.mean, error + reach),
        ("std", std, expected.std, error * math.sqrt(max(expected.kurtosis - 1, 0.5)) / 2 + reach),
    )
    problems = [
        f"{name} is {value:.6g}, planned {planned:.6g} ± {allowed:.2g}"
        for name, value, planned, allowed in rows
        if abs(value - planned) > allowed
    ]
    # Where a mean is large beside the deviation, rounding excuses anything: of N(10, 0.001) in bfloat16 all values are
    # 10, a deviation of 0 is within what is allowed above, and yet nothing is as planned. So that is asked apart.
    if not problems and _is_too_narrow(expected, std, mean, numel):
        narrow = f"all {numel:,} values are {low:.6g}" if low == high else f"std is {std:.6g}"
        why = too_fine(expected, dtype)
        problems.append(f"{narrow}, planned with std {expected.std:.6g}" + (why and f", {why}"))
    if expected.min is not None and low < expected.min - rounding * abs(expected.min) - floor:
        problems.append(f"smallest value is {low:.6g}, planned {expected.min:.6g}")
    if expected.max is not None and high > expected.max + rounding * abs(expected.max) + floor:
        problems.append(f"largest value is {high:.6g}, planned {expected.max:.6g}")
    return problems


def _is_too_narrow(expected: Moments, std: float, mean: float, numel: int) -> bool:
    """Whether values lie so close together that no rounding excuses it, nor chance: less than half of the deviation.

    For n independent X >= 0 the chance that their mean is below E[X] - t is at most exp(-n t² / 2 E[X²]) (Maurer 2003,
    "A bound on the deviation probability for sums of non-negative random variables"). X is the squared distance from
    the planned mean: E[X] is the variance, E[X²] the kurtosis times its square. The bound is 1e-9; too few values for
    it, some 125 of a normal, are never too narrow.
    """
    if not expected.std:
        return False
    # The mean of X is the measured variance and the square of how far the mean is off, which rounding may have added
    # to: more than six standard errors do not count.
    off = min(((mean - (expected.mean or 0.0)) / expected.std) ** 2, _SIGMAS**2 / numel)
    least = 1 - math.sqrt(2 * expected.kurtosis * math.log(1e9) / numel) - off
    return (std / expected.std) ** 2 < min(least, 0.25)


def too_fine(expected: Moments, dtype: torch.dtype) -> str:
    """The fact that a deviation is below what a dtype can tell apart around the mean; empty if it is not.

    >>> too_fine(Moments(10.0, 0.001), torch.bfloat16)
    'below the resolution of bfloat16 at 10'
    >>> too_fine(Moments(0.0, 0.001), torch.bfloat16)
    ''
    """
    mean, std, real = expected.mean, expected.std, dtype.to_real()
    if mean is None or not std or not math.isfinite(mean):
        return ""
    drawn = real if real.itemsize <= 2 else torch.float32  # in which a seed draws wider ones, too
    info = torch.finfo(drawn)
    spacing = info.eps * max(math.ldexp(1.0, math.frexp(mean)[1] - 1) if mean else 0.0, info.smallest_normal)
    if not std < spacing / 4:
        return ""
    which = dtype_name(drawn) if drawn == real else f"{dtype_name(drawn)}, in which a seed draws,"
    return f"below the resolution of {which} at {mean:.6g}"


def is_shuffled(values: Tensor) -> bool:
    """Whether the values come in no order, as far as one can tell from their turning points.

    Among n values that are drawn alike and without ties, a value lies above or below both of its neighbours 2(n-2)/3
    times, with a variance of (16n-29)/90, whatever the distribution (Bienaymé, 1874). Six standard errors and a
    twentieth for ties of rounded values are allowed, and an eighth of the values, or of the numbers that the dtype has
    between 1 and 2, must differ. Ramps, steps, waves and repeated values do not pass, and fewer than 20 values never.

    >>> is_shuffled(torch.randn(100)), is_shuffled(torch.arange(100.0).log())
    (True, False)
    """
    # Equal values in two layers mean nothing where a formula made them: position tables, decay rates, identity matrices
    # and constants are equal on purpose. A test of the distribution would need to know it, and a scaled normal is as
    # good a draw as any; the order is free of it. How it can fail: noise with a pattern laid over it passes, and drawn
    # values that were sorted, or rounded to a handful of numbers, do not, so that copies of those are not found.
    numbers_of_dtype = 1 / torch.finfo(values.dtype).eps if values.is_floating_point() else math.inf
    if values.numel() < FEWEST:
        return False
    if values.dim() > 1 and values.numel() > _SAMPLE:  # neighbours from the middle
        rows = -(-_SAMPLE * len(values) // values.numel())
        values = values[max(0, (len(values) - rows) // 2) :][:rows]
    flat = values.reshape(-1)
    if flat.numel() > _SAMPLE:
        flat = flat[(len(flat) - _SAMPLE) // 2 :][:_SAMPLE]
    sample, number = flat.to(torch.float64), flat.numel()
    steps = sample.diff()
    turns = int((steps[1:] * steps[:-1] < 0).sum())
    expected, spread = 2 * (number - 2) / 3, math.sqrt((16 * number - 29) / 90)
    differ = len(set(sample.tolist())) >= min(number, numbers_of_dtype) / 8
    return differ and abs(turns - expected) <= 6 * spread + number / 20


def magnitude(values: Tensor) -> float:
    """The largest absolute value of floating-point numbers, NaN if one is, 0 of none; of complex ones of all parts."""
    if not values.numel():
        return 0.0
    values = _real(values)
    if kernel := chosen_kernel() if is_simple(values) else None:
        bits, size = kernel.largest(values, torch.get_num_threads()), values.dtype.itemsize
        if values.dtype == torch.bfloat16:  # the upper half of a float32
            bits, size = bits << 16, 4
        return float(struct.unpack(_FLOATS[size], bits.to_bytes(size, "little"))[0])  # a tensor of it takes 30 times it
    if values.dtype.itemsize == 1:  # torch compares no 8-bit floats
        values = values.float()
    low, high = torch.aminmax(values)
    return float(torch.maximum(-low, high))


def magnitudes(tensors: Sequence[Tensor]) -> list[float]:
    """The :func:`magnitude` of each of many small tensors, of those that the kernel takes in one call of it."""
    # Its sums find the extremes, too: for few values they take less time than a call for each.
    kernel = chosen_kernel()
    simple = [values for values in tensors if is_simple(values) and values.numel()] if kernel else []
    found = kernel.sums(simple, torch.get_num_threads()) if kernel else []
    known = {id(values): sums for values, sums in zip(simple, found, strict=False)}
    return [abs(max(-sums.low, sums.high)) if (sums := known.get(id(x))) else magnitude(x) for x in tensors]


def transfer(values: Tensor, out: Tensor) -> None:
    """Copy values into a tensor, as ``out.copy_(values)`` does; large ones without a detour through the caches.

    That pays for the pass in which :func:`magnitude` looks through the values of a checkpoint before any is written.
    """
    is_large_twin = (
        out.nbytes >= _SMALL
        and is_simple(values)
        and is_simple(out)
        and (values.dtype, values.shape) == (out.dtype, out.shape)
        and out.untyped_storage().resizable()  # what torch allocated can be written, what is mapped perhaps not
        and abs(values.data_ptr() - out.data_ptr()) >= out.nbytes
    )
    if kernel := chosen_kernel() if is_large_twin else None:
        kernel.copy(out, values, torch.get_num_threads())
    else:
        out.copy_(values)
