"""Facts: what one pass over the values of a tensor finds, in memory that does not grow with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

_CHUNK = 1 << 16
_SAMPLE = 4096
_FEWEST = 20
"""With fewer values than this nothing can be said about their order."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class Facts:
    """Counts, moments and digests of a tensor's values.

    ``tiny`` counts values that are not zero and below the smallest normal number of the dtype. ``rows`` and
    ``columns`` hold a digest of each index of the first two dimensions, ``zero_rows`` and ``zero_columns`` which
    of them are zero throughout; all four are empty below two dimensions. ``shuffled`` says whether the
    values come in no order, as drawn ones do.

    >>> facts = look(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    >>> facts.zeros, facts.zero_columns.tolist(), bool(facts.rows[0] == facts.rows[1])
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
        """Whether all values are one; never of a single value, of which nobody could tell."""
        return self.numel > 1 and self.finite and self.min == self.max

    @property
    def varied(self) -> bool:
        """Whether there are values, all finite, and more than one of them."""
        return self.numel > 1 and self.finite and self.min != self.max

    @property
    def reach(self) -> float:
        """The largest absolute value."""
        return max(abs(self.min), abs(self.max))


def look(tensor: Tensor) -> Facts:
    """The facts of a tensor; of a complex one those of its parts, with one more dimension.

    The tensor is read chunk by chunk. Of one with more than two dimensions the columns run along the second.
    """
    values = tensor.detach()
    values = torch.view_as_real(values) if values.is_complex() else values
    if not values.numel():
        return Facts()
    sums = _Sums(values)
    for start, piece in _pieces(values if values.dim() else values.view(1)):
        sums.add(start, piece)
    return sums.facts(is_shuffled(values))


def _pieces(values: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Parts of about a chunk along the first dimension, each as a matrix, with where it starts."""
    size = max(1, _CHUNK * len(values) // values.numel())
    for start in range(0, len(values), size):
        piece = values[start : start + size]
        yield start, piece.reshape(len(piece), -1).contiguous()


class _Sums:
    """What is summed up over the pieces of a tensor, which is read as a matrix: the first dimension by the others."""

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
        self.within = _keys(0, width, values.device)
        self.rows, self.row_zeros = (_zeros(0 if self.flat else rows, values) for _ in range(2))
        self.below, self.zeros_below = (_zeros(width, values) for _ in range(2))

    def add(self, start: int, piece: Tensor) -> None:
        wide = piece.to(torch.float64, copy=True)  # it is shifted in place, and must not be the tensor itself
        low, high = (float(end) for end in torch.aminmax(wide))
        if not (math.isfinite(low) and math.isfinite(high)):
            self.nan += int(wide.isnan().sum())
            self.infinite += int(wide.isinf().sum())
        self.least, self.most = min(self.least, low), max(self.most, high)
        size = wide.abs()
        if not float(size.amin()) >= max(self.smallest, 5e-324):  # "not", since a comparison with NaN is false
            self._count(start, size)
        wide -= self.shift
        self.total += float(wide.sum())
        flat = wide.view(-1)
        self.square += float(flat.dot(flat))
        self._digest(start, _bits(piece))

    def _count(self, start: int, size: Tensor) -> None:
        zero = size == 0
        self.tiny += int(torch.count_nonzero(size < self.smallest)) - int(torch.count_nonzero(zero))
        self.zeros_below += zero.sum(0)
        if not self.flat:
            self.row_zeros[start : start + len(size)] = zero.sum(1)

    def _digest(self, start: int, bits: Tensor) -> None:
        keys = _keys(start, len(bits), bits.device)
        digests = torch.mv(bits, self.within)
        self.digest = (self.digest + int((digests * keys).sum())) % (1 << 64)
        self.below += torch.mv(bits.T, keys)
        if not self.flat:
            self.rows[start : start + len(bits)] = digests

    def facts(self, shuffled: bool) -> Facts:
        rows, width = self.shape
        number = rows * width
        finite = not self.nan and not self.infinite
        mean = self.total / number
        facts = Facts(
            numel=number,
            nan=self.nan,
            infinite=self.infinite,
            zeros=int(self.zeros_below.sum()),
            tiny=self.tiny if self.smallest else 0,
            min=self.least,
            max=self.most,
            mean=self.shift + mean if finite else math.nan,
            std=math.sqrt(max(0.0, self.square / number - mean * mean)) if finite else math.nan,
            digest=self.digest,
            shuffled=shuffled,
        )
        if self.flat:
            return facts
        each = width // self.columns
        return replace(
            facts,
            rows=self.rows.cpu(),
            columns=(self.below.view(-1, each) * _keys(0, each, self.below.device)).sum(1).cpu(),
            zero_rows=self.row_zeros.cpu() == width,
            zero_columns=self.zeros_below.view(-1, each).sum(1).cpu() == rows * each,
        )


def _zeros(size: int, like: Tensor) -> Tensor:
    return torch.zeros(size, dtype=torch.int64, device=like.device)


def _keys(start: int, size: int, device: torch.device) -> Tensor:
    """An odd number for each place, the same for the same place and without order: the finisher of SplitMix64."""
    key = torch.arange(start + 1, start + size + 1, device=device) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        key = (key ^ (key >> shift)) * factor
    return (key ^ (key >> 31)) | 1


def _bits(piece: Tensor) -> Tensor:
    """The bits of each value as a whole number."""
    if piece.dtype == torch.bool:
        return piece.to(torch.int64)
    return piece.view(_BITS[piece.element_size()]).to(torch.int64)


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
