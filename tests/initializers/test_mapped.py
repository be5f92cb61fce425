"""Functions of draws: the distributions by SciPy, the starts of state-space models, chrono, sub-pixel convolutions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import nn
from torch.nn import functional as F

import torchinit
from tests.initializers.test_elementwise import FLOATS, drawn
from tests.stats import assert_distribution, assert_mean, assert_std
from tests.strategies import label, part, slices
from torchinit import Constant, Kaiming, Name, Normal, Orthogonal, PlanError, Rule, TruncNormal, Uniform, initialize
from torchinit.initializers import (
    ICNR,
    Chrono,
    Fill,
    Initializer,
    LogUniform,
    Mapped,
    MappedFill,
    Moments,
    RepeatedFill,
    Scaled,
)
from torchinit.model import Shard, Site
from torchinit.noise import Global, Keyed

WRONG: Any = torchinit.initializers  # without types, to say what is wrong
DT = Mapped(LogUniform(0.001, 0.1), "inverse_softplus", low=1e-4)
"""The bias of dt of Mamba, Mamba-2 and most of their kin."""

DECAY = Mapped(Scaled(Mapped(Uniform(0.81, 0.998), "log"), -0.5), "inverse_softplus")
"""The recurrent parameter p of RecurrentGemma, whose exp(-2 softplus(p)) is uniform."""


def fill_of(init: Initializer, shape: tuple[int, ...]) -> Fill:
    fill = init.resolve(Site("w", shape))
    assert isinstance(fill, Fill)
    return fill


@pytest.mark.parametrize(
    ("init", "back", "oracle"),
    [
        (LogUniform(0.001, 0.1), lambda v: v, stats.loguniform(0.001, 0.1)),
        (Mapped(Uniform(1.0, 16.0), "log"), np.exp, stats.uniform(1.0, 15.0)),
        (DT, lambda v: np.log1p(np.exp(v)), stats.loguniform(0.001, 0.1)),
        (DECAY, lambda v: np.exp(-2 * np.log1p(np.exp(v))), stats.uniform(0.81, 0.188)),
        (Mapped(Normal(0.5, 0.25), "exp"), lambda v: v, stats.lognorm(0.25, scale=math.exp(0.5))),
        (Mapped(Uniform(0.1, 0.9), "logit"), lambda v: 1 / (1 + np.exp(-v)), stats.uniform(0.1, 0.8)),
        (Mapped(TruncNormal(2.0, 0.5, 1.0, 4.0), "log"), np.exp, stats.truncnorm(-2, 4, loc=2.0, scale=0.5)),
    ],
    ids=label,
)
def test_distributions(init: Initializer, back: Any, oracle: Any) -> None:
    """What comes out, mapped back by NumPy, has SciPy's distribution; the moments are those of the integral."""
    fill = fill_of(init, (300, 400))
    values, moments = drawn(fill, dtype=torch.float64), fill.moments((300, 400))
    assert_distribution(torch.from_numpy(back(values.numpy())), oracle.cdf)
    assert moments is not None
    assert moments.mean is not None
    assert moments.std is not None
    assert_mean(values, moments.mean, moments.std)
    assert_std(values, moments.std, moments.kurtosis)
    low, high = (-math.inf if moments.min is None else moments.min, math.inf if moments.max is None else moments.max)
    assert low - 1e-6 <= values.min() <= values.max() <= high + 1e-6


def test_moments_by_integration() -> None:
    fill = fill_of(DT, (8,))

    def dt(u: float) -> float:
        return math.exp(math.log(0.001) + u * math.log(100))

    def bias(u: float) -> float:
        return dt(u) + math.log(-math.expm1(-dt(u)))

    mean = integrate.quad(bias, 0, 1)[0]
    moments = fill.moments((8,))
    assert moments is not None
    assert moments.mean == pytest.approx(mean, rel=1e-6)
    assert moments.std == pytest.approx(math.sqrt(integrate.quad(lambda u: (bias(u) - mean) ** 2, 0, 1)[0]), rel=1e-6)
    assert moments.min == pytest.approx(math.log(math.expm1(0.001)))
    assert moments.max == pytest.approx(math.log(math.expm1(0.1)))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_log_is_finite_in_every_dtype(dtype: torch.dtype) -> None:
    """The logarithm is taken before the value is rounded to 16 bits, which may round a small one to zero."""
    fill = fill_of(Mapped(Uniform(0.0, 16.0), "log", low=1e-30), (200, 100))
    values = drawn(fill, (200, 100), dtype)
    assert values.isfinite().all()
    wide = torch.empty(200, 100, dtype=torch.float64)
    Uniform(0.0, 16.0).write(Shard.whole("w", wide), Keyed(0))
    expected = torch.from_numpy(np.log(np.maximum(wide.numpy(), 1e-30)))
    if dtype == torch.float64:
        torch.testing.assert_close(values, expected, rtol=1e-14, atol=0)
    else:
        assert torch.equal(values, expected.to(torch.float32).to(dtype))


