"""Tables: values by place, against the formulas of their papers written as loops, and against NumPy."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torchinit
from tests.initializers.test_elementwise import FLOATS, drawn
from tests.strategies import label, part, slices
from torchinit import Name, Rule, RunError, Uniform
from torchinit.errors import PlanError
from torchinit.initializers import (
    AlibiSlopes,
    Bilinear,
    Blocks,
    DeformableRing,
    Fill,
    FromIndex,
    Mapped,
    Ramp,
    RepeatedFill,
    SinCos,
    Stacked,
)
from torchinit.model import Site
from torchinit.noise import Keyed

WRONG: Any = torchinit.initializers  # without types, to say what is wrong

TABLES: list[tuple[Fill, tuple[int, ...]]] = [
    (Ramp(-1.0, 3.0), (5, 7)),
    (Ramp(1.0, 9.0, axis=0), (9, 2)),
    (Ramp(1.0, 1e-4, spacing="geometric", endpoint=False), (16,)),
    (Ramp(-5.0, 3.0, power=0.7), (2, 11)),
    (SinCos(), (13, 8)),
    (SinCos(order="halves", endpoint=True), (2, 13, 8)),
    (SinCos(grid=(3, 5), prefix=2), (17, 12)),
    (SinCos(grid=(3, 5), order="halves"), (1, 15, 8)),
    (AlibiSlopes(), (12,)),
    (AlibiSlopes(axis=0), (8, 1, 1)),
    (Bilinear(), (6, 6, 4, 3)),
    (Bilinear(), (6, 1, 5)),
    (DeformableRing(8, 2, 3), (96,)),
    (FromIndex(lambda i, j: torch.log(1 + i) - j / 3), (7, 9)),
    (RepeatedFill(Uniform(-1.0, 1.0), 3), (9, 4)),
]


@given(st.sampled_from(TABLES), st.data(), st.sampled_from(FLOATS), st.integers(0, 2**64 - 1))
def test_a_part_has_the_values_of_the_whole(
    case: tuple[Fill, tuple[int, ...]], data: st.DataObject, dtype: torch.dtype, seed: int
) -> None:
    fill, shape = case
    fill.check(shape, dtype)
    box = data.draw(slices(shape))
    here = part("w", shape, box, dtype)
    fill.write(here, Keyed(seed))
    assert torch.equal(here.local, drawn(fill, shape, dtype, seed)[box])


@pytest.mark.parametrize(("fill", "shape"), TABLES, ids=label)
def test_moments_are_those_of_the_values(fill: Fill, shape: tuple[int, ...]) -> None:
    if isinstance(fill, RepeatedFill):  # drawn: the sample has its own
        return
    values, moments = drawn(fill, shape, torch.float64).numpy(), fill.moments(shape)
    assert moments is not None
    assert moments.mean == pytest.approx(values.mean(), abs=1e-12)
    assert moments.std == pytest.approx(values.std())
    assert (moments.min, moments.max) == (values.min(), values.max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_are_rounded_once_to_float32(dtype: torch.dtype) -> None:
    exact = np.linspace(-1.0, 1.0, 1000)
    expected = torch.from_numpy(exact if dtype == torch.float64 else exact.astype(np.float32)).to(dtype)
    torch.testing.assert_close(drawn(Ramp(-1.0, 1.0), (1000,), dtype), expected, rtol=1e-14, atol=1e-16)


@given(st.floats(-50, 50), st.floats(-50, 50), st.integers(1, 50), st.booleans())
def test_a_ramp_is_numpys(start: float, stop: float, n: int, endpoint: bool) -> None:
    fill = Ramp(start, stop, endpoint=endpoint)
    expected = np.linspace(start, stop, n, endpoint=endpoint)
    np.testing.assert_allclose(drawn(fill, (2, n), torch.float64).numpy(), [expected] * 2, atol=1e-12)
    if start * stop > 1e-6:
        fill = Ramp(start, stop, spacing="geometric", endpoint=endpoint)
        expected = np.geomspace(start, stop, n, endpoint=endpoint)
        np.testing.assert_allclose(drawn(fill, (n,), torch.float64).numpy(), expected, rtol=1e-12)


def test_whole_numbers_stay_whole() -> None:
    """The A of Mamba is 1 ... N in every row."""
    for n in range(1, 300):
        assert torch.equal(drawn(Ramp(1.0, float(n)), (n,), torch.float64), torch.arange(1.0, n + 1).double())


def test_a_ramp_with_a_power() -> None:
    """The decay of RWKV at block i of L: -5 + 8 (j / (h - 1))^(0.7 + 1.3 i / (L - 1))."""
    h, index, depth = 10, 2, 6
    site = Site("blocks.2.time_decay", (h,), block=(index, depth))
    rule = {
        "rules": [{"type": "Ramp", "start": -5, "stop": 3, "power": "0.7 + 1.3 * index / (depth - 1)", "name": "**"}]
    }
    plan = torchinit.plans.make_plan([site], torchinit.recipes.to_rules(rule))
    expected = [-5 + 8 * (j / (h - 1)) ** (0.7 + 1.3 * index / (depth - 1)) for j in range(h)]
    np.testing.assert_allclose(drawn(plan[site.name].fill, (h,), torch.float64).numpy(), expected, rtol=1e-14)


def sincos(width: int, position: int, steps: int) -> tuple[list[float], list[float]]:
    rates = [10000 ** (-k / steps) for k in range(width // 2)]
    return [math.sin(position * rate) for rate in rates], [math.cos(position * rate) for rate in rates]


def test_sines_and_cosines() -> None:
    for order, endpoint in (("interleaved", False), ("halves", False), ("halves", True)):
        table = drawn(WRONG.SinCos(order=order, endpoint=endpoint), (9, 10), torch.float64).numpy()
        for position in range(9):
            sin, cos = sincos(10, position, 5 - endpoint)
            expected = [v for pair in zip(sin, cos, strict=True) for v in pair] if order == "interleaved" else sin + cos
            np.testing.assert_allclose(table[position], expected, atol=1e-14)


@pytest.mark.parametrize("first", ["column", "row"])
def test_sines_and_cosines_of_an_image(first: Literal["column", "row"]) -> None:
    rows, columns, prefix, width = 3, 4, 1, 8
    fill = SinCos(grid=(rows, columns), prefix=prefix, order="halves", first=first)
    table = drawn(fill, (prefix + 12, width), torch.float64)
    assert table[:prefix].abs().max() == 0
    for row in range(rows):
        for column in range(columns):
            places = (column, row) if first == "column" else (row, column)
            expected = [value for at in places for half in sincos(width // 2, at, 2) for value in half]
            np.testing.assert_allclose(table[prefix + row * columns + column].numpy(), expected, atol=1e-14)


@pytest.mark.parametrize(
    ("heads", "exponents"),
    [
        (1, [8]),
        (4, [2, 4, 6, 8]),
        (6, [2, 4, 6, 8, 1, 3]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_slopes_of_heads(heads: int, exponents: list[float]) -> None:
    """As the paper's own code gives them."""
    assert drawn(AlibiSlopes(), (heads,)).tolist() == pytest.approx([2.0**-e for e in exponents])


