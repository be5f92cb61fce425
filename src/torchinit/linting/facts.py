"""Facts: what one pass over the values of a tensor finds, in memory that does not grow with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

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
    for start, piece in _pieces(sums.values):
        sums.add(start, piece)
    return sums.facts()


def _pieces(values: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Parts of about a chunk along the first dimension, each with where it starts."""
    size = max(1, _CHUNK * len(values) // values.numel())
    for start in range(0, len(values), size):
        yield start, values[start : start + size]


class _Sums:
    """What is summed up over the pieces of a tensor."""

    def __init__(self, values: Tensor) -> None:
        self.flat = values.dim() < 2
        shape = (values.numel(), 1, 1) if self.flat else (*values.shape[:2], math.prod(values.shape[2:]))
        self.values = values.reshape(shape)
        self.dtype = values.dtype
        first = float(values.reshape(-1)[0])
        self.shift = first if math.isfinite(first) else 0.0  # sums around a value of the data cancel less
        self.total = self.square = 0.0
        self.nan = self.infinite = self.tiny = self.digest = 0
        self.least, self.most = math.inf, -math.inf
        rows, columns, rest = shape
        self.within = _keys(0, columns * rest, values.device).view(1, columns, rest)
        self.rest = _keys(0, rest, values.device).view(1, 1, rest)
        self.rows, self.columns = _zeros(0 if self.flat else rows, values), _zeros(columns, values)
        self.row_zeros, self.column_zeros = torch.zeros_like(self.rows), torch.zeros_like(self.columns)

    def add(self, start: int, piece: Tensor) -> None:
        wide = piece.to(torch.float64)
        self._add_moments(wide)
        zero = wide == 0
        if self.dtype.is_floating_point:
            small = wide.abs() < torch.finfo(self.dtype).smallest_normal
            self.tiny += int(small.sum()) - int(zero.sum())
        bits = _bits(piece)
        keys = _keys(start, len(piece), piece.device)
        digests = (bits * self.within).sum((1, 2))
        self.digest = (self.digest + int((digests * keys).sum())) % (1 << 64)
        self.columns += (bits * self.rest * keys.view(-1, 1, 1)).sum((0, 2))
        self.column_zeros += zero.sum((0, 2))
        if not self.flat:
            self.rows[start : start + len(piece)] = digests
            self.row_zeros[start : start + len(piece)] = zero.sum((1, 2))

    def _add_moments(self, wide: Tensor) -> None:
        low, high = (float(end) for end in torch.aminmax(wide))
        if not (math.isfinite(low) and math.isfinite(high)):
            self.nan += int(wide.isnan().sum())
            self.infinite += int(wide.isinf().sum())
        self.least, self.most = min(self.least, low), max(self.most, high)
        moved = wide - self.shift
        self.total += float(moved.sum())
        self.square += float(moved.square_().sum())

    def facts(self) -> Facts:
        number = self.values.numel()
        finite = not self.nan and not self.infinite
        mean = self.total / number
        nothing = torch.empty(0, dtype=torch.int64)
        rows, columns, rest = self.values.shape
        return Facts(
            numel=number,
            nan=self.nan,
            infinite=self.infinite,
            zeros=int(self.column_zeros.sum()),
            tiny=self.tiny,
            min=self.least,
            max=self.most,
            mean=self.shift + mean if finite else math.nan,
            std=math.sqrt(max(0.0, self.square / number - mean * mean)) if finite else math.nan,
            digest=self.digest,
            shuffled=is_shuffled(self.values),
            rows=nothing if self.flat else self.rows.cpu(),
            columns=nothing if self.flat else self.columns.cpu(),
            zero_rows=self.row_zeros.cpu() == columns * rest if not self.flat else nothing.bool(),
            zero_columns=self.column_zeros.cpu() == rows * rest if not self.flat else nothing.bool(),
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
    return piece.contiguous().view(_BITS[piece.element_size()]).to(torch.int64)


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