def test_code_by_hand_has_the_same_bits_without_a_seed() -> None:
    ours, theirs = torch.empty(50), torch.empty(50)
    fill_of(Mapped(Uniform(1.0, 16.0), "log"), (50,)).write(
        Shard.whole("A_log", ours), Global(torch.Generator().manual_seed(3))
    )
    theirs.uniform_(1.0, 16.0, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours, theirs.double().log().float(), rtol=0, atol=0)


PARTED: list[tuple[Initializer, tuple[int, ...]]] = [
    (DT, (40,)),
    (DECAY, (5, 8)),
    (Scaled(LogUniform(0.5, 2.0), -3.0), (5, 8)),
    (Chrono(50), (32,)),
    (ICNR(Kaiming()), (16, 3, 2, 2)),
    (ICNR(Orthogonal(), 3), (18, 3, 2, 2)),
]


@given(st.sampled_from(PARTED), st.data(), st.sampled_from(FLOATS), st.integers(0, 2**64 - 1))
def test_a_part_has_the_values_of_the_whole(
    case: tuple[Initializer, tuple[int, ...]], data: st.DataObject, dtype: torch.dtype, seed: int
) -> None:
    init, shape = case
    fill, box = fill_of(init, shape), data.draw(slices(shape))
    here = part("w", shape, box, dtype)
    fill.write(here, Keyed(seed))
    assert torch.equal(here.local, drawn(fill, shape, dtype, seed)[box])


def test_chrono() -> None:
    longest, hidden = 100, 20_000
    bias = drawn(Chrono(longest), (4 * hidden,), torch.float64).view(4, hidden)
    assert torch.equal(bias[0], -bias[1])
    assert bias[2:].abs().max() == 0
    assert_distribution(torch.from_numpy(np.exp(bias[1].numpy())), stats.uniform(1, longest - 2).cdf)
    moments = Chrono(longest).moments((4 * hidden,))
    assert moments is not None
    assert moments.mean == pytest.approx(0.0, abs=1e-12)
    u = np.log(np.linspace(1, longest - 1, 200_001))
    assert moments.std == pytest.approx(math.sqrt(np.mean(u**2) / 2), rel=1e-3)


def test_chrono_in_an_lstm() -> None:
    lstm = nn.LSTM(3, 5)
    rules = {"rules": [
        {"type": "Chrono", "longest": 20, "name": "bias_ih_*"},
        {"type": "Zeros", "name": "bias_hh_*"},
    ]}  # fmt: skip
    report = torchinit.initialize(lstm, rules, seed=1).assert_ok()
    bias = lstm.get_parameter("bias_ih_l0")
    assert bias[5:10].ge(0).all()
    assert torch.equal(bias[:5], -bias[5:10])
    assert report["bias_ih_l0"].fill == "Chrono(20)"


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_icnr_begins_as_nearest_neighbour_interpolation(factor: int) -> None:
    conv = nn.Conv2d(4, 6 * factor**2, 3, padding=1, bias=False)
    torchinit.initialize(conv, Rule(Name("weight"), ICNR(Kaiming(), factor)), seed=0).assert_ok()
    small = conv.weight[:: factor**2]
    x = torch.randn(2, 4, 5, 7)
    expected = F.interpolate(F.conv2d(x, small, padding=1), scale_factor=float(factor))
    torch.testing.assert_close(F.pixel_shuffle(conv(x), factor), expected)
    assert_std(small, math.sqrt(2 / (6 * 9)))  # Kaiming of the smaller convolution


