"""Complex draws in discs: their distribution by distance and angle, their moments by quadrature, their parts."""

from __future__ import annotations

import cmath
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

import torchinit
from tests.stats import assert_distribution
from torchinit import LeCun, Uniform, Xavier
from torchinit.initializers import Fill, Scaled, TruncNormal, VarianceScaling
from torchinit.initializers.elementwise import Disc
from torchinit.model import Shard, Site
from torchinit.noise import Global, Keyed, Noise

LARGE = (300, 200)
NOISES: list[Noise] = [Keyed(3), Global(torch.Generator().manual_seed(3))]


def drawn(
    fill: Fill, noise: Noise | None = None, dtype: torch.dtype = torch.complex64, shape: tuple[int, ...] = LARGE
) -> Tensor:
    values = torch.empty(shape, dtype=dtype)
    fill.check(shape, dtype)
    fill.write(Shard.whole("weight", values), noise or Keyed(3))
    return values


def by_distance(radius: float, sigma: float, steps: int = 200_001) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances, and the density of the complex normal (sigma: inf for uniform) there, by its definition."""
    distances = np.linspace(0, min(radius, 9 * sigma), steps)
    density = distances * np.exp(-((distances / sigma) ** 2))
    return distances, density / np.trapezoid(density, distances)


FILLS = [
    (Uniform(-0.5, 0.5), 0.5, math.inf),
    (TruncNormal(std=0.3, a=-0.4, b=0.4), 0.4, 0.3),
    (TruncNormal(std=2.0, a=-2, b=2, unit="sigma"), 4.0, 2.0),
    (TruncNormal(std=2.0, a=-0.01, b=0.01), 0.01, 2.0),
    (TruncNormal(std=0.3, a=-math.inf, b=math.inf), math.inf, 0.3),
]


@pytest.mark.parametrize("noise", NOISES, ids=["keyed", "torch"])
@pytest.mark.parametrize(("fill", "radius", "sigma"), FILLS, ids=str)
def test_distances_and_angles(fill: Fill, radius: float, sigma: float, noise: Noise) -> None:
    values = drawn(fill, noise)
    distances, density = by_distance(radius, sigma)
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2) * (distances[1] - distances[0])])
    assert_distribution(values.abs(), lambda x: np.interp(x, distances, mass))
    assert_distribution(values.angle(), lambda x: (x + math.pi) / (2 * math.pi))
    # Distance and angle tell nothing of each other: the far half has its angles as the near one.
    far = values.abs() > values.abs().median()
    assert_distribution(values[far].angle(), lambda x: (x + math.pi) / (2 * math.pi))
    assert float(values.abs().max()) <= radius * (1 + 1e-6)


@pytest.mark.parametrize(("fill", "radius", "sigma"), FILLS, ids=str)
def test_moments_by_quadrature(fill: Fill, radius: float, sigma: float) -> None:
    distances, density = by_distance(radius, sigma)
    square, fourth = (float(np.trapezoid(density * distances**power, distances)) for power in (2, 4))
    parts = fill.parts(LARGE)
    assert parts is not None
    assert parts.std == pytest.approx(math.sqrt(square / 2), rel=1e-5)
    assert parts.kurtosis == pytest.approx(1.5 * fourth / square**2, rel=1e-4)  # E cos^4 = 3/8
    assert (parts.mean, parts.max) == (0, radius if math.isfinite(radius) else None)


@given(st.floats(1e-8, 1e4))
def test_moments_are_continuous(ratio: float) -> None:
    here, beside = Disc(math.sqrt(ratio), 1.0).parts(), Disc(math.sqrt(ratio) * 1.0001, 1.0).parts()
    assert here.std is not None
    assert beside.std is not None
    assert 1.9 < here.kurtosis < 3.1
    assert here.std * 0.9999 <= beside.std <= here.std * 1.0002


@pytest.mark.parametrize(
    "init", [Xavier(distribution="uniform"), LeCun(), LeCun("uniform"), VarianceScaling(2.0, "fan_avg", "uniform")]
)
def test_formulas_keep_the_variance(init: Any) -> None:
    site = Site("weight", LARGE, dtype=torch.complex64)
    std = replace(init, distribution="normal").resolve(site).std
    fill = init.resolve(site)
    seen = math.sqrt(float((drawn(fill).abs().double() ** 2).mean()))
    assert seen == pytest.approx(std, rel=6 / math.sqrt(2 * math.prod(LARGE)))


def test_the_values_by_their_parts() -> None:
    """Two words a number: the first tells the distance, the second the angle; in Python's own complex arithmetic."""
    words = torch.empty(6, 4, 2)
    Keyed(5).fill(Shard.whole("weight", words), "uniform", (0.0, 1.0))
    for fill, square in (
        (Uniform(-3, 3), lambda u: 9 * u),
        (TruncNormal(std=2, a=-3, b=3), lambda u: -4 * math.log1p(u * math.expm1(-9 / 4))),
    ):
        for dtype in (torch.complex64, torch.complex128):
            values = drawn(fill, Keyed(5), dtype, (6, 4))
            for value, (u, v) in zip(values.flatten().tolist(), words.view(-1, 2).tolist(), strict=True):
                assert value == pytest.approx(cmath.rect(math.sqrt(square(u)), 2 * math.pi * v), rel=3e-7)


