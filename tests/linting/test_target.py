"""Statistics: counts and moments as torch gives them on the whole tensor, digests that tell values apart, order."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from torchinit.initializers.statistics import is_shuffled
from torchinit.linting import target as module
from torchinit.linting.target import LintTarget, Statistics, compute_statistics
from torchinit.plans import Plan, Report
from torchinit.tracing import Trace

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(
    shape=st.lists(st.integers(1, 7), min_size=0, max_size=4),
    seed=st.integers(0, 99),
    dtype=st.sampled_from(DTYPES),
    chunk=st.sampled_from([1, 5, 64, 1 << 16]),
    turned=st.booleans(),
)
def test_chunks_give_what_the_whole_gives(
    shape: list[int], seed: int, dtype: torch.dtype, chunk: int, turned: bool
) -> None:
    values = drawn(*shape, seed=seed, dtype=dtype)
    values = values.relu() if seed % 2 else values
    values = values.mT if turned and len(shape) > 1 else values
    before, module._CHUNK = module._CHUNK, chunk
    try:
        stats = compute_statistics(values)
    finally:
        module._CHUNK = before
    wide = values.double()
    assert (stats.numel, stats.zeros) == (values.numel(), int((values == 0).sum()))
    assert (stats.min, stats.max) == (float(values.min()), float(values.max()))
    assert stats.mean == pytest.approx(float(wide.mean()), abs=1e-12)
    assert stats.std == pytest.approx(float(wide.std(correction=0)), abs=1e-7)
    assert stats.digest == compute_statistics(values.clone()).digest
    if values.dim() > 1:
        assert (stats.rows == 0).tolist() == [bool((row == 0).all()) for row in values]
        assert (stats.columns == 0).tolist() == [bool((column == 0).all()) for column in values.unbind(1)]
        assert len(stats.rows) == values.shape[0]
        assert len(stats.columns) == values.shape[1]


@given(st.lists(st.floats(width=32, allow_subnormal=True), min_size=1, max_size=50))
def test_counts_of_any_floats(numbers: list[float]) -> None:
    values = torch.tensor(numbers, dtype=torch.float32)
    stats = compute_statistics(values)
    small = torch.finfo(torch.float32).smallest_normal
    assert stats.nan == sum(map(math.isnan, numbers))
    assert stats.infinite == sum(map(math.isinf, numbers))
    assert stats.tiny == sum(0 < abs(number) < small for number in numbers)
    assert stats.finite == all(map(math.isfinite, numbers))


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.data())
def test_the_digest_tells_any_change(numbers: list[int], data: st.DataObject) -> None:
    values = torch.tensor(numbers, dtype=torch.float32)
    other = values.clone()
    at = data.draw(st.integers(0, len(numbers) - 1))
    other[at] += 1
    assert compute_statistics(values).digest != compute_statistics(other).digest
    turned = values.flip(0)
    assert (compute_statistics(values).digest == compute_statistics(turned).digest) == torch.equal(values, turned)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, *DTYPES]
)
def test_every_dtype_can_be_looked_at(dtype: torch.dtype) -> None:
    stats = compute_statistics(torch.tensor([[0, 1, 1], [0, 1, 1]]).to(dtype))
    assert (stats.max, stats.nan) == (1.0, 0)
    assert bool(stats.rows[0] == stats.rows[1])


def test_rows_and_columns_have_one_digest_where_they_are_equal() -> None:
    values = drawn(6, 4, 3)
    values[4] = values[1]
    values[:, 3] = values[:, 0]
    stats = compute_statistics(values)
    assert (stats.rows.unsqueeze(0) == stats.rows.unsqueeze(1)).sum() == 6 + 2
    assert (stats.columns.unsqueeze(0) == stats.columns.unsqueeze(1)).sum() == 4 + 2


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, *DTYPES])
def test_moments_of_all_tensors_at_once_are_those_of_each(dtype: torch.dtype) -> None:
    model = nn.Module()
    for at, values in enumerate(
        (drawn(7, 5), torch.zeros(3), drawn(40, seed=1).t(), torch.empty(0), torch.tensor(2.0))
    ):
        model.register_buffer(f"b{at}", values.to(dtype))
    model.register_buffer("away", torch.empty(3, device="meta"))

    def found(*, at_once: bool) -> list[tuple[object, ...]]:
        target = LintTarget(model, Plan(), Report(), {}, Trace())
        if at_once:
            target.measure()
            assert all("moments" in vars(linted) for linted in target.tensors if linted.values is not None)
        stats = [linted.statistics for linted in target.tensors]
        return [(each.numel, each.zeros, each.min, each.max, each.mean, each.std, each.digest) for each in stats]

    assert str(found(at_once=True)) == str(found(at_once=False))  # as text, since NaN is not itself


def test_empty_and_scalar() -> None:
    assert compute_statistics(torch.empty(0, 3)).numel == Statistics().numel == 0
    assert not Statistics().constant
    assert not compute_statistics(torch.tensor(2.0)).constant
    assert compute_statistics(torch.full((2,), 2.0)).constant


# --- order -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(5))
def test_what_is_drawn_is_shuffled(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    for number in (20, 50, 1000, 10_000):
        values = torch.empty(number)
        for draw in (values.normal_, values.uniform_, values.exponential_):
            draw(generator=generator)
            assert is_shuffled(values.to(dtype)), (number, draw)
    matrix = torch.nn.init.orthogonal_(torch.empty(64, 96), generator=generator)
    assert is_shuffled(matrix.to(dtype))


def positions(length: int, width: int) -> Tensor:
    """The sines and cosines of Vaswani et al. (2017), side by side."""
    angles = torch.arange(float(length)).outer(10000.0 ** -(torch.arange(0, width, 2) / width))
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


ORDERED = {
    "ramp": torch.arange(500.0),
    "log ramp": torch.arange(1.0, 501).log(),
    "ramps in rows": torch.arange(1.0, 5).log().expand(64, 4),
    "long ramps in rows": torch.arange(1.0, 17).log().expand(64, 16),
    "wave": torch.arange(500.0).mul(0.3).sin(),
    "sines and cosines": positions(200, 32),
    "identity": torch.eye(40),
    "dirac": torch.nn.init.dirac_(torch.empty(16, 16, 3, 3)),
    "two values": torch.tensor([0.0, 1.0]).repeat(100),
    "sparse": drawn(100, 100) * (drawn(100, 100, seed=1) > 1.7),
    "constant": torch.ones(100),
    "few": drawn(19),
}


@pytest.mark.parametrize("name", ORDERED)
def test_what_has_a_pattern_is_not(name: str) -> None:
    assert not is_shuffled(ORDERED[name])


def test_the_middle_of_a_large_tensor_is_looked_at() -> None:
    values = drawn(1000, 50)
    values[0] = 0  # a padding row
    assert is_shuffled(values)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4)], ids=str)
def test_of_zeros_every_digest_is_zero(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """As the sums over all elements give it, of which there are none where nothing differs from zero."""
    tensor = torch.zeros(shape, dtype=dtype)
    stats = compute_statistics(-tensor if dtype.is_floating_point else tensor)
    sides = [*shape, 2] if dtype.is_complex else [*shape]
    assert (stats.numel, stats.zeros, stats.nan, stats.infinite, stats.tiny) == (math.prod(sides),) * 2 + (0, 0, 0)
    assert (stats.min, stats.max, stats.mean, stats.std, stats.digest, stats.shuffled) == (0, 0, 0, 0, 0, False)
    lengths = sides[:2] if len(sides) > 1 else (0, 0)
    assert [each.tolist() for each in (stats.rows, stats.columns)] == [[0] * length for length in lengths]
    almost = tensor.clone()
    almost.view(-1)[-1] = 1
    assert compute_statistics(almost).digest
