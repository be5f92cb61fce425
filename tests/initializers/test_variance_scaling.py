"""Formulas: the bits of torch.nn.init, the closed forms of JAX, and what has no fan."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

import torchinit
from tests.initializers.test_elementwise import FLOATS, assert_same_bits
from tests.strategies import formulas, label
from torchinit import Constant, FanError, Kaiming, LeCun, Normal, Ones, TruncNormal, Uniform, Xavier, Zeros, sites
from torchinit.initializers import Caffe2Xavier, Fill, Initializer, Prior, VarianceScaling
from torchinit.initializers.variance_scaling import asks_what_follows
from torchinit.model import Layout, Site

WRONG: Any = torchinit.initializers  # without types, to say what is wrong
SHAPES = [(5, 7), (64, 3, 7, 7), (12, 8, 3), (4, 4), (3, 1, 2, 2, 2)]


def fill_of(init: Initializer, shape: tuple[int, ...], layout: Layout | None = None) -> Fill:
    fill = init.resolve(Site("w", shape, layout=layout))
    assert fill is not None
    return fill


def std_of(init: Initializer, shape: tuple[int, ...], layout: Layout | None = None) -> float:
    moments = fill_of(init, shape, layout).moments(shape)
    assert moments is not None
    assert moments.std is not None
    return moments.std


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("init", "theirs"),
    [
        (Xavier(), nn.init.xavier_normal_),
        (Xavier(0.3), lambda t: nn.init.xavier_normal_(t, 0.3)),
        (Xavier(1.7, "uniform"), lambda t: nn.init.xavier_uniform_(t, 1.7)),
        (Kaiming(), lambda t: nn.init.kaiming_normal_(t, 0, "fan_out", "relu")),
        (Kaiming(0.2, "fan_in", "leaky_relu"), lambda t: nn.init.kaiming_normal_(t, 0.2, "fan_in", "leaky_relu")),
        (Kaiming(0.0, "fan_out", "tanh", "uniform"), lambda t: nn.init.kaiming_uniform_(t, 0, "fan_out", "tanh")),
        (
            Kaiming(math.sqrt(5), "fan_in", "leaky_relu", "uniform"),
            lambda t: nn.init.kaiming_uniform_(t, math.sqrt(5)),
        ),
        (Zeros(), nn.init.zeros_),
        (Ones(), nn.init.ones_),
    ],
    ids=label,
)
def test_bits_of_torch(
    init: Initializer, theirs: Callable[[Tensor], Tensor], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    assert_same_bits(fill_of(init, shape), theirs, torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize("layer", [nn.Linear(7, 5), nn.Conv2d(3, 8, 3), nn.Conv1d(4, 8, 3, groups=2)], ids=label)
def test_torchs_own_start_of_a_layer(layer: nn.Linear | nn.Conv2d) -> None:
    """``reset_parameters``: a uniform of bound 1 / sqrt(fan_in)."""
    torch.manual_seed(4)
    layer.reset_parameters()
    theirs = layer.weight.detach().clone()
    init = Kaiming(math.sqrt(5), "fan_in", "leaky_relu", "uniform")
    (site, *_) = sites(layer)
    fill = init.resolve(site)
    torch.manual_seed(4)
    with torch.no_grad():
        fill.write(torchinit.model.Shard.whole("weight", layer.weight), torchinit.noise.Global())
    assert torch.equal(layer.weight, theirs)
    assert isinstance(fill, Uniform)
    assert fill.b == pytest.approx(1 / math.sqrt(layer.weight[0].numel()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fans", ["torch", "true"])
def test_variance_scaling(shape: tuple[int, ...], fans: Any) -> None:
    """Variance = scale / n for each mode and distribution, n counted by hand."""
    layout = Layout(in_axes=(0,), out_axes=(1,))
    field = math.prod(shape[2:])
    fan_in, fan_out = (shape[1] * field, shape[0] * field)
    if fans == "true":
        fan_in, fan_out = fan_out, fan_in
    for mode, n in {
        "fan_in": fan_in,
        "fan_out": fan_out,
        "fan_avg": statistics.fmean([fan_in, fan_out]),
        "fan_geo_avg": statistics.geometric_mean([fan_in, fan_out]),
    }.items():
        for distribution in ("normal", "uniform", "truncated_normal"):
            init = VarianceScaling(1.7, mode, distribution, fans)  # type: ignore[arg-type]  # the keys are modes
            assert std_of(init, shape, layout) == pytest.approx(math.sqrt(1.7 / n)), (mode, distribution)


def test_jaxs_truncated_normal() -> None:
    """jax.nn.initializers.variance_scaling: cut at two sigmas, stretched by 1 / 0.87962566103423978."""
    fill = fill_of(VarianceScaling(2.0, "fan_in", "truncated_normal"), (8, 50))
    assert isinstance(fill, TruncNormal)
    assert fill.sigma == pytest.approx(0.2 / 0.87962566103423978, rel=1e-15)
    assert fill.high == -fill.low == pytest.approx(0.4 / 0.87962566103423978, rel=1e-15)


@pytest.mark.parametrize("shape", SHAPES)
def test_presets_are_cases_of_variance_scaling(shape: tuple[int, ...]) -> None:
    for distribution in ("normal", "uniform", "truncated_normal"):
        assert std_of(Xavier(2.0, distribution), shape) == pytest.approx(
            std_of(VarianceScaling(4.0, "fan_avg", distribution), shape)
        )
        assert fill_of(LeCun(distribution), shape) == fill_of(VarianceScaling(1.0, "fan_in", distribution), shape)
        assert std_of(Kaiming(0.5, "fan_in", "leaky_relu", distribution), shape) == pytest.approx(
            std_of(VarianceScaling(2 / 1.25, "fan_in", distribution), shape)
        )


def test_caffe2() -> None:
    """XavierFill: uniform on ±sqrt(3 / fan_in)."""
    fill = fill_of(Caffe2Xavier(), (10, 4, 3, 3))
    assert isinstance(fill, Uniform)
    assert fill.b == -fill.a == pytest.approx(math.sqrt(3 / 36))


@pytest.mark.parametrize("probability", [0.01, 0.5, 0.9])
def test_prior_is_the_logit(probability: float) -> None:
    fill = fill_of(Prior(probability), (80,))
    assert isinstance(fill, Constant)
    assert float(torch.sigmoid(torch.tensor(fill.val, dtype=torch.float64))) == pytest.approx(probability)


def test_true_fans_of_a_depthwise_convolution() -> None:
    site = sites(nn.Conv2d(64, 64, 3, groups=64))[0]
    assert Kaiming().resolve(site) == Normal(0.0, math.sqrt(2) / math.sqrt(576))
    assert Kaiming(fans="true").resolve(site) == Normal(0.0, math.sqrt(2) / 3)


@pytest.mark.parametrize("init", [VarianceScaling(), Xavier(), Kaiming(), LeCun(), Caffe2Xavier()], ids=label)
def test_fans_of_a_vector(init: Initializer) -> None:
    with pytest.raises(FanError, match=r"'norm\.bias' has shape \(5,\): fans need at least 2 dimensions"):
        init.resolve(Site("norm.bias", (5,)))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (5, 3, 0)])
@pytest.mark.parametrize("init", [VarianceScaling(), Xavier(), Kaiming(mode="fan_in"), LeCun("uniform")], ids=label)
def test_nothing_to_write(init: Initializer, shape: tuple[int, ...]) -> None:
    assert init.resolve(Site("w", shape)) == Constant(0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VarianceScaling(-1.0), r"scale must be at least 0, but got -1\.0"),
        (
            lambda: WRONG.VarianceScaling(mode="fan"),
            "mode must be one of fan_in, fan_out, fan_avg, fan_geo_avg",
        ),
        (
            lambda: WRONG.VarianceScaling(distribution="cauchy"),
            "distribution must be one of normal, uniform, truncated_normal, but got 'cauchy'",
        ),
        (lambda: WRONG.VarianceScaling(fans="both"), "fans must be one of torch, true, but got 'both'"),
        (lambda: Xavier(math.nan), "gain must not be NaN"),
        (lambda: WRONG.Xavier(distribution="n"), "distribution must be one of"),
        (lambda: WRONG.Xavier(fans="n"), "fans must be one of"),
        (lambda: Kaiming(math.inf), "a must be finite"),
        (lambda: WRONG.Kaiming(mode="out"), "mode must be one of"),
        (lambda: Kaiming(nonlinearity="rleu"), "unknown nonlinearity 'rleu'; did you mean 'relu'"),
        (lambda: WRONG.Kaiming(distribution="n"), "distribution must be one of"),
        (lambda: WRONG.Kaiming(fans="n"), "fans must be one of"),
        (lambda: WRONG.LeCun("n"), "distribution must be one of"),
        (lambda: WRONG.LeCun(fans="n"), "fans must be one of"),
        (lambda: WRONG.Caffe2Xavier("n"), "fans must be one of"),
        (lambda: Prior(0.0), r"prob must lie in \(0, 1\), but got 0\.0"),
        (lambda: Prior(1.0), r"prob must lie in \(0, 1\)"),
    ],
)
def test_bad_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@given(formulas())
def test_a_formula_is_a_value(init: Initializer) -> None:
    assert eval(repr(init), vars(torchinit.initializers)) == init
    assert isinstance(init, Initializer)


@pytest.mark.parametrize(
    ("init", "text"),
    [
        (Kaiming(), "Kaiming()"),
        (Kaiming(mode="fan_in", a=math.sqrt(5)), "Kaiming(a=2.23607, mode='fan_in')"),
        (Prior(0.01), "Prior(0.01)"),
        (Zeros(), "Zeros()"),
        (VarianceScaling(1 / 3), "VarianceScaling(scale=0.333333)"),
    ],
)
def test_text_for_tables(init: Initializer, text: str) -> None:
    assert str(init) == text


@pytest.mark.parametrize(
    ("follows", "named"), [("relu", ("relu", 0.0)), ("leaky_relu(0.2)", ("leaky_relu", 0.2)), ("gelu", ("gelu", 0.0))]
)
def test_what_follows_is_what_one_would_name(follows: str, named: tuple[str, float]) -> None:
    for mode in ("fan_in", "fan_out", "fan_avg"):
        for spread in ("normal", "uniform", "truncated_normal"):
            auto = WRONG.Kaiming(0.0, mode, "auto", spread).resolve(Site("w", (12, 7), activation=follows))
            by_hand = WRONG.Kaiming(named[1], mode, named[0], spread).resolve(Site("w", (12, 7)))
            assert auto == by_hand


@pytest.mark.parametrize("follows", [None, "norm", "linear"])
def test_the_gain_before_nothing_a_norm_and_who_knows(follows: str | None) -> None:
    site = Site("w", (10, 25), activation=follows)
    assert Kaiming(mode="fan_in", nonlinearity="auto").resolve(site) == Normal(0.0, 0.2)


def test_a_slope_cannot_be_given_and_found() -> None:
    with pytest.raises(ValueError, match=r"a is found with nonlinearity='auto', so it cannot be 0\.2, too"):
        Kaiming(a=0.2, nonlinearity="auto")


def test_mmengine_does_not_know_what_follows() -> None:
    with pytest.raises(ValueError, match="unknown nonlinearity 'auto'"):
        torchinit.kaiming_init(nn.Linear(2, 2), nonlinearity="auto")
    with pytest.raises(ValueError, match="unknown nonlinearity 'auto'"):
        torchinit.KaimingInit(nonlinearity="auto", layer="Linear")(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("init", "asks"),
    [
        (Kaiming(nonlinearity="auto"), True),
        (Kaiming(), False),
        (Normal(), False),
        (
            torchinit.initializers.Blocks(
                (Zeros(), torchinit.initializers.Scaled(Kaiming(nonlinearity="auto"), 0.5)), 2
            ),
            True,
        ),
        (torchinit.initializers.Stacked(torchinit.initializers.DepthScaled(Kaiming(nonlinearity="auto"))), True),
        (torchinit.initializers.Blocks(Kaiming(), 2), False),
        (torchinit.initializers.Computed(Kaiming, a="1 / depth", nonlinearity="auto"), True),
        (torchinit.initializers.Computed(Kaiming, a="1 / depth"), False),
    ],
    ids=label,
)
def test_who_asks_what_follows(init: Initializer, asks: bool) -> None:
    assert asks_what_follows(init) is asks
