"""Gains: the factors that make up for what a nonlinearity takes away of the signal; which one a module computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from functools import cache, lru_cache
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchinit._text import did_you_mean
from torchinit.model.sandbox import refuse_fakes
from torchinit.model.sites import layer_class

if TYPE_CHECKING:
    Nonlinearity: TypeAlias = str | Callable[[Any], Any]
else:
    Nonlinearity = str  # what plain data can hold of it

FREE = "norm"
"""The name of a normalization among the nonlinearities: it undoes any gain."""

_LINEAR = ("linear", "identity", *(f"conv{d}d" for d in (1, 2, 3)), *(f"conv_transpose{d}d" for d in (1, 2, 3)))
_TORCH = {
    **dict.fromkeys(_LINEAR, 1.0),
    "sigmoid": 1.0, "tanh": 5.0 / 3, "relu": math.sqrt(2.0), "selu": 3.0 / 4,
}  # fmt: skip


def gain(nonlinearity: Nonlinearity, a: float = 0.0) -> float:
    r"""The gain for a nonlinearity: the values of ``torch.nn.init.calculate_gain``, and more.

    For the names that torch knows, its own values (tanh 5/3 and selu 3/4 are found by experiment). For the others the
    one that keeps the second moment of a standard normal input,

    .. math:: \mathrm{gain} = 1 \big/ \sqrt{\mathbb{E}[f(z)^2]}, \quad z \sim N(0, 1)

    (Saxe et al. 2013; Poole et al. 2016, https://arxiv.org/abs/1606.05340). ``a`` is the negative slope of
    ``leaky_relu`` and ``prelu``. Any function of a tensor, or of a number, has a gain, too: see :func:`profile`.
    Raises ValueError for a name that is not known, and for ``"auto"``, which :class:`torchinit.Kaiming` alone can
    take, since it is shown a model.

    >>> gain("relu") == math.sqrt(2), gain("tanh") == 5 / 3
    (True, True)
    >>> round(gain("gelu"), 4), round(gain("silu"), 4)
    (1.5335, 1.6765)
    >>> round(gain(lambda x: x * (x > 0)), 4)
    1.4142
    """
    if not isinstance(nonlinearity, str):
        return profile(nonlinearity).gain
    if nonlinearity in {"leaky_relu", "prelu"}:
        return math.sqrt(2.0 / (1 + a**2))
    if nonlinearity in _TORCH:
        return _TORCH[nonlinearity]
    if nonlinearity == "auto":
        remedy = "name it, or give Kaiming(nonlinearity='auto') as the initializer of a rule"
        raise ValueError(
            f"'auto' is the nonlinearity that follows a layer, and without a model there is none: {remedy}"
        )
    return _numeric(nonlinearity)


class Profile(NamedTuple):
    """The numbers of :func:`profile`.

    >>> Profile(1.5, 0.0, 0.9, ()).chi < 1  # gradients vanish
    True
    """

    gain: float
    mean: float
    chi: float
    fixed_points: tuple[float, ...]


def profile(function: Callable[[Any], Any]) -> Profile:
    r"""The numbers of a nonlinearity that decide how a signal fares in many layers, for z ~ N(0, 1).

    .. math:: \mathrm{gain} = 1 / \sqrt{\mathbb{E}[f(z)^2]}, \quad \mathrm{mean} = \mathbb{E}[f(z)], \quad
        \chi = \mathrm{gain}^2 \, \mathbb{E}[f'(z)^2]

    chi is the factor of gradients per layer at that gain: below 1 they vanish, above 1 they explode. ``fixed_points``
    are the variances q between 1e-3 and 1e3 that a layer keeps: gain² E[f(√q z)²] = q (none where it keeps all, as
    ReLU does). By the trapezoid rule on 1,601 points of [-8, 8], which is also right for kinks and for functions that
    saturate. Raises ValueError for a function that makes no finite number of each, or only zeros.

    >>> [round(value, 3) for value in profile(torch.tanh)[:3]]
    [1.593, 0.0, 1.178]
    """
    if isinstance(function, type):
        raise TypeError(f"{function.__name__} is a class; write {function.__name__}()")
    refuse_fakes()
    z = torch.linspace(-8, 8, 1601, dtype=torch.float64, device="cpu")
    weight = torch.exp(-z * z / 2)
    weight /= weight.sum()
    value = _values(function, z)
    second = float((weight * value**2).sum())
    if not second > 0:
        raise ValueError(f"{function!r} makes zeros only, which no gain can undo")
    # The slopes to both sides, since a kink may lie on a point.
    slopes = [(_values(function, z + step) - value) / step for step in (1e-5, -1e-5)]
    square = (slopes[0] ** 2 + slopes[1] ** 2) / 2
    lengths = [10 ** (step / 50) for step in range(-150, 151)]
    kept = [float((weight * _values(function, z * q**0.5) ** 2).sum()) / second / q - 1 for q in lengths]
    fixed = [
        low * (high / low) ** (before / (before - after))
        for low, high, before, after in zip(lengths, lengths[1:], kept, kept[1:], strict=False)
        if abs(before) > 1e-6 and before * after <= 0
    ]
    return Profile(second**-0.5, float((weight * value).sum()), float((weight * square).sum()) / second, tuple(fixed))


def _values(function: Callable[[Any], Any], points: Tensor) -> Tensor:
    with torch.no_grad(), torch.device("cpu"):  # whatever the user's default device is
        try:
            if isinstance(function, nn.Module):  # slopes learned in float32
                function = deepcopy(function).double()
            values = torch.as_tensor(function(points.clone()), dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):  # a function of numbers, such as math.tanh
            values = torch.tensor([float(function(point)) for point in points.tolist()], dtype=torch.float64)
    if values.shape != points.shape or not bool(values.isfinite().all()):
        raise ValueError(f"{function!r} does not make a finite number of each number from -8 to 8")
    return values


def gain_before(activation: str | None) -> float:
    """The gain of a layer that this follows, as :attr:`Site.activation` has it; 1 where that is not known."""
    name, _, slope = (activation or FREE).removesuffix(")").partition("(")
    return 1.0 if name == FREE else gain(name, float(slope or 0))


def nonlinearities() -> tuple[str, ...]:
    """Every name that :func:`gain` knows."""
    return tuple(sorted({*_TORCH, "leaky_relu", "prelu", *_FUNCTIONS}))


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
    # Simpson's rule; the kinks of all these functions fall on its nodes, so its order is kept. Beyond 12 standard
    # deviations a normal holds less than 1e-32 of its mass.
    step, half = 1 / 64, 12 * 64
    weights = [1 if abs(i) == half else 4 if i % 2 else 2 for i in range(-half, half + 1)]
    points = (i * step for i in range(-half, half + 1))
    total = math.fsum(w * function(x) ** 2 * math.exp(-x * x / 2) for w, x in zip(weights, points, strict=True))
    return 1 / math.sqrt(total * step / 3 / math.sqrt(2 * math.pi))


# --- activations: the nonlinearity that a module or a function computes, by the name under which gains know it -------

_LIBRARIES: Final = ("torch.nn.", "timm.layers.", "transformers.", "torchvision.ops.", "einops.layers.")
"""Where classes compute what their names say."""

_BY_CLASS: Final[dict[type[nn.Module], str | Callable[[Any], str | None]]] = {
    nn.CELU: lambda module: "elu" if module.alpha == 1 else None,
    nn.ELU: lambda module: "elu" if module.alpha == 1 else None,
    nn.GELU: lambda module: "gelu_tanh" if module.approximate == "tanh" else "gelu",
    nn.Hardtanh: lambda module: {(-1, 1): "hardtanh", (0, 6): "relu6"}.get((module.min_val, module.max_val)),
    nn.LeakyReLU: lambda module: f"leaky_relu({float(module.negative_slope)})",
    nn.PReLU: lambda module: f"prelu({float(getattr(module, 'init', 0.25))})",
    nn.Softplus: lambda module: "softplus" if module.beta == 1 else None,
    nn.Hardswish: "hardswish", nn.Mish: "mish", nn.ReLU: "relu", nn.SELU: "selu", nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid", nn.Softsign: "softsign", nn.Tanh: "tanh",
    nn.LogSoftmax: "linear", nn.Softmax: "linear",  # what a softmax is given are logits, which want no gain
}  # fmt: skip

_BY_NAME_IN: Final = {
    "timm.layers.activations": {
        "GELU": "gelu", "GELUTanh": "gelu_tanh", "HardSwish": "hardswish", "Mish": "mish", "QuickGELU": "quick_gelu",
        "Sigmoid": "sigmoid", "Swish": "silu", "Tanh": "tanh",
    },
    "transformers.activations": {
        "AccurateGELUActivation": "gelu_tanh", "FastGELUActivation": "gelu_tanh", "GELUActivation": "gelu",
        "GELUTanh": "gelu_tanh", "LinearActivation": "linear", "MishActivation": "mish",
        "NewGELUActivation": "gelu_tanh", "QuickGELUActivation": "quick_gelu",
        "ReLUSquaredActivation": "relu_squared", "SiLUActivation": "silu",
    },
}  # fmt: skip
_BY_NAME: Final = {f"{module}.{name}": known for module, names in _BY_NAME_IN.items() for name, known in names.items()}

_BY_FUNCTION: Final[dict[object, str]] = {
    F.elu: "elu", F.gelu: "gelu", F.hardswish: "hardswish", F.leaky_relu: "leaky_relu(0.01)", F.mish: "mish",
    F.relu: "relu", F.relu6: "relu6", F.selu: "selu", F.sigmoid: "sigmoid", F.silu: "silu", F.softplus: "softplus",
    F.softsign: "softsign", F.tanh: "tanh", torch.relu: "relu", torch.sigmoid: "sigmoid", torch.tanh: "tanh",
}  # fmt: skip


def activation_of(value: object) -> str | None:
    """The nonlinearity of a module, or of a function of torch, with its slope; None if it is not known.

    A name that :func:`torchinit.knowledge.gain` takes. A subclass computes what its base does, unless it has a
    ``forward`` of its own: then nobody can tell. The slope of ``nn.PReLU`` is the one that it is made with.

    >>> activation_of(nn.LeakyReLU(0.2)), activation_of(nn.GELU("tanh")), activation_of(F.silu)
    ('leaky_relu(0.2)', 'gelu_tanh', 'silu')
    >>> print(activation_of(nn.ELU(alpha=2.0)))
    None
    """
    if isinstance(value, (FunctionType, BuiltinFunctionType)):
        return _BY_FUNCTION.get(value)
    if not isinstance(value, nn.Module) or not is_stock(value):
        return None
    cls: Any = type(value)
    known = _of_class(cls)
    return known(value) if callable(known) else known


@lru_cache(maxsize=4096)
def _of_class(cls: Any) -> str | Callable[[Any], str | None] | None:
    """The nonlinearity of a class, or what tells it of a module."""
    known = next((_BY_CLASS[above] for above in cls.__mro__ if above in _BY_CLASS), None)
    return known or next((_BY_NAME[name] for name in layer_class(cls).lineage if name in _BY_NAME), None)


def is_stock(module: nn.Module) -> bool:
    """Whether the ``forward`` is that of a library whose classes compute what their names say."""
    forward = getattr(type(module), "forward", None)
    is_own = "forward" in vars(module) or not isinstance(forward, FunctionType)
    return not is_own and str(forward.__module__).startswith(_LIBRARIES)
