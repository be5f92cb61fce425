"""Statistics of a tensor's values, in memory that does not grow with it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from torchinit.initializers.statistics import is_shuffled, measure

_CHUNK = 1 << 16
_SAMPLE = 4096
"""The keys of so many first places are kept."""

_NONE = torch.empty(0, dtype=torch.int64)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts, moments and digests of a tensor's values.

    ``tiny`` counts values that are not zero and below the smallest normal number of the dtype. ``rows`` and
    ``columns`` hold a digest of each index of the first two dimensions, which is zero where all values are; below
    two dimensions they are empty. ``shuffled`` says whether the values come in no order, as drawn ones do.
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
    rows: Tensor = _NONE
    columns: Tensor = _NONE

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

    The columns of more than two dimensions run along the second.
    """
    # A digest is a linear hash modulo 2^64: the digest of a row is the sum of its elements' bits, each times the key of
    # its column, and that of the tensor the sum of those of the rows, each times the key of the row; columns go the
    # other way round. So the order of the chunks does not matter, and one pass gives all three without a copy; a row
    # of zeros has the digest zero. How it can fail: where all differences of two rows are multiples of 2^k, only
    # 64 - k bits of the keys tell them apart. For numbers of 4 bytes k is at most 31, the sign; of 8 bytes it would be
    # 63, so that rows of 1 and -1 would differ by the parity of their signs alone, and `_bits` folds their upper half
    # into the lower one first. Equal tensors are compared bit by bit afterwards; equal rows and columns are not.
    values = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    moments = measure(values)
    if moments is None:
        return Statistics()
    matrix = values if values.dim() > 1 else values.view(-1, 1)
    low, high, mean, std = (float(each or 0) for each in (moments.min, moments.max, moments.mean, moments.std))
    if low == high == 0:  # as half of the tensors of a fresh model are; all their digests are 0
        lengths = values.shape[:2] if values.dim() > 1 else ()
        nothing = (torch.zeros(length, dtype=torch.int64, device="cpu") for length in lengths)
        return Statistics(values.numel(), 0, 0, values.numel(), 0, low, high, mean, std, 0, False, *nothing)
    smallest = torch.finfo(values.dtype).smallest_normal if values.is_floating_point() else 0.0
    counts: Counter[str] = Counter()
    column_keys = _keys(0, matrix[0].numel(), values.device)
    columns, digest, rows = torch.zeros_like(column_keys), 0, []
    for start, chunk in _chunks(matrix):
        bits = _bits(chunk)
        sizes = chunk.to(torch.float64, copy=True).abs_()  # a copy, since a chunk may be the tensor itself
        least, most = map(float, torch.aminmax(sizes))
        if not (least >= max(smallest, 5e-324) and most < math.inf):  # "not", since a comparison with NaN is false
            zero = sizes == 0
            bits = bits.masked_fill(zero, 0)  # the sign of a zero says nothing
            counts["zeros"] += int(zero.sum()) if most else zero.numel()
            if not most < math.inf:
                counts.update(nan=int(sizes.isnan().sum()), infinite=int(sizes.isinf().sum()))
            if most:
                counts["tiny"] += int(((sizes < smallest) & ~zero).sum())
        keys, digests = _keys(start, len(chunk), values.device), torch.mv(bits, column_keys)
        columns += torch.mv(bits.T, keys)
        digest += int((digests * keys).sum())
        if values.dim() > 1:
            rows.append(digests.cpu())
    length = matrix[0, 0].numel()
    by_column = columns.view(-1, length) * _keys(0, length, values.device)
    return Statistics(
        values.numel(), counts["nan"], counts["infinite"], counts["zeros"], counts["tiny"], low, high, mean, std,
        digest % (1 << 64), low != high and is_shuffled(values),
        *((torch.cat(rows), by_column.sum(1).cpu()) if rows else ()),
    )  # fmt: skip


def _chunks(matrix: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Parts along the first dimension, each with two dimensions, with the number of its first row."""
    size = max(1, _CHUNK * len(matrix) // matrix.numel())
    for start in range(0, len(matrix), size):
        yield start, matrix[start : start + size].flatten(1).contiguous()


def _keys(start: int, size: int, device: torch.device) -> Tensor:
    """An odd number for each place, as good as random: the finisher of SplitMix64."""
    is_usual = device.type == "cpu" and start + size <= _SAMPLE
    return _first_keys()[start : start + size] if is_usual else _made_keys(start, size, device)


@lru_cache(maxsize=1)
def _first_keys() -> Tensor:
    """The keys of the first places, which nearly all tensors use, and nobody writes to."""
    with _disable_current_modes(), torch.inference_mode(False):
        return _made_keys(0, _SAMPLE, torch.device("cpu"))


def _made_keys(start: int, size: int, device: torch.device) -> Tensor:
    key = torch.arange(start + 1, start + size + 1, device=device) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        key = (key ^ (key >> shift)) * factor
    return (key ^ (key >> 31)) | 1


def _bits(chunk: Tensor) -> Tensor:
    """The bits of each value as an int64."""
    chunk = chunk if chunk.dtype == torch.bool else chunk.view(_BITS[chunk.element_size()])
    return chunk ^ (chunk >> 32) if chunk.element_size() == 8 else chunk.to(torch.int64)
