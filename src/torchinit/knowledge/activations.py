"""Activations: the nonlinearity that a module or a function computes, by the name under which gains know it."""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import lru_cache
from types import BuiltinFunctionType, FunctionType
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional as F

from torchinit.model.sites import layer_class

_LIBRARIES: Final = ("torch.nn.", "timm.layers.", "transformers.", "torchvision.ops.", "einops.layers.")
"""Where classes compute what their names say."""

_BY_CLASS: Final[dict[type[nn.Module], str | Callable[[Any], str | None]]] = {
    nn.CELU: lambda module: "elu" if module.alpha == 1 else None,
    nn.ELU: lambda module: "elu" if module.alpha == 1 else None,
    nn.GELU: lambda module: "gelu_tanh" if module.approximate == "tanh" else "gelu",
    nn.Hardswish: "hardswish",
    nn.Hardtanh: lambda module: {(-1, 1): "hardtanh", (0, 6): "relu6"}.get((module.min_val, module.max_val)),
    nn.LeakyReLU: lambda module: f"leaky_relu({float(module.negative_slope)})",
    nn.LogSoftmax: "linear",  # what a softmax is given are logits, which want no gain
    nn.Mish: "mish",
    nn.PReLU: lambda module: f"prelu({float(getattr(module, 'init', 0.25))})",
    nn.ReLU: "relu",
    nn.SELU: "selu",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.Softmax: "linear",
    nn.Softplus: lambda module: "softplus" if module.beta == 1 else None,
    nn.Softsign: "softsign",
    nn.Tanh: "tanh",
}

_NAMES_BY_MODULE: Final = {
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
_BY_NAME: Final = {
    f"{module}.{name}": known for module, names in _NAMES_BY_MODULE.items() for name, known in names.items()
}

_FUNCTIONS: Final[dict[object, str]] = {
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
        return _FUNCTIONS.get(value)
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
    return "forward" not in vars(module) and isinstance(forward, FunctionType) and _is_of_library(forward)


@lru_cache(maxsize=4096)
def _is_of_library(function: FunctionType) -> bool:
    return str(function.__module__).startswith(_LIBRARIES)


def known_as(module: nn.Module, names: Container[str]) -> str:
    """The one of these qualified class names that the module's class or one above it has; empty if there is none."""
    cls: Any = type(module)
    return next((name for name in layer_class(cls).lineage if name in names), "")
