"""Fills: the bits of torch.nn.init on torch's generator, SciPy's moments, and what is refused before any write."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

import torchinit
from tests.stats import Cdf, assert_distribution, assert_mean, assert_std
from tests.strategies import elementwise_fills, label, part, shapes, slices
from torchinit import Constant, Normal, TruncNormal, Uniform
from torchinit.initializers import Blockwise, Fill, Initializer, Padded
from torchinit.initializers.elementwise import Drawn, write_each
from torchinit.model import Shard
from torchinit.noise import Global, Keyed

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
DTYPES = [*FLOATS, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2]
LARGE = (300, 400)


def drawn(fill: Fill, shape: tuple[int, ...] = LARGE, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """The whole of a tensor called ``w``."""
    tensor = torch.full(shape, math.nan, dtype=torch.float32).to(dtype)
    fill.write(Shard.whole("w", tensor), Keyed(seed))
    return tensor


def assert_same_bits(fill: Fill, theirs: Callable[[Tensor], Any], tensor: Tensor) -> None:
    """The fill on torch's generator makes of a tensor what torch's own function makes of its copy."""
    ours, expected = tensor.clone(), tensor.clone()
    torch.manual_seed(1)
    fill.write(Shard.whole("w", ours), Global())
    mine = torch.get_rng_state()
    torch.manual_seed(1)
    with torch.no_grad():
        theirs(expected)
    assert torch.equal(ours, expected)
    assert torch.equal(mine, torch.get_rng_state()), "the generator is elsewhere"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "tensor", [torch.zeros(17, 23), torch.zeros(23, 17).T, torch.zeros(5), torch.zeros(())], ids=label
)
@pytest.mark.parametrize(
    ("fill", "theirs"),
    [
        (Constant(0.3), lambda t: nn.init.constant_(t, 0.3)),
        (Normal(0.5, 2.0), lambda t: nn.init.normal_(t, 0.5, 2.0)),
        (Uniform(-0.3, 0.7), lambda t: nn.init.uniform_(t, -0.3, 0.7)),
        (TruncNormal(0.1, 0.5, -0.5, 1.0), lambda t: nn.init.trunc_normal_(t, 0.1, 0.5, -0.5, 1.0)),
        (TruncNormal(1.0, 0.5, -2.0, 2.0, unit="sigma"), lambda t: nn.init.trunc_normal_(t, 1.0, 0.5, 0.0, 2.0)),
    ],
    ids=label,
)
def test_bits_of_torch(fill: Fill, theirs: Callable[[Tensor], Tensor], tensor: Tensor, dtype: torch.dtype) -> None:
    assert_same_bits(fill, theirs, tensor.to(dtype))


def test_bits_of_torch_complex() -> None:
    assert_same_bits(Normal(0.5, 2.0), lambda t: nn.init.normal_(t, 0.5, 2.0), torch.zeros(9, 9, dtype=torch.complex64))


CDFS: list[tuple[Fill, Any]] = [
    (Normal(1.0, 0.5), stats.norm(1.0, 0.5)),
    (Uniform(-2.0, 3.0), stats.uniform(-2.0, 5.0)),
    (TruncNormal(0.0, 1.0, -2.0, 2.0), stats.truncnorm(-2, 2)),
    (TruncNormal(1.0, 0.5, 0.0, 10.0), stats.truncnorm(-2, 18, loc=1.0, scale=0.5)),
    (TruncNormal(0.0, 1.0, 4.0, 9.0), stats.truncnorm(4, 9)),
    (TruncNormal(2.0, 0.1, -1.0, 3.0, unit="sigma"), stats.truncnorm(-1, 3, loc=2.0, scale=0.1)),
    (TruncNormal(0.0, 1.0, -math.inf, 0.5), stats.truncnorm(-math.inf, 0.5)),
]


@pytest.mark.parametrize(("fill", "oracle"), CDFS, ids=label)
def test_moments_and_distribution_are_scipys(fill: Drawn, oracle: Any) -> None:
    moments = fill.moments()
    assert moments is not None
    assert moments.mean == pytest.approx(oracle.mean(), abs=1e-12)
    assert moments.std == pytest.approx(oracle.std())
    low, high = oracle.support()
    assert (moments.min, moments.max) == tuple(end if math.isfinite(end) else None for end in (low, high))
    assert moments.kurtosis >= oracle.stats("k") + 3 - 1e-6, "the tolerance of a sample's std must not be too small"
    cdf: Cdf = oracle.cdf
    near = low - 2 * oracle.std() <= 1.0  # torch warns of a mean far outside of the bounds
    for values in (drawn(fill), drawn_by_torch(fill)) if near else (drawn(fill),):
        assert_mean(values, oracle.mean(), oracle.std())
        assert_std(values, oracle.std(), moments.kurtosis)
        assert_distribution(values, cdf)


def drawn_by_torch(fill: Fill) -> Tensor:
    tensor = torch.empty(LARGE)
    fill.write(Shard.whole("w", tensor), Global(torch.Generator().manual_seed(0)))
    return tensor


def test_corrected_truncation_has_the_std_asked_for() -> None:
    """JAX's and Keras's constant, the std of a normal cut at two sigmas."""
    fill = TruncNormal(0.0, 0.02, -2.0, 2.0, unit="sigma", corrected=True)
    assert fill.sigma == pytest.approx(0.02 / 0.87962566103423978, rel=1e-15)
    moments = fill.moments()
    assert moments.std == pytest.approx(0.02)
    assert moments.max == pytest.approx(2 * 0.02 / 0.87962566103423978)
    assert_std(drawn(fill), 0.02)


@given(elementwise_fills(), st.data(), shapes(1, 4), st.sampled_from(FLOATS), st.integers(0, 2**64 - 1))
def test_a_slice_drawn_alone_is_the_slice_of_the_whole(
    fill: Fill, data: st.DataObject, shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    box = data.draw(slices(shape))
    shard = part("w", shape, box, dtype)
    fill.write(shard, Keyed(seed))
    assert torch.equal(shard.local, drawn(fill, shape, dtype, seed)[box])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "fill", [Constant(0.5), Normal(0.0, 0.02), Uniform(-0.1, 0.1), TruncNormal(0.0, 0.02, -0.04, 0.04)]
)
def test_every_dtype(fill: Fill, dtype: torch.dtype) -> None:
    fill.check(LARGE, dtype)
    values = drawn(fill, dtype=dtype)
    expected = fill.parts(LARGE) if dtype.is_complex else fill.moments(LARGE)
    assert expected is not None
    assert expected.mean is not None
    assert expected.std is not None
    coarse = torch.finfo(dtype).eps * (expected.std + abs(expected.mean))
    held = torch.view_as_real(values) if dtype.is_complex else values.double()
    assert abs(float(held.mean()) - expected.mean) < 6 * expected.std / math.sqrt(held.numel()) + coarse
    assert abs(float(held.std()) - expected.std) < 6 * expected.std / math.sqrt(held.numel()) + coarse


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_values_are_drawn_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    assert torch.equal(drawn(Normal(0.0, 0.02), dtype=dtype), drawn(Normal(0.0, 0.02)).to(dtype))


def test_tensors_that_do_not_lie_row_by_row() -> None:
    """The values belong to the index, wherever the memory is."""
    plain = drawn(Normal(), (4, 6))
    for view in (torch.zeros(6, 4).T, torch.zeros(4, 12)[:, ::2], torch.zeros(4, 6, 2)[..., 1]):
        Normal().write(Shard.whole("w", view), Keyed(0))
        assert torch.equal(view, plain)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
@pytest.mark.parametrize("noise", [Keyed(0), Global()])
def test_nothing_to_write(shape: tuple[int, ...], noise: torchinit.noise.Noise) -> None:
    for fill in (Constant(1.0), Normal(), Uniform(), TruncNormal()):
        fill.write(Shard.whole("w", torch.empty(shape)), noise)


@pytest.mark.parametrize("noise", [Keyed(0), Global()])
def test_a_truncation_without_spread_is_its_mean(noise: torchinit.noise.Noise) -> None:
    tensor = torch.empty(5)
    fill = TruncNormal(0.5, 0.0, 0.0, 1.0)
    fill.write(Shard.whole("w", tensor), noise)
    assert tensor.tolist() == [0.5] * 5
    assert (fill.moments().mean, fill.moments().std) == (0.5, 0.0)


def test_blocks_side_by_side() -> None:
    fill = Blockwise((Constant(1.0), Normal(0.0, 0.1), Constant(2.0)), (2, 3, 1), axis=1)
    values = drawn(fill, (4, 6))
    assert torch.equal(values[:, :2], torch.ones(4, 2))
    assert torch.equal(values[:, 2:5], drawn(Normal(0.0, 0.1), (4, 6))[:, 2:5])
    assert torch.equal(values[:, 5:], torch.full((4, 1), 2.0))


@given(st.data(), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.lists(st.integers(1, 3), max_size=2))
def test_a_slice_of_blocks_is_the_slice_of_the_whole(data: st.DataObject, sizes: list[int], rest: list[int]) -> None:
    axis = data.draw(st.integers(0, len(rest)))
    shape = (*rest[:axis], sum(sizes), *rest[axis:])
    fill = Blockwise(tuple(data.draw(elementwise_fills()) for _ in sizes), tuple(sizes), axis)
    box = data.draw(slices(shape))
    shard = part("w", shape, box)
    fill.write(shard, Keyed(5))
    assert torch.equal(shard.local, drawn(fill, shape, seed=5)[box])


@given(st.data(), elementwise_fills(), shapes(1, 3))
def test_a_slice_of_a_padded_table_is_the_slice_of_the_whole(
    data: st.DataObject, inner: Fill, shape: tuple[int, ...]
) -> None:
    fill = Padded(inner, data.draw(st.integers(0, shape[0] - 1)))
    box = data.draw(slices(shape))
    shard = part("w", shape, box)
    fill.write(shard, Keyed(5))
    whole = drawn(fill, shape, seed=5)
    assert torch.equal(shard.local, whole[box])
    assert not whole[fill.row].any()


@pytest.mark.parametrize(
    "fill",
    [
        Blockwise((Normal(0.0, 0.1), Normal(1.0, 2.0), Constant(0.0)), (100, 150, 50)),
        Blockwise((Normal(0.0, 0.1), Normal(3.0, 0.2)), (100, 300), axis=1),
        Padded(Normal(1.0, 0.1), 7),
    ],
    ids=label,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_moments_of_composites(fill: Fill, dtype: torch.dtype) -> None:
    """Against a draw: the shares of the parts are exact, so the parts' own errors bound the whole's."""
    expected = fill.parts(LARGE) if dtype.is_complex else fill.moments(LARGE)
    values = drawn(fill, dtype=dtype)
    held = torch.view_as_real(values) if dtype.is_complex else values
    assert expected is not None
    assert expected.mean is not None
    assert expected.std is not None
    assert_mean(held, expected.mean, expected.std)
    assert_std(held, expected.std, expected.kurtosis)
    if expected.min is not None:
        assert expected.min <= held.min()


def test_a_padding_row_of_unlike_rows_has_no_known_moments() -> None:
    assert Padded(Blockwise((Normal(), Constant(4.0)), (2, 1)), 2).moments((3, 4)) is None


WRONG: Any = torchinit.initializers  # without types, to say what is wrong


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: WRONG.Constant("1"), TypeError, "val must be a number, but got '1'"),
        (lambda: Constant(True), TypeError, "val must be a number, but got True"),
        (lambda: Constant(math.nan), ValueError, "val must not be NaN"),
        (lambda: Normal(mean=math.inf), ValueError, "mean must be finite, but got inf"),
        (lambda: Normal(std=-1.0), ValueError, r"std must be at least 0, but got -1\.0"),
        (lambda: WRONG.Normal(std=None), TypeError, "std must be a number, but got None"),
        (lambda: Uniform(1.0, 0.0), ValueError, r"Uniform needs a <= b, but got a=1\.0, b=0\.0"),
        (lambda: Uniform(-math.inf, 0.0), ValueError, "a must be finite, but got -inf"),
        (lambda: TruncNormal(std=-0.1), ValueError, "std must be at least 0"),
        (lambda: TruncNormal(a=math.nan), ValueError, "a must not be NaN"),
        (lambda: TruncNormal(a=2.0, b=2.0), ValueError, "TruncNormal needs a < b"),
        (lambda: WRONG.TruncNormal(unit="inch"), ValueError, "unit must be 'value' or 'sigma', but got 'inch'"),
        (lambda: TruncNormal(corrected=True), ValueError, "corrected=True needs unit='sigma' and a == -b"),
        (lambda: TruncNormal(5.0, 0.0, -1.0, 1.0), ValueError, r"with std=0 the mean must lie in \[a, b\]"),
        (lambda: Blockwise((Normal(),), (1, 2)), ValueError, "1 fills do not go with 2 sizes"),
        (lambda: Blockwise((), ()), ValueError, "sizes and axis of blocks must be whole numbers"),
        (lambda: Blockwise((Normal(),), (0,)), ValueError, "sizes and axis of blocks must be whole numbers"),
        (lambda: Blockwise((Normal(),), (1,), -1), ValueError, "sizes and axis of blocks must be whole numbers"),
        (lambda: Padded(Normal(), -1), ValueError, "row must be a whole number of at least 0, but got -1"),
    ],
)
def test_bad_arguments(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("fill", "shape", "dtype", "message"),
    [
        (Constant(1e6), (2,), torch.float16, r"Constant\(1e\+06\) goes beyond 65504, the largest number of float16"),
        (Constant(-1e6), (2,), torch.float16, "goes beyond 65504"),
        (Constant(500.0), (2,), torch.float8_e4m3fn, "goes beyond 448, the largest number of float8_e4m3fn"),
        (Normal(0.0, 2e4), (2,), torch.float16, r"Normal\(std=20000\) goes beyond 65504"),
        (Uniform(0.0, 1e5), (2,), torch.float16, r"Uniform\(b=100000\) goes beyond 65504"),
        (TruncNormal(0.0, 1e5, -2e5, 2e5), (2,), torch.float16, "goes beyond 65504"),
        (Normal(0.0, 1e39), (2,), torch.float64, "too large for float32"),
        (TruncNormal(0.0, 1.0, 50.0, 60.0), (2,), torch.float32, "has no mass between its bounds"),
        (
            Blockwise((Normal(), Normal()), (2, 2)),
            (5,),
            torch.float32,
            "do not make up dimension 0",
        ),
        (Blockwise((Normal(),), (2,), 1), (2,), torch.float32, r"do not make up dimension 1 of the shape \(2,\)"),
        (Blockwise((Constant(1e6),), (2,)), (2,), torch.float16, "goes beyond 65504"),
        (Padded(Normal(), 2), (2, 3), torch.float32, r"there is no row 2 in the shape \(2, 3\)"),
        (Padded(Normal(), 0), (), torch.float32, "there is no row 0"),
        (Padded(Constant(1e6), 0), (2,), torch.float16, "goes beyond 65504"),
    ],
)
def test_what_a_tensor_cannot_hold(fill: Fill, shape: tuple[int, ...], dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fill.check(shape, dtype)


@pytest.mark.parametrize(
    "fill",
    [
        Constant(-math.inf),
        Constant(65504.0),
        TruncNormal(0.0, 1.0, -1e9, 1e9),  # no value comes near these bounds
        TruncNormal(0.0, 1.0, 5.0, math.inf),
        Normal(0.0, 1e4),
    ],
)
def test_what_float16_can_hold(fill: Fill) -> None:
    fill.check((2,), torch.float16)
    assert not drawn(fill, dtype=torch.float16).isnan().any()


@pytest.mark.parametrize(
    ("fill", "text"),
    [
        (Constant(1.0), "Constant(1)"),
        (Normal(std=0.02), "Normal(std=0.02)"),
        (Normal(), "Normal()"),
        (Normal(0.1, 1 / 3), "Normal(mean=0.1, std=0.333333)"),
        (TruncNormal(std=0.02, unit="sigma"), "TruncNormal(std=0.02, unit='sigma')"),
        (Blockwise((Normal(),) * 4, (1,) * 4), "4 x Normal()"),
        (Blockwise((Normal(), Constant(0.0), Constant(0.0)), (1, 2, 3)), "Normal() + 2 x Constant(0)"),
        (Padded(Normal(std=0.02), 1), "Normal(std=0.02), row 1 zero"),
    ],
)
def test_text_for_tables(fill: Fill, text: str) -> None:
    assert str(fill) == text


@given(elementwise_fills())
def test_a_fill_is_a_value(fill: Fill) -> None:
    assert eval(repr(fill), vars(torchinit.initializers)) == fill
    assert pickle.loads(pickle.dumps(fill)) == fill == copy.deepcopy(fill)
    assert hash(copy.deepcopy(fill)) == hash(fill)
    assert isinstance(fill, Initializer)


def test_a_fill_of_ones_own_may_say_nothing_of_its_moments() -> None:
    class Ramp(Fill):
        def write(self, shard: Shard, noise: torchinit.noise.Noise) -> None:
            shard.local.copy_(torch.arange(shard.local.numel()).view_as(shard.local))

    assert Ramp().moments((3,)) is None
    assert Ramp().parts((3,)) is None
    assert drawn(Ramp(), (3,)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_constants_are_those_of_single_writes(dtype: torch.dtype) -> None:
    """To the last bit, the sign of a zero included, and with as many versions."""
    values = (0.0, -0.0, 0, 1.0, 0.1, -2.5, 1 / 3)
    fills = [Constant(value) for value in values] + [Constant(0.1)]

    def tensors() -> list[Tensor]:
        plain = [torch.full((2, 3), 7.0).to(dtype) for _ in fills]
        turned, cut = torch.full((3, 2), 7.0).to(dtype).T, torch.full((4, 5), 7.0).to(dtype)[1:3, ::2]
        wrapped = torch.full((2,), 7.0).to(dtype).as_subclass(Other)
        return [*plain, turned, cut, nn.Parameter(torch.ones((), dtype=dtype)), wrapped, torch.empty(0, dtype=dtype)]

    ours, theirs = tensors(), tensors()
    several = [*fills, *fills[:1], *fills[4:5], *fills[4:5], *fills[3:4], *fills[:1]]
    with torch.no_grad():
        write_each([(fill, Shard.whole("w", out)) for fill, out in zip(several, ours, strict=True)], Keyed(0))
        for fill, out in zip(several, theirs, strict=True):
            out.fill_(fill.val)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.untyped_storage().tolist() == other.untyped_storage().tolist()
        assert mine._version == other._version


class Other(Tensor):
    """A class that may keep its values elsewhere."""
