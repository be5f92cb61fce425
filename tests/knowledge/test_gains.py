"""Gains: torch's table, and the second moments that SciPy's quadrature finds for torch's own functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn
from torch.nn import functional as F

from torchinit import ConfigError, Kaiming, Name, Rule
from torchinit.knowledge import Profile, gain, profile
from torchinit.knowledge.gains import gain_before, nonlinearities
from torchinit.model import Site
from torchinit.plans import make_plan

TORCHS = ["linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "sigmoid"]

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "mish": F.mish,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu6": F.relu6,
    "relu_squared": lambda x: F.relu(x) ** 2,
    "silu": F.silu,
    "sin": torch.sin,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "swish": F.silu,
}


@pytest.mark.parametrize("name", [*TORCHS, "tanh", "relu", "selu"])
def test_torchs_table(name: str) -> None:
    assert gain(name) == nn.init.calculate_gain(name)  # type: ignore[arg-type]  # a str is checked at run time


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.5, 1.0, math.sqrt(5)])
@pytest.mark.parametrize("name", ["leaky_relu", "prelu"])
def test_leaky(name: str, slope: float) -> None:
    assert gain(name, slope) == nn.init.calculate_gain("leaky_relu", slope)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_gain_keeps_the_second_moment_of_a_normal_input(name: str) -> None:
    def integrand(x: float) -> float:
        value = float(FUNCTIONS[name](torch.tensor(x, dtype=torch.float64)))
        return float(value**2 * stats.norm.pdf(x))

    moment, error = integrate.quad(integrand, -15, 15, points=[-3.0, -1.0, 0.0, 1.0, 3.0, 6.0], limit=400)
    assert error < 1e-6
    assert gain(name) == pytest.approx(1 / math.sqrt(moment), rel=1e-7)


def test_every_name_has_an_oracle() -> None:
    assert {*nonlinearities()} == {*FUNCTIONS, *TORCHS, "identity", "tanh", "selu", "leaky_relu", "prelu"}
    assert gain("identity") == 1


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"unknown nonlinearity 'gleu'; did you mean 'gelu'\?"):
        gain("gleu")
    with pytest.raises(ValueError, match=r"unknown nonlinearity 'foo'$"):
        gain("foo")


def test_what_follows_needs_a_model() -> None:
    with pytest.raises(ValueError, match=r"'auto' is the nonlinearity that follows a layer, and without a model"):
        gain("auto")
    assert "auto" not in nonlinearities()
    with pytest.raises(ValueError, match=r"unknown nonlinearity 'atuo'; did you mean 'auto'\?"):
        gain("atuo")


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (None, 1.0), ("norm", 1.0), ("linear", 1.0), ("relu", math.sqrt(2)), ("leaky_relu(0.2)", math.sqrt(2 / 1.04)),
        ("prelu(-0.5)", math.sqrt(2 / 1.25)), ("leaky_relu(1e-05)", math.sqrt(2)), ("tanh", 5 / 3),
    ],
)  # fmt: skip
def test_the_gain_of_what_follows(activation: str | None, expected: float) -> None:
    assert gain_before(activation) == pytest.approx(expected, rel=1e-9)


def test_what_follows_by_a_name_that_is_not_known() -> None:
    with pytest.raises(ValueError, match="unknown nonlinearity 'reul'"):
        gain_before("reul")


def expected(function: Callable[[Tensor], Tensor], z: Callable[[float], float] = lambda x: x) -> float:
    """The mean of a function of a standard normal, by SciPy."""

    def density(x: float) -> float:
        return z(float(function(torch.tensor(x, dtype=torch.float64)))) * float(stats.norm.pdf(x))

    return float(integrate.quad(density, -10, 10, points=[-3, -1, 0, 1, 3, 6], limit=200)[0])


@pytest.mark.parametrize("function", [torch.tanh, F.gelu, F.elu, lambda x: x * torch.sigmoid(1.3 * x) - 0.2])
def test_profiles_are_scipys(function: Callable[[Tensor], Tensor]) -> None:
    def slope(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(function(x), x)[0]

    second = expected(function, lambda y: y * y)
    numbers = profile(function)
    assert gain(function) == numbers.gain == pytest.approx(second**-0.5, rel=1e-6)
    assert numbers.mean == pytest.approx(expected(function), abs=1e-6)
    assert numbers.chi == pytest.approx(expected(slope, lambda y: y * y) / second, rel=1e-4)
    for q in numbers.fixed_points:
        kept = expected(lambda x, q=q: function(x * q**0.5), lambda y: y * y)  # type: ignore[misc]
        assert kept / second == pytest.approx(q, rel=1e-2)
    assert any(q == pytest.approx(1.0, rel=1e-3) for q in numbers.fixed_points), "that is what the gain is for"


def test_profiles_in_closed_form() -> None:
    numbers = profile(torch.relu)
    assert numbers.gain == pytest.approx(math.sqrt(2), rel=1e-9)
    assert numbers.mean == pytest.approx(1 / math.sqrt(2 * math.pi), rel=1e-4)
    assert numbers.chi == pytest.approx(1.0, rel=1e-6), "He's scheme sits on the edge of chaos"
    assert numbers.fixed_points == (), "every length is kept"
    assert profile(lambda x: x**3).gain == pytest.approx(15**-0.5, rel=1e-6)
    assert profile(math.tanh)[:3] == pytest.approx(profile(torch.tanh)[:3], rel=1e-6, abs=1e-9)
    assert isinstance(profile(nn.GELU()), Profile)


def test_a_function_as_the_nonlinearity_of_kaiming() -> None:
    init = Kaiming(mode="fan_in", nonlinearity=torch.relu)
    plan = make_plan([Site("w", (8, 50))], [Rule(Name("w"), init)])
    moments = plan["w"].fill.moments((8, 50))
    assert moments is not None
    assert moments.std == pytest.approx(0.2)
    with pytest.raises(ConfigError, match="cannot be written as data: it is there in memory only"):
        plan.to_json()


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda x: x * 0, "makes zeros only, which no gain can undo"),
        (lambda x: x / x.abs().sub(1).relu(), "does not make a finite number of each number from -8 to 8"),
        (lambda x: x.sum(), "does not make a finite number of each number from -8 to 8"),
        (torch.log, "does not make a finite number of each number from -8 to 8"),
    ],
)
def test_functions_without_a_gain(function: Callable[[Tensor], Tensor], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        gain(function)
    with pytest.raises(ValueError, match=text):
        Kaiming(nonlinearity=function)


def test_a_layer_with_a_slope_and_a_class() -> None:
    layer = nn.PReLU()  # its slope 0.25 has float32
    assert gain(layer) == pytest.approx(gain("prelu", 0.25))
    assert profile(layer).chi == pytest.approx(1)
    assert layer.weight.dtype == torch.float32
    with pytest.raises(TypeError, match=r"GELU is a class; write GELU\(\)"):
        gain(nn.GELU)
