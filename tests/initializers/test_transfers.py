"""Transfers: magnitudes against torch's own, and copies that differ from ``copy_`` in speed alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torchinit.initializers import statistics
from torchinit.initializers.statistics import magnitude, transfer

LARGE = 600_011  # floats: more than is left to torch, and no round number
DTYPES = [
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    *(torch.float8_e5m2, torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.complex64),
]


@pytest.fixture(params=["kernel", "torch"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the compiled kernel, if there is one, and without."""
    if request.param == "torch":
        monkeypatch.setattr(statistics, "chosen_kernel", lambda: None)
    return str(request.param)


def normals(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(n)).to(dtype)


def largest(values: Tensor) -> float:
    parts = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    return float(parts.double().abs().max())


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_magnitude_is_the_largest_absolute_value(dtype: torch.dtype) -> None:
    values = normals(501, dtype)
    for view in (values, values.T, values[3:4], values[::3, 1]):
        assert magnitude(view) == largest(view) > 0
    assert magnitude(values[:0]) == 0
    values[77, 1] = math.nan
    assert math.isnan(magnitude(values))


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_infinity_is_the_largest_magnitude_but_nan(dtype: torch.dtype) -> None:
    values = normals(9, dtype)
    values[3, 0] = -math.inf
    assert magnitude(values) == math.inf
    values[8, 1] = math.nan
    assert math.isnan(magnitude(values))


@pytest.mark.usefixtures("engine")
def test_views_that_mean_other_bits_than_they_hold() -> None:
    values = normals(5, torch.complex64).view(-1)
    assert magnitude(values.conj()) == largest(values)
    assert magnitude(values.conj().imag) == float(values.imag.abs().max())


@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_any_floats(values: list[float]) -> None:
    expected = math.nan if any(map(math.isnan, values)) else max(map(abs, values))
    found = magnitude(torch.tensor(values))
    assert found == expected or (math.isnan(found) and math.isnan(expected))


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("seen", [torch.float32, torch.bfloat16, torch.int64])
def test_a_transfer_is_a_copy(seen: torch.dtype, held: torch.dtype) -> None:
    values, out = normals(LARGE, seen), torch.zeros(LARGE, 2, dtype=held)
    transfer(values, out)
    assert torch.equal(out, values.to(held))


@pytest.mark.usefixtures("engine")
def test_views_are_copied_as_they_read() -> None:
    values = normals(LARGE)
    for source, target in (
        (values.T, torch.zeros(2, LARGE)),
        (values, torch.zeros(2, LARGE).T),
        (values[:, 1], torch.zeros(LARGE)),
        (values.view(torch.complex64).conj(), torch.zeros(LARGE, 1, dtype=torch.complex64)),
        (torch._neg_view(values), torch.zeros(LARGE, 2)),
        (values[:1], torch.zeros(LARGE, 2)),  # broadcast
    ):
        transfer(source, target)
        assert torch.equal(target, source.expand_as(target).resolve_conj().resolve_neg())


def test_neighbours_are_left_alone_and_autograd_is_told() -> None:
    values, whole = normals(LARGE).view(-1), torch.zeros(2 * LARGE + 10)
    out, before = whole[5:-5], whole._version
    transfer(values, out)
    assert torch.equal(out, values)
    assert not whole[:5].any()
    assert not whole[-5:].any()
    assert whole._version > before


def test_memory_that_is_mapped_is_left_to_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "raw"
    path.write_bytes(bytes(8 * LARGE))
    out = torch.from_file(str(path), shared=False, size=2 * LARGE)
    monkeypatch.setattr(statistics, "chosen_kernel", lambda: pytest.fail("the kernel does not ask whether it may"))
    transfer(normals(LARGE).view(-1), out)
    assert torch.equal(out, normals(LARGE).view(-1))


def test_a_tensor_onto_itself() -> None:
    values = normals(LARGE)
    transfer(values, values)
    assert torch.equal(values, normals(LARGE))


def test_the_default_device_does_not_matter() -> None:
    values = torch.tensor([1.0, -3.0])
    with torch.device("meta"):
        assert magnitude(values) == 3.0
