"""Statistics of a tensor's values, in one pass and in memory that does not grow with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

_CHUNK = 1 << 16
_SAMPLE = 4096
_FEWEST = 20
"""The order of fewer values than this says nothing."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts, moments and digests of a tensor's values.

    ``tiny`` counts values that are not zero and below the smallest normal number of the dtype. ``rows`` and
    ``columns`` hold a digest of each index of the first two dimensions, ``zero_rows`` and ``zero_columns`` which
    of them are zero throughout; all four are empty below two dimensions. ``shuffled`` says whether the
    values come in no order, as drawn ones do.

    >>> stats = compute_statistics(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    >>> stats.zeros, stats.zero_columns.tolist(), bool(stats.rows[0] == stats.rows[1])
    (2, [False, True], True)
    """

    numel: int = 0
    nan: int = 0
    infinite: int = 0
    zeros: int = 0
    tiny: int = 0
    min: float = math.nan
    max: float = math.nan
    mean: float = math.nan
    std: float = math.nan
    digest: int = 0
    shuffled: bool = False
    rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    columns: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    zero_rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    zero_columns: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))

    @property
    def finite(self) -> bool:
        return not self.nan and not self.infinite

    @property
    def constant(self) -> bool:
        """Whether there are several values, and all are equal."""
        return self.numel > 1 and self.finite and self.min == self.max

    @property
    def varied(self) -> bool:
        """Whether there are several values, all finite, and not all are equal."""
        return self.numel > 1 and self.finite and self.min != self.max

    @property
    def reach(self) -> float:
        """The largest absolute value."""
        return max(abs(self.min), abs(self.max))


def compute_statistics(tensor: Tensor) -> Statistics:
    """The statistics of a tensor; of a complex one those of its real and imaginary parts, with one more dimension.

    It is read chunk by chunk. The columns of more than two dimensions run along the second.
    """
    values = tensor.detach()
    values = torch.view_as_real(values) if values.is_complex() else values
    if not values.numel():
        return Statistics()
    sums = _Accumulator(values)
    for start, rows in _chunks(values if values.dim() else values.view(1)):
        sums.add(start, rows)
    return sums.statistics(is_shuffled(values))


def _chunks(values: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Parts along the first dimension, each as a matrix with the number of its first row."""
    size = max(1, _CHUNK * len(values) // values.numel())
    for start in range(0, len(values), size):
        rows = values[start : start + size]
        yield start, rows.reshape(len(rows), -1).contiguous()


class _Accumulator:
    """The sums over the chunks of a tensor, which is read as a matrix: the first dimension by all the others."""

    # A digest is a linear hash modulo 2^64: the digest of a row is the sum of its elements' bits, each times the key of
    # its column, and that of the tensor the sum of those of the rows, each times the key of the row; columns go the
    # other way round. So the order of the chunks does not matter, and one pass gives all three without a copy. How it
    # can fail: where all differences of two rows are multiples of 2^k, only 64 - k bits of the keys tell them apart.
    # For numbers of 4 bytes k is at most 31, the sign; of 8 bytes it would be 63, so that rows of 1 and -1 would differ
    # by the parity of their signs alone, and `_bits` folds their upper half into the lower one first. What is taken for
    # equal tensors is compared bit by bit afterwards; equal rows and columns are not.

    def __init__(self, values: Tensor) -> None:
        self.flat = values.dim() < 2
        self.shape = (values.numel(), 1) if self.flat else (len(values), values[0].numel())
        self.columns = 1 if self.flat else values.shape[1]
        first = float(values[(0,) * values.dim()])
        self.shift = first if math.isfinite(first) else 0.0  # sums around a value of the data cancel less
        self.smallest = torch.finfo(values.dtype).smallest_normal if values.is_floating_point() else 0.0
        self.total = self.square = 0.0
        self.nan = self.infinite = self.tiny = self.digest = 0
        self.least, self.most = math.inf, -math.inf
        rows, width = self.shape
        self.column_keys = _keys(0, width, values.device)
        rows = 0 if self.flat else rows
        self.row_digests, self.row_zeros = torch.zeros(2, rows, dtype=torch.int64, device=values.device)
        self.column_digests, self.column_zeros = torch.zeros(2, width, dtype=torch.int64, device=values.device)

    def add(self, start: int, chunk: Tensor) -> None:
        wide = chunk.to(torch.float64, copy=True)  # it is shifted in place, and must not be the tensor itself
        low, high = (float(end) for end in torch.aminmax(wide))
        if not (math.isfinite(low) and math.isfinite(high)):
            self.nan += int(wide.isnan().sum())
            self.infinite += int(wide.isinf().sum())
        self.least, self.most = min(self.least, low), max(self.most, high)
        sizes = wide.abs()
        if not float(sizes.amin()) >= max(self.smallest, 5e-324):  # "not", since a comparison with NaN is false
            self._count(start, sizes)
        wide -= self.shift
        self.total += float(wide.sum())
        flat = wide.view(-1)
        self.square += float(flat.dot(flat))
        self._digest(start, _bits(chunk))

    def _count(self, start: int, sizes: Tensor) -> None:
        zero = sizes == 0
        self.tiny += int(torch.count_nonzero(sizes < self.smallest)) - int(torch.count_nonzero(zero))
        self.column_zeros += zero.sum(0)
        if not self.flat:
            self.row_zeros[start : start + len(sizes)] = zero.sum(1)

    def _digest(self, start: int, bits: Tensor) -> None:
        keys = _keys(start, len(bits), bits.device)
        digests = torch.mv(bits, self.column_keys)
        self.digest = (self.digest + int((digests * keys).sum())) % (1 << 64)
        self.column_digests += torch.mv(bits.T, keys)
        if not self.flat:
            self.row_digests[start : start + len(bits)] = digests

    def statistics(self, shuffled: bool) -> Statistics:
        rows, width = self.shape
        number = rows * width
        finite = not self.nan and not self.infinite
        mean = self.total / number
        whole = Statistics(
            numel=number,
            nan=self.nan,
            infinite=self.infinite,
            zeros=int(self.column_zeros.sum()),
            tiny=self.tiny if self.smallest else 0,
            min=self.least,
            max=self.most,
            mean=self.shift + mean if finite else math.nan,
            std=math.sqrt(max(0.0, self.square / number - mean * mean)) if finite else math.nan,
            digest=self.digest,
            shuffled=shuffled,
        )
        if self.flat:
            return whole
        each = width // self.columns
        digests = self.column_digests.view(-1, each) * _keys(0, each, self.column_digests.device)
        return replace(
            whole,
            rows=self.row_digests.cpu(),
            columns=digests.sum(1).cpu(),
            zero_rows=self.row_zeros.cpu() == width,
            zero_columns=self.column_zeros.view(-1, each).sum(1).cpu() == rows * each,
        )


def _keys(start: int, size: int, device: torch.device) -> Tensor:
    """An odd number for each place, as good as random: the finisher of SplitMix64."""
    key = torch.arange(start + 1, start + size + 1, device=device) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        key = (key ^ (key >> shift)) * factor
    return (key ^ (key >> 31)) | 1


def _bits(chunk: Tensor) -> Tensor:
    """The bits of each value as an int64."""
    chunk = chunk if chunk.dtype == torch.bool else chunk.view(_BITS[chunk.element_size()])
    return chunk ^ (chunk >> 32) if chunk.element_size() == 8 else chunk.to(torch.int64)


def is_shuffled(values: Tensor) -> bool:
    """Whether the values come in no order, as far as one can tell from their turning points.

    Among n values that are drawn alike and without ties, a value lies above or below both of its neighbours 2(n-2)/3
    times, with a variance of (16n-29)/90, whatever the distribution (Bienaymé, 1874). Six standard errors and
    a twentieth for ties of rounded values are allowed, and an eighth of the values, or of the numbers that the
    dtype has between 1 and 2, must differ. Ramps, steps, waves and repeated values do not pass, and fewer
    than 20 values never do.

    >>> is_shuffled(torch.randn(100)), is_shuffled(torch.arange(100.0).log())
    (True, False)
    """
    sample = _sample(values)
    if len(sample) < _FEWEST:
        return False
    steps = sample.diff()
    turns = int((steps[1:] * steps[:-1] < 0).sum())
    number = len(sample)
    expected, spread = 2 * (number - 2) / 3, math.sqrt((16 * number - 29) / 90)
    steps_of_dtype = 1 / torch.finfo(values.dtype).eps if values.is_floating_point() else math.inf
    differ = len(sample.unique()) >= min(number, steps_of_dtype) / 8
    return differ and abs(turns - expected) <= 6 * spread + number / 20


def _sample(values: Tensor) -> Tensor:
    """Neighbouring values from the middle, as float64."""
    if values.dim() > 1:
        each = values.numel() // len(values)
        rows = -(-_SAMPLE // each)
        first = max(0, (len(values) - rows) // 2)
        values = values[first : first + rows]
    flat = values.reshape(-1)
    return flat[max(0, (len(flat) - _SAMPLE) // 2) :][:_SAMPLE].to(torch.float64)