@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("depthwise", [False, True])
def test_a_bilinear_kernel_interpolates(stride: int, depthwise: bool) -> None:
    """A transposed convolution with it maps a plane onto itself, scaled, away from the border."""
    size, padding, channels = 2 * stride - stride % 2, math.ceil((stride - 1) / 2), 3
    layer = nn.ConvTranspose2d(
        channels, channels, size, stride, padding, groups=channels if depthwise else 1, bias=False
    )
    torchinit.initialize(layer, Rule(Name("weight"), Bilinear()), seed=0)
    plane = torch.arange(8.0).view(1, 1, 8, 1) + 3 * torch.arange(8.0) + torch.zeros(1, channels, 1, 1)
    up = layer(plane)[0, 1]
    inside = up[2 * stride : -2 * stride, 2 * stride : -2 * stride]
    assert inside.diff(dim=0).sub(1 / stride).abs().max() < 1e-5
    assert inside.diff(dim=1).sub(3 / stride).abs().max() < 1e-5


def test_the_ring_of_deformable_attention() -> None:
    heads, levels, points = 8, 2, 4
    bias = drawn(DeformableRing(heads, levels, points), (128,), torch.float64).view(heads, levels, points, 2)
    for head in range(heads):
        angle = 2 * math.pi * head / heads
        direction = np.array([math.cos(angle), math.sin(angle)])
        direction /= abs(direction).max()
        for level in range(levels):
            for point in range(points):
                np.testing.assert_allclose(bias[head, level, point].numpy(), direction * (point + 1), atol=1e-12)


def test_tables_in_blocks_and_stacks() -> None:
    """Each block, and each matrix of a stack, is a tensor of its own."""
    blocks = Blocks(Ramp(axis=0), parts=2).resolve(Site("w", (8, 3)))
    stack = Stacked(Ramp(axis=0), in_axis=1, out_axis=2).resolve(Site("w", (2, 3, 5)))
    assert blocks is not None
    assert stack is not None
    assert drawn(blocks, (8, 3))[:, 0].tolist() == pytest.approx([*np.linspace(0, 1, 4)] * 2)
    assert drawn(stack, (2, 3, 5))[1, 0].tolist() == pytest.approx(np.linspace(0, 1, 5))