def test_mapped_in_a_recipe_and_a_plan() -> None:
    model = nn.ParameterDict({"dt_bias": nn.Parameter(torch.zeros(64)), "A_log": nn.Parameter(torch.zeros(8, 4))})
    recipe = {"rules": [
        {"name": "A_log", "type": "Mapped", "init": {"type": "Ramp", "start": 1, "stop": "columns"}, "function": "log"},
        {"name": "dt_bias", "type": "Mapped", "function": "inverse_softplus", "low": 1e-4,
         "init": {"type": "LogUniform", "a": 0.001, "b": 0.1}},
    ]}  # fmt: skip
    plan = torchinit.plan(model, recipe)
    again = torchinit.Plan.from_json(plan.to_json())
    assert again == plan
    torchinit.initialize(model, recipe, seed=0).assert_ok(complete=True)
    np.testing.assert_allclose(model["A_log"].detach().numpy(), [np.log([1, 2, 3, 4])] * 8, rtol=1e-6)
    dt = F.softplus(model["dt_bias"])
    assert dt.min() > 0.0009
    assert dt.max() < 0.1001


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: WRONG.Mapped(Normal(), "sin"), "function must be one of exp, log, .*, but got 'sin'"),
        (lambda: WRONG.MappedFill(Normal(), "sin"), "function must be one of exp, log, .*, but got 'sin'"),
        (lambda: Mapped(Normal(), "exp", low=2, high=1), "low must not be above high, but got low=2, high=1"),
        (lambda: Mapped(Normal(), "exp", low=math.nan), "low must not be NaN"),
        (lambda: LogUniform(0, 1), r"but got a=0, b=1; write Uniform\(0, 1\), or an a above 0: zero has no logarithm"),
        (lambda: LogUniform(1, -1), r"LogUniform needs 0 < a <= b, but got a=1, b=-1; write Uniform\(-1, 1\), or"),
        (lambda: LogUniform(2, 1), r"LogUniform needs 0 < a <= b, but got a=2, b=1; write LogUniform\(1, 2\)"),
        (lambda: LogUniform(-2, -1), r"but got a=-2, b=-1; write Scaled\(LogUniform\(1, 2\), -1\)"),
        (lambda: Chrono(1), "longest must be at least 2 steps, but got 1"),
        (lambda: ICNR(Normal(), 0), "factor must be a whole number of at least 1, but got 0"),
        (lambda: RepeatedFill(Normal(), 0), "times must be a whole number of at least 1, but got 0"),
    ],
)
def test_arguments_that_cannot_be(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize(
    ("init", "shape", "dtype", "text"),
    [
        (Mapped(Uniform(0, 1), "log"), (3,), torch.float32, r"but Uniform\(\) goes down to 0; give a low above 0"),
        (Mapped(Normal(), "log"), (3,), torch.float32, "above 0, but Normal.* goes down to -inf; give a low"),
        (Mapped(Uniform(0.5, 1), "logit"), (3,), torch.float32, "but Uniform.* goes up to 1; give a high below 1"),
        (Mapped(Constant(1e3), "exp"), (3,), torch.float32, "goes beyond 3.40282e.38, the largest number of float32"),
        (Mapped(Orthogonal(), "exp"), (3, 3), torch.float32, r"of draws and of tables, but not of Orthogonal\(\)"),
        (Mapped(Normal(), "exp"), (3,), torch.complex64, "needs a real floating dtype, but got complex64"),
        (Chrono(9), (6,), torch.float32, r"four gates in one dimension, but the shape is \(6,\)"),
        (Chrono(9), (8,), torch.complex64, "Chrono needs a real floating dtype, but got complex64"),
        (ICNR(Normal()), (6, 3, 3, 3), torch.float32, r"outputs 4 divides, but 'w' has shape \(6, 3, 3, 3\)"),
        (RepeatedFill(Normal(), 4), (6, 3), torch.float32, r"rows cannot come 4 times each in the shape \(6, 3\)"),
    ],
    ids=label,
)  # fmt: skip
def test_sites_that_do_not_fit(init: Initializer, shape: tuple[int, ...], dtype: torch.dtype, text: str) -> None:
    model = nn.ParameterDict({"w": nn.Parameter(torch.zeros(shape, dtype=dtype))})
    with pytest.raises(PlanError, match=text):
        torchinit.initialize(model, Rule(Name("w"), init), seed=0)


class Declines:
    def resolve(self, site: Site) -> Fill | None:
        return None


def test_initializers_that_decline() -> None:
    assert Mapped(Declines(), "exp").resolve(Site("w", (3,))) is None
    assert ICNR(Declines()).resolve(Site("w", (4, 1, 2, 2))) is None


@pytest.mark.parametrize("std", [0.5, 1.0, 1.5])
def test_moments_of_a_heavy_tail(std: float) -> None:
    moments, oracle = MappedFill(Normal(0.0, std), "exp").moments(), stats.lognorm(std)
    assert moments is not None
    assert moments.mean == pytest.approx(oracle.mean(), rel=1e-6)
    assert moments.std == pytest.approx(oracle.std(), rel=1e-3)
    assert moments.kurtosis == pytest.approx(oracle.stats("k") + 3, rel=0.4)  # of draws, which end at 6.5


@pytest.mark.parametrize("ends", [(-1.0, 2.0), (6.4, 9.0), (20.0, 21.0), (-9.0, -6.6)])
def test_moments_of_a_part_of_a_normal(ends: tuple[float, float]) -> None:
    moments, part = MappedFill(TruncNormal(0.0, 1.0, *ends), "exp").moments(), stats.truncnorm(*ends)
    assert moments is not None
    assert moments.mean == pytest.approx(integrate.quad(lambda z: math.exp(z) * part.pdf(z), *ends)[0], rel=1e-5)


@pytest.mark.parametrize("std", [1.0, 2.0, 4.0])
def test_a_right_start_with_a_heavy_tail_is_as_planned(std: float) -> None:
    for seed in range(4):
        model = nn.Linear(1000, 500, bias=False)
        initialize(model, Rule("weight", Mapped(Normal(0.0, std), "exp")), seed=seed).assert_ok()


def test_moments_that_are_not_known() -> None:
    assert MappedFill(Uniform(), "exp").parts((3,)) is None
    assert MappedFill(TruncNormal(0.0, 1.0, 40.0, 41.0), "exp").moments((3,)) is None
    assert MappedFill(Normal(2.0, 0.0), "exp").moments((3,)) == Moments(math.exp(2), 0.0, 0.0, None, 3.0)
    assert drawn(fill_of(Mapped(Uniform(), "exp"), (0,)), (0,)).shape == (0,)
