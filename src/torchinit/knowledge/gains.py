"""Gains: how much larger a weight must be when a nonlinearity takes part of the signal away."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

from torchinit.errors import did_you_mean

FREE = "norm"
"""What stands for a normalization among the nonlinearities: it undoes any gain."""

_LINEAR = ("linear", "identity", *(f"conv{d}d" for d in (1, 2, 3)), *(f"conv_transpose{d}d" for d in (1, 2, 3)))


def gain(nonlinearity: str, a: float = 0.0) -> float:
    r"""The gain for a nonlinearity: the values of ``torch.nn.init.calculate_gain``, and more.

    For the names that torch knows, its own values (tanh 5/3 and selu 3/4 are found by experiment). For
    the others the one that keeps the second moment of a standard normal input,

    .. math:: \mathrm{gain} = 1 \big/ \sqrt{\mathbb{E}[f(z)^2]}, \quad z \sim N(0, 1)

    (Saxe et al. 2013; Poole et al. 2016, https://arxiv.org/abs/1606.05340). ``a`` is the negative slope of
    ``leaky_relu`` and ``prelu``. Raises ValueError for a name that is not known, and for ``"auto"``, which
    :class:`torchinit.Kaiming` alone can take, since it is shown a model.

    >>> gain("relu") == math.sqrt(2), gain("tanh") == 5 / 3
    (True, True)
    >>> round(gain("gelu"), 4), round(gain("silu"), 4)
    (1.5335, 1.6765)
    """
    if nonlinearity in _LINEAR or nonlinearity == "sigmoid":
        return 1.0
    if nonlinearity == "relu":
        return math.sqrt(2.0)
    if nonlinearity in {"leaky_relu", "prelu"}:
        return math.sqrt(2.0 / (1 + a**2))
    if nonlinearity in _BY_EXPERIMENT:
        return _BY_EXPERIMENT[nonlinearity]
    if nonlinearity == "auto":
        raise ValueError(
            "'auto' is the nonlinearity that follows a layer, and without a model there is none: name it, or give"
            " Kaiming(nonlinearity='auto') as the initializer of a rule"
        )
    return _numeric(nonlinearity)


def gain_before(activation: str | None) -> float:
    """The gain of a layer that this follows, as :attr:`torchinit.model.Site.activation` has it; 1 where that is not known.

    >>> gain_before("leaky_relu(0.5)") == gain("leaky_relu", 0.5), gain_before("norm"), gain_before(None)
    (True, 1.0, 1.0)
    """
    if activation is None or activation == FREE:
        return 1.0
    name, _, slope = activation.removesuffix(")").partition("(")
    return gain(name, float(slope or 0))


def nonlinearities() -> tuple[str, ...]:
    """Every name that :func:`gain` knows.

    >>> "gelu" in nonlinearities()
    True
    """
    return tuple(sorted({*_LINEAR, "sigmoid", "relu", "leaky_relu", "prelu", *_BY_EXPERIMENT, *_FUNCTIONS}))


_BY_EXPERIMENT = {"tanh": 5.0 / 3, "selu": 3.0 / 4}


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "hardswish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "hardtanh": lambda x: min(max(x, -1), 1),
    "mish": lambda x: x * math.tanh(_softplus(x)),
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "relu6": lambda x: min(max(x, 0), 6),
    "relu_squared": lambda x: max(x, 0) ** 2,
    "silu": lambda x: x * _sigmoid(x),
    "sin": math.sin,
    "softplus": _softplus,
    "softsign": lambda x: x / (1 + abs(x)),
    "swish": lambda x: x * _sigmoid(x),
}


@cache
def _numeric(nonlinearity: str) -> float:
    function = _FUNCTIONS.get(nonlinearity)
    if function is None:
        near = did_you_mean(nonlinearity, [*nonlinearities(), "auto"])
        raise ValueError(f"unknown nonlinearity {nonlinearity!r}{near}")
    # Simpson's rule; the kinks of all these functions fall on its nodes, so its order is kept. Beyond
    # 12 standard deviations a normal holds less than 1e-32 of its mass.
    step, half = 1 / 64, 12 * 64
    weights = [1 if abs(i) == half else 4 if i % 2 else 2 for i in range(-half, half + 1)]
    points = (i * step for i in range(-half, half + 1))
    total = math.fsum(w * function(x) ** 2 * math.exp(-x * x / 2) for w, x in zip(weights, points, strict=True))
    return 1 / math.sqrt(total * step / 3 / math.sqrt(2 * math.pi))
