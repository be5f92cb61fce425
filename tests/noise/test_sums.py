"""Sums: the kernel's, with each instruction set and any number of threads, against exact and NumPy's arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torchinit.noise.engines import kernel
from torchinit.noise.engines.tasks import COMMON, ValueSums

LOADED = kernel.load()
KERNELS = LOADED.instruction_sets() if LOADED else {}
pytestmark = pytest.mark.skipif(not KERNELS, reason="no compiled kernel here")
every_set = pytest.mark.parametrize("compiled", KERNELS.values(), ids=KERNELS.keys())
EPS = 2.0**-53


def sums_of(compiled: kernel.Kernel, values: Tensor, threads: int = 1) -> ValueSums:
    (found,) = compiled.sums([values], threads)
    assert found is not None
    return found


def normals(n: int, dtype: torch.dtype, mean: float = 0.0) -> Tensor:
    return (torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) + mean).to(dtype)


@every_set
@given(
    n=st.integers(1, 3000), skip=st.integers(0, 3), dtype=st.sampled_from(COMMON), mean=st.sampled_from([0.0, -50.0])
)
def test_sums_are_exact_to_their_rounding(
    compiled: kernel.Kernel, n: int, skip: int, dtype: torch.dtype, mean: float
) -> None:
    values = normals(n + skip, dtype, mean)[skip:]
    found, exact = sums_of(compiled, values), values.double().tolist()
    moved = [value - exact[0] for value in exact]
    assert (found.shift, found.low, found.high) == (exact[0], min(exact), max(exact))
    # No more roundings than elements, each relative to what is added up.
    assert abs(found.total - math.fsum(moved)) <= n * EPS * math.fsum(map(abs, moved))
    squares = math.fsum(value * value for value in moved)
    assert abs(found.square - squares) <= (n + 1) * EPS * squares


@every_set
@pytest.mark.parametrize("dtype", COMMON)
def test_pieces_are_put_together_alike_by_any_number_of_threads(compiled: kernel.Kernel, dtype: torch.dtype) -> None:
    values = normals(700_001, dtype)
    alone = sums_of(compiled, values)
    assert sums_of(compiled, values, 2) == sums_of(compiled, values, 5) == alone
    moved = values.double().numpy() - alone.shift
    assert alone.total == pytest.approx(np.sum(moved), rel=1e-11)
    assert alone.square == pytest.approx(np.sum(moved * moved), rel=1e-11)


@every_set
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_sixteen_bits(compiled: kernel.Kernel, dtype: torch.dtype) -> None:
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16)
    values = bits.view(dtype)
    for block in values[values.isfinite()].split(32):
        found, wide = sums_of(compiled, block), block.double()
        assert (found.low, found.high) == (float(wide.min()), float(wide.max()))
        assert found.total == pytest.approx(float((wide - wide[0]).sum()), rel=1e-15)
    for value in values[::61]:
        (alone,) = sums_of(compiled, value[None])[:1]
        assert alone == float(value) or (math.isnan(alone) and math.isnan(float(value)))


@every_set
@pytest.mark.parametrize("dtype", COMMON)
@pytest.mark.parametrize("at", [0, 1, 40, 65_535, 65_536, 99_990, 99_999])
def test_nan_is_found_anywhere_and_infinity_is_no_nan(compiled: kernel.Kernel, dtype: torch.dtype, at: int) -> None:
    values = normals(100_000, dtype)
    values[at] = math.nan
    found = sums_of(compiled, values)
    assert math.isnan(found.total) and math.isnan(found.low) and math.isnan(found.high)
    values[at], values[at - 1] = math.inf, -math.inf
    found = sums_of(compiled, values)
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert math.isnan(found.total)