def test_tables_of_nothing_and_of_too_much() -> None:
    assert drawn(Ramp(), (0, 3)).shape == (0, 3)
    assert Ramp().moments((0, 3)) is None
    assert SinCos().moments((1 << 13, 1 << 13)) is None


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Ramp(math.nan), "start must not be NaN"),
        (lambda: Ramp(power=0), "power must be above 0, but got 0"),
        (lambda: WRONG.Ramp(axis=1.5), "axis must be a whole number, but got 1.5"),
        (lambda: WRONG.Ramp(spacing="log"), "spacing must be one of linear, geometric, but got 'log'"),
        (lambda: Ramp(0, 1, spacing="geometric"), "a geometric ramp stays on one side of zero, but got 0 to 1"),
        (lambda: Ramp(-1, 1, spacing="geometric"), "a geometric ramp stays on one side of zero, but got -1 to 1"),
        (lambda: SinCos(base=0), "base must be above 0, but got 0"),
        (lambda: WRONG.SinCos(order="mixed"), "order must be one of interleaved, halves, but got 'mixed'"),
        (lambda: WRONG.SinCos(first="height"), "first must be one of column, row, but got 'height'"),
        (lambda: WRONG.SinCos(grid=(3,)), r"grid must be two whole numbers, rows and columns, but got \(3,\)"),
        (lambda: SinCos(prefix=-1), "prefix must be a whole number of at least 0, but got -1"),
        (lambda: DeformableRing(0), "heads must be a whole number of at least 1, but got 0"),
    ],
)
def test_arguments_that_cannot_be(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
    with pytest.raises(TypeError, match="FromIndex needs a function of indices, but got 3"):
        WRONG.FromIndex(3)


@pytest.mark.parametrize(
    ("fill", "shape", "dtype", "text"),
    [
        (Ramp(axis=2), (3, 4), torch.float32, r"Ramp has axis=2, but the shape is \(3, 4\)"),
        (AlibiSlopes(), (), torch.float32, r"AlibiSlopes has axis=-1, but the shape is \(\)"),
        (Ramp(), (3,), torch.complex64, "needs a real floating dtype, but got complex64"),
        (SinCos(), (3, 5), torch.float32, r"a last axis that 2 divides, but the shape is \(3, 5\)"),
        (SinCos(grid=(2, 2)), (4, 6), torch.float32, r"a last axis that 4 divides, but the shape is \(4, 6\)"),
        (
            SinCos(grid=(2, 2), prefix=1),
            (4, 8),
            torch.float32,
            r"a grid of 2 x 2 and a prefix of 1 is not the 4 positions of the shape \(4, 8\)",
        ),
        (
            Bilinear(),
            (4, 4),
            torch.float32,
            r"Bilinear needs a kernel of 3 to 5 dimensions, but the shape is \(4, 4\); select k",
        ),
        (Bilinear(), (4, 2, 3, 3), torch.float32, r"but the shape .*; make the layer depthwise \(groups = 4\), or"),
        (DeformableRing(4), (16,), torch.float32, r"DeformableRing\(.*4.*\) is for 32 values, not for \(16,\)"),
    ],
    ids=label,
)
def test_sites_that_do_not_fit(fill: Fill, shape: tuple[int, ...], dtype: torch.dtype, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        fill.check(shape, dtype)
    model = nn.ParameterDict({"w": nn.Parameter(torch.zeros(shape, dtype=dtype))})
    with pytest.raises(PlanError, match=text):
        torchinit.initialize(model, Rule(Name("w"), fill), seed=0)


def test_functions_of_places_that_fail() -> None:
    model = nn.ParameterDict({"a": nn.Parameter(torch.ones(2)), "b": nn.Parameter(torch.ones(3, 4))})

    def forgot(i: torch.Tensor) -> torch.Tensor:
        return i

    for function, text in (
        (forgot, "b: code .*FromIndex.*forgot.* raised TypeError"),
        (lambda i, j: torch.zeros(5), "raised RuntimeError"),
        (lambda i, j: i / 0 * 0, "made NaN"),
    ):
        with pytest.raises(RunError, match=text.removeprefix("b: code ")):
            torchinit.initialize(
                model, [Rule(Name("a"), Uniform(2.0, 3.0)), Rule(Name("b"), FromIndex(function))], seed=0
            )
        assert torch.equal(model["a"], torch.ones(2)), "nothing is written before"


def test_a_function_of_places_is_for_python_only() -> None:
    fill = FromIndex(lambda i: i)
    assert str(fill) == "FromIndex(lambda at test_tables.py:" + str(fill).partition(".py:")[2]
    with pytest.raises(Exception, match="FromIndex"):
        torchinit.recipes.to_rules({"rules": [{"type": "FromIndex", "function": "i", "name": "**"}]})


def test_scaled_tables() -> None:
    torch.testing.assert_close(drawn(Ramp().scaled(-2.0), (5,)), torch.tensor([0.0, -0.5, -1.0, -1.5, -2.0]))
    log = Mapped(Ramp(1.0, 4.0), "log").resolve(Site("A_log", (3, 4)))
    assert log is not None
    np.testing.assert_allclose(
        drawn(log, (3, 4), torch.float64).numpy(), [np.log([1.0, 2.0, 3.0, 4.0])] * 3, rtol=1e-15
    )
