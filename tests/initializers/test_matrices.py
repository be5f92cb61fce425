"""Matrices: the laws that define them, the bits of torch.nn.init, slices of the whole, expected moments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

import torchinit
from tests.initializers.test_elementwise import assert_same_bits, drawn
from tests.stats import assert_distribution, assert_std
from tests.strategies import kernel_fills, matrix_fills, part, slices
from torchinit import Normal, Orthogonal
from torchinit.initializers import Blockwise, DeltaOrthogonal, Dirac, Fill, Identity, Sparse
from torchinit.model import Shard
from torchinit.noise import Global, Keyed

WRONG: Any = torchinit.initializers  # without types, to say what is wrong


@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (7, 4), (3, 4, 2), (8, 2, 3, 1), (1, 6), (6, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("noise", [Keyed(3), Global(torch.Generator().manual_seed(3))])
def test_orthogonal_rows_or_columns(shape: tuple[int, ...], dtype: torch.dtype, noise: torchinit.noise.Noise) -> None:
    tensor = torch.empty(shape, dtype=dtype)
    Orthogonal(gain=2.0).write(Shard.whole("w", tensor), noise)
    matrix = tensor.reshape(shape[0], -1)
    gram = matrix @ matrix.mH if matrix.shape[0] <= matrix.shape[1] else matrix.mH @ matrix
    torch.testing.assert_close(gram, 4 * torch.eye(len(gram), dtype=dtype), atol=1e-5, rtol=1e-5)


def deviation(matrix: Tensor) -> float:
    """How far the columns of a tall matrix are from orthonormal, at most."""
    wide = matrix.double()
    return float((wide.T @ wide - torch.eye(wide.shape[1], dtype=torch.float64)).abs().max())


@pytest.mark.parametrize("shape", [(512, 512), (600, 200), (64, 64)])
def test_orthogonal_is_at_least_as_accurate_as_torchs(shape: tuple[int, int]) -> None:
    ours, theirs = drawn(Orthogonal(), shape), torch.empty(shape)
    nn.init.orthogonal_(theirs, generator=torch.Generator().manual_seed(0))
    assert deviation(ours) <= deviation(theirs)
    # Factorized in float64 and rounded once: each element is off by half a unit in its last place at most.
    assert deviation(ours) <= 2 * 2.0**-24 * 1.01


@pytest.mark.parametrize("shape", [(7, 7), (9, 4), (4, 9)])
def test_orthogonal_has_the_signs_that_make_it_unique(shape: tuple[int, int]) -> None:
    """What is left of the Gaussian is triangular with a positive diagonal, whatever signs LAPACK has chosen."""
    matrix, gaussian = drawn(Orthogonal(), shape, torch.float64), drawn(Normal(), shape, torch.float64)
    tall, drew = (matrix, gaussian) if shape[0] >= shape[1] else (matrix.T, gaussian.T)
    left = tall.T @ drew
    assert bool((left.diagonal() > 0).all())
    torch.testing.assert_close(left.tril(-1), torch.zeros_like(left), atol=1e-12, rtol=0)


def test_orthogonal_along_another_axis() -> None:
    tensor = drawn(Orthogonal(axis=1), (3, 5, 2))
    rows = tensor.movedim(1, 0).reshape(5, 6)
    torch.testing.assert_close(rows @ rows.T, torch.eye(5), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(9, 9), (4, 7), (7, 4), (6, 2, 3, 3), (70, 60)])
def test_orthogonal_has_the_bits_of_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.zeros(shape, dtype=dtype)
    assert_same_bits(Orthogonal(0.5), lambda t: nn.init.orthogonal_(t, 0.5), tensor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_orthogonal_in_dtypes_that_cannot_be_factorized(dtype: torch.dtype) -> None:
    """Torch refuses these; here it is the rounded matrix of a wider dtype."""
    assert torch.equal(drawn(Orthogonal(), (8, 8), dtype).float(), drawn(Orthogonal(), (8, 8)).to(dtype).float())


def test_orthogonal_matrices_are_uniform() -> None:
    """Of a Haar matrix of 3 dimensions each entry is uniform on [-1, 1] (Archimedes), and det is -1 half the time."""
    drawn_ones = torch.stack([drawn(Orthogonal(), (3, 3), seed=seed) for seed in range(300)])
    for entry in (drawn_ones[:, 0, 0], drawn_ones[:, 2, 1]):
        assert_distribution(entry, stats.uniform(-1, 2).cdf)
    positive = float((torch.linalg.det(drawn_ones) > 0).double().mean())
    assert abs(positive - 0.5) < 6 * 0.5 / math.sqrt(300)


@pytest.mark.parametrize(("shape", "axis"), [((6, 4, 3, 3), 0), ((4, 6, 3), 1), ((5, 5, 2, 2, 3), 0)])
def test_delta_orthogonal_keeps_the_length_of_signals(shape: tuple[int, ...], axis: int) -> None:
    """The convolution with periodic borders is an isometry, whatever the size of the kernel."""
    kernel = drawn(DeltaOrthogonal(gain=3.0, axis=axis), shape)
    centre = kernel
    for size in shape[2:]:
        centre = centre.select(2, (size - 1) // 2)
    assert int((kernel != 0).sum()) == int((centre != 0).sum()) == centre.numel()
    outputs_first = centre.movedim(axis, 0)
    inputs = outputs_first.shape[1]
    torch.testing.assert_close(outputs_first.T @ outputs_first, 9 * torch.eye(inputs), atol=1e-5, rtol=0)


def test_delta_orthogonal_through_a_layer() -> None:
    layer = nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", bias=False)
    with torch.no_grad():
        DeltaOrthogonal().write(Shard.whole("weight", layer.weight), Keyed(0))
        signal = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(layer(signal).norm(), signal.norm())


@pytest.mark.parametrize("shape", [(4, 4), (3, 6), (6, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_identity(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_same_bits(Identity(), nn.init.eye_, torch.full(shape, 7.0, dtype=dtype))
    expected = torch.eye(*shape, dtype=torch.float64) * 0.1
    assert torch.equal(drawn(Identity(0.1), shape, torch.float64), expected), "not 0.1 by way of float32"


@pytest.mark.parametrize("shape", [(4, 4, 3), (6, 2, 3, 5), (2, 6, 4, 4), (4, 3, 1, 2, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_dirac_is_torchs(shape: tuple[int, ...], groups: int) -> None:
    assert_same_bits(Dirac(groups), lambda t: nn.init.dirac_(t, groups), torch.full(shape, 7.0))


@pytest.mark.parametrize(("shape", "sparsity"), [((10, 7), 0.3), ((5, 9), 0.5), ((8, 3), 0.0), ((8, 3), 1.0)])
def test_sparse_has_the_bits_of_torch(shape: tuple[int, int], sparsity: float) -> None:
    tensor = torch.zeros(shape)
    assert_same_bits(Sparse(sparsity, 0.5), lambda t: nn.init.sparse_(t, sparsity, 0.5), tensor)


def test_sparse_zeros_are_counted_and_anywhere() -> None:
    values = drawn(Sparse(0.25, 1.0), (40, 3000))
    assert (values == 0).sum(0).tolist() == [10] * 3000
    share = (values == 0).double().mean(1)
    assert float((share - 0.25).abs().max()) < 6 * math.sqrt(0.25 * 0.75 / 3000)
    assert_std(values[values != 0], 1.0)


CASES: list[tuple[Fill, tuple[int, ...]]] = [
    (Orthogonal(2.0), (60, 50)),
    (Orthogonal(2.0), (50, 60)),
    (Orthogonal(0.5, axis=1), (20, 30, 3)),
    (DeltaOrthogonal(2.0), (40, 30, 3, 3)),
    (DeltaOrthogonal(2.0, axis=1), (30, 40, 3)),
    (Identity(3.0), (20, 30)),
    (Identity(-3.0), (30, 20)),
    (Dirac(2), (8, 6, 3)),
    (Dirac(), (4, 6, 3, 3)),
    (Sparse(0.3, 2.0), (100, 90)),
    (Sparse(1.0, 2.0), (10, 9)),
    (Blockwise((Orthogonal(), Orthogonal()), (30, 30)), (60, 30)),
]


@pytest.mark.parametrize(("fill", "shape"), CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_expected_moments(fill: Fill, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    expected = fill.parts(shape) if dtype.is_complex else fill.moments(shape)
    values = drawn(fill, shape, dtype)
    held = (torch.view_as_real(values) if dtype.is_complex else values).double()
    assert expected is not None
    assert expected.mean is not None
    assert expected.std is not None
    error = 6 * expected.std / math.sqrt(held.numel())
    assert float(held.mean()) == pytest.approx(expected.mean, abs=error + 1e-7)
    spread = error * math.sqrt((expected.kurtosis - 1) / 4)
    assert float(held.std(correction=0)) == pytest.approx(expected.std, abs=spread + 1e-7)
    if expected.min is not None and expected.max is not None:
        assert expected.min - 1e-6 <= held.min() <= held.max() <= expected.max + 1e-6


@settings(max_examples=60)
@given(matrix_fills(), st.data(), st.integers(1, 6), st.integers(1, 6))
def test_a_slice_of_a_matrix_is_the_slice_of_the_whole(
    fill: Fill, data: st.DataObject, rows: int, columns: int
) -> None:
    box = data.draw(slices((rows, columns)))
    shard = part("w", (rows, columns), box)
    fill.write(shard, Keyed(9))
    assert torch.equal(shard.local, drawn(fill, (rows, columns), seed=9)[box])


@settings(max_examples=60)
@given(kernel_fills(), st.data(), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_a_slice_of_a_kernel_is_the_slice_of_the_whole(
    fill: Fill, data: st.DataObject, half: int, inputs: int, size: int
) -> None:
    shape = (2 * half, min(inputs, 2 * half), size)
    box = data.draw(slices(shape))
    shard = part("w", shape, box)
    fill.write(shard, Keyed(9))
    assert torch.equal(shard.local, drawn(fill, shape, seed=9)[box])


@settings(max_examples=60)
@given(matrix_fills(), st.data(), st.integers(1, 3), st.integers(1, 4))
def test_a_slice_of_blocks_of_matrices_is_the_slice_of_the_whole(
    fill: Fill, data: st.DataObject, rows: int, columns: int
) -> None:
    """The gates of an LSTM, each a matrix of its own."""
    gates = Blockwise((fill,) * 4, (rows,) * 4)
    box = data.draw(slices((4 * rows, columns)))
    shard = part("w", (4 * rows, columns), box)
    gates.write(shard, Keyed(9))
    assert torch.equal(shard.local, drawn(gates, (4 * rows, columns), seed=9)[box])


def test_each_block_is_orthogonal_and_none_is_another() -> None:
    gates = drawn(Blockwise((Orthogonal(),) * 3, (5,) * 3), (15, 5)).view(3, 5, 5)
    for gate in gates:
        torch.testing.assert_close(gate @ gate.T, torch.eye(5), atol=1e-6, rtol=0)
    assert not torch.allclose(gates[0], gates[1], atol=0.1)


def test_a_part_that_is_not_here_costs_nothing() -> None:
    """A generator that is not moved has not been drawn from."""
    source = torch.Generator().manual_seed(0)
    before = source.get_state()
    Orthogonal().write(Shard("w", torch.empty(0, 5), (5, 5), (5, 0)), Global(source))
    assert torch.equal(source.get_state(), before)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Orthogonal(math.inf), ValueError, "gain must be finite"),
        (lambda: WRONG.Orthogonal("1"), TypeError, "gain must be a number, but got '1'"),
        (lambda: Orthogonal(axis=-1), ValueError, "axis must be a whole number of at least 0, but got -1"),
        (lambda: WRONG.Orthogonal(axis=0.5), ValueError, r"axis must be a whole number of at least 0, but got 0\.5"),
        (lambda: DeltaOrthogonal(axis=2), ValueError, "axis must be 0 or 1, but got 2"),
        (lambda: DeltaOrthogonal(math.nan), ValueError, "gain must not be NaN"),
        (lambda: Identity(math.inf), ValueError, "gain must be finite"),
        (lambda: Dirac(0), ValueError, "groups must be a whole number of at least 1, or 'layer', but got 0"),
        (
            lambda: WRONG.Dirac(1.0),
            ValueError,
            r"groups must be a whole number of at least 1, or 'layer', but got 1\.0",
        ),
        (lambda: Dirac(True), ValueError, "groups must be a whole number of at least 1, or 'layer', but got True"),
        (lambda: Sparse(1.5), ValueError, r"sparsity must lie in \[0, 1\], but got 1\.5"),
        (lambda: Sparse(0.5, -1.0), ValueError, "std must be at least 0"),
    ],
)
def test_bad_arguments(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("fill", "shape", "message"),
    [
        (Orthogonal(), (5,), r"Orthogonal needs at least 2 dimensions, but the shape is \(5,\)"),
        (Orthogonal(axis=2), (5, 5), r"Orthogonal has axis=2, but the shape is \(5, 5\)"),
        (DeltaOrthogonal(), (5, 5), "DeltaOrthogonal needs a kernel of 3 to 5 dimensions"),
        (DeltaOrthogonal(), (3, 5, 3), "DeltaOrthogonal needs at least as many outputs as inputs"),
        (DeltaOrthogonal(axis=1), (5, 3, 3), "DeltaOrthogonal needs at least as many outputs as inputs"),
        (Identity(), (5, 5, 1), r"Identity needs 2 dimensions, but the shape is \(5, 5, 1\)"),
        (Dirac(), (5, 5), "Dirac needs a kernel of 3 to 5 dimensions"),
        (Dirac(2), (5, 5, 3), r"Dirac has groups=2, which does not divide dimension 0 of \(5, 5, 3\)"),
        (Sparse(0.5), (5,), r"Sparse needs 2 dimensions, but the shape is \(5,\)"),
    ],
)
def test_shapes_that_do_not_fit(fill: Fill, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fill.check(shape, torch.float32)


@pytest.mark.parametrize(
    ("fill", "shape"),
    [
        (Orthogonal(1e5), (4, 4)),
        (DeltaOrthogonal(1e5), (4, 4, 3)),
        (Identity(-1e5), (4, 4)),
        (Sparse(0.5, 1e5), (4, 4)),
    ],
)
def test_values_that_do_not_fit(fill: Fill, shape: tuple[int, ...]) -> None:
    fill.check(shape, torch.float32)
    with pytest.raises(ValueError, match="goes beyond 65504, the largest number of float16"):
        fill.check(shape, torch.float16)


@given(matrix_fills() | kernel_fills())
def test_a_matrix_is_a_value(fill: Fill) -> None:
    assert eval(repr(fill), vars(torchinit.initializers)) == fill


def test_text_for_tables() -> None:
    assert str(Orthogonal()) == "Orthogonal()"
    assert str(Orthogonal(math.sqrt(2), 1)) == "Orthogonal(gain=1.41421, axis=1)"
    assert str(Sparse(0.9)) == "Sparse(0.9)"
    assert str(Blockwise((Orthogonal(),) * 4, (2,) * 4)) == "4 x Orthogonal()"


def test_an_lstm_on_torchs_generator_gate_by_gate() -> None:
    """What hand-written code does: one orthogonal_ for each gate."""

    def by_hand(weight: Tensor) -> None:
        for gate in weight.chunk(4):
            nn.init.orthogonal_(gate)

    assert_same_bits(Blockwise((Orthogonal(),) * 4, (6,) * 4), by_hand, torch.zeros(24, 6))
    assert_same_bits(Blockwise((Normal(0.0, 0.1), Normal(1.0, 2.0)), (3, 3)), _two_normals, torch.zeros(6, 5))


def _two_normals(weight: Tensor) -> None:
    nn.init.normal_(weight[:3], 0.0, 0.1)
    nn.init.normal_(weight[3:], 1.0, 2.0)