@pytest.mark.parametrize("fill", [Uniform(-0.5, 0.5), TruncNormal(std=0.3, a=-0.4, b=0.4)], ids=str)
@given(rows=st.tuples(st.integers(0, 6), st.integers(0, 6)), columns=st.tuples(st.integers(0, 5), st.integers(0, 5)))
def test_a_slice_drawn_alone_is_that_of_the_whole(fill: Fill, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    (top, bottom), (left, right) = sorted(rows), sorted(columns)
    local = torch.empty(bottom - top, right - left, dtype=torch.complex64)
    fill.write(Shard("weight", local, shape=(6, 5), start=(top, left)), Keyed(3))
    assert torch.equal(local, drawn(fill, shape=(6, 5))[top:bottom, left:right])


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_complex128_holds_the_values_of_complex64_and_half_is_rounded_once() -> None:
    fill = Uniform(-0.5, 0.5)
    single = drawn(fill)
    assert torch.equal(drawn(fill, dtype=torch.complex128).to(torch.complex64), single)
    half = torch.view_as_real(drawn(fill, dtype=torch.complex32))
    assert torch.equal(half, torch.view_as_real(single).half())


def test_a_model() -> None:
    layer = nn.Linear(300, 200, dtype=torch.complex64)
    recipe = [{"type": "Xavier", "distribution": "uniform", "name": "weight"}, {"type": "Zeros", "name": "bias"}]
    made = torchinit.plan(layer, recipe)
    assert f"{math.sqrt(2 / 500):.4g}" in str(made)
    report = torchinit.initialize(layer, recipe, seed=0).assert_ok(complete=True)
    assert report["weight"].measured is not None
    twice = torchinit.Rule("weight", Scaled(Uniform(-1, 1), 2.0))
    torchinit.initialize(layer, twice, seed=0).assert_ok()
    assert 1.9 < float(layer.weight.detach().abs().max()) < 2.0001
    constant = torchinit.Rule("weight", TruncNormal(std=0, a=-1, b=1))
    torchinit.initialize(layer, constant, seed=0).assert_ok()
    assert not layer.weight.any()


@pytest.mark.parametrize(
    ("fill", "text"),
    [
        (Uniform(0, 1), r"a complex tensor takes a disc around 0, so the bounds must be -r and r, but got Uniform\("),
        (TruncNormal(std=1, a=-1, b=2), "the bounds must be -r and r, but got TruncNormal"),
        (TruncNormal(mean=1, std=1), r"a complex tensor takes a disc around 0, but TruncNormal\(.* has another mean"),
        (Uniform(-1e39, 1e39), "goes beyond"),
    ],
)
def test_what_is_no_disc(fill: Fill, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        fill.check((2, 2), torch.complex64)
