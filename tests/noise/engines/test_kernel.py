"""The kernel's sums, largest magnitudes and copies, with each instruction set, against exact and NumPy's arithmetic."""

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


WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPES = [*COMMON, torch.float8_e5m2, torch.float8_e4m3fn]


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, n, dtype=np.uint8)


def largest(raw: np.ndarray, width: int) -> int:
    """The largest word without its sign bit, in Python's own whole numbers."""
    words = raw.view(f"<u{width}")
    return int((words & words.dtype.type((1 << 8 * width - 1) - 1)).max())


@every_set
@given(n=st.integers(1, 3000), skip=st.integers(0, 9), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
def test_the_largest_magnitude_of_any_bits(
    compiled: kernel.Kernel, n: int, skip: int, dtype: torch.dtype, seed: int
) -> None:
    raw = noise((n + skip) * dtype.itemsize, seed)
    values = torch.from_numpy(raw).view(dtype)[skip:]
    assert compiled.largest(values, 1) == largest(raw[skip * dtype.itemsize :], dtype.itemsize)


@every_set
@pytest.mark.parametrize("dtype", COMMON)
@pytest.mark.parametrize("at", [0, 1, 65_535, 131_071, 131_072, 350_000, 699_999, 700_000])
def test_one_large_number_is_found_anywhere_by_any_number_of_threads(
    compiled: kernel.Kernel, dtype: torch.dtype, at: int
) -> None:
    values = torch.ones(700_001, dtype=dtype)
    for value in (-3.0, math.inf, math.nan):
        values[at] = value
        bits = int(values[at].abs().view(WORDS[dtype.itemsize]))
        assert {compiled.largest(values, threads) for threads in (1, 2, 5)} == {bits}


@every_set
@given(n=st.integers(0, 2000), to=st.integers(0, 70), start=st.integers(0, 70))
def test_a_copy_writes_its_bytes_and_no_other(compiled: kernel.Kernel, n: int, to: int, start: int) -> None:
    source, target = torch.from_numpy(noise(n + start)), torch.from_numpy(noise(n + to + 70, 1))
    expected = target.clone()
    expected[to : to + n] = source[start:]
    compiled.copy(target[to : to + n], source[start:], 1)
    assert torch.equal(target, expected)


@every_set
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_share_a_copy(compiled: kernel.Kernel, threads: int) -> None:
    source: Tensor = torch.from_numpy(noise(3_000_017))
    target = torch.zeros_like(source)
    before = target._version
    compiled.copy(target, source, threads)
    assert torch.equal(target, source)
    assert target._version > before
