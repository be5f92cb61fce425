"""Sweeps: the kernel's largest magnitude and its copy, with each instruction set, against NumPy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torchinit.noise.engines import kernel
from torchinit.noise.engines.tasks import COMMON

LOADED = kernel.load()
KERNELS = LOADED.instruction_sets() if LOADED else {}
pytestmark = pytest.mark.skipif(not KERNELS, reason="no compiled kernel here")
every_set = pytest.mark.parametrize("compiled", KERNELS.values(), ids=KERNELS.keys())
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
