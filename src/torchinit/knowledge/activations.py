"""Activations: the nonlinearity that a module or a function computes, by the name under which gains know it."""

from __future__ import annotations

from collections.abc import Callable, Container
from types import BuiltinFunctionType, FunctionType
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional as F

from torchinit.model.sites import full_name

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

_BY_NAME: Final = {
    "timm.layers.activations.GELU": "gelu",
    "timm.layers.activations.GELUTanh": "gelu_tanh",
    "timm.layers.activations.HardSwish": "hardswish",
    "timm.layers.activations.Mish": "mish",
    "timm.layers.activations.QuickGELU": "quick_gelu",
    "timm.layers.activations.Sigmoid": "sigmoid",
    "timm.layers.activations.Swish": "silu",
    "timm.layers.activations.Tanh": "tanh",
    "transformers.activations.AccurateGELUActivation": "gelu_tanh",
    "transformers.activations.FastGELUActivation": "gelu_tanh",
    "transformers.activations.GELUActivation": "gelu",
    "transformers.activations.GELUTanh": "gelu_tanh",
    "transformers.activations.LinearActivation": "linear",
    "transformers.activations.MishActivation": "mish",
    "transformers.activations.NewGELUActivation": "gelu_tanh",
    "transformers.activations.QuickGELUActivation": "quick_gelu",
    "transformers.activations.ReLUSquaredActivation": "relu_squared",
    "transformers.activations.SiLUActivation": "silu",
}

_FUNCTIONS: Final[dict[object, str]] = {
    F.elu: "elu", F.gelu: "gelu", F.hardswish: "hardswish", F.leaky_relu: "leaky_relu(0.01)", F.mish: "mish",
    F.relu: "relu", F.relu6: "relu6", F.selu: "selu", F.sigmoid: "sigmoid", F.silu: "silu", F.softplus: "softplus",
    F.softsign: "softsign", F.tanh: "tanh", torch.relu: "relu", torch.sigmoid: "sigmoid", torch.tanh: "tanh",
}  # fmt: skip


def activation_of(value: object) -> str | None:
    """The nonlinearity of a module, or of a function of torch, with its slope; None if it is not known.

    A name that :func:`torchinit.knowledge.gain` takes. A subclass computes what its base does, unless it has a ``forward`` of
    its own: then nobody can tell. The slope of ``nn.PReLU`` is the one that it is made with.

    >>> activation_of(nn.LeakyReLU(0.2)), activation_of(nn.GELU("tanh")), activation_of(F.silu)
    ('leaky_relu(0.2)', 'gelu_tanh', 'silu')
    >>> print(activation_of(nn.ELU(alpha=2.0)))
    None
    """
    if isinstance(value, (FunctionType, BuiltinFunctionType)):
        return _FUNCTIONS.get(value)
    if not isinstance(value, nn.Module) or not is_stock(value):
        return None
    found = next((_BY_CLASS[cls] for cls in type(value).__mro__ if cls in _BY_CLASS), None)
    if found is None:
        return _BY_NAME.get(known_as(value, _BY_NAME))
    return found if isinstance(found, str) else found(value)


def is_stock(module: nn.Module) -> bool:
    """Whether the ``forward`` is that of a library whose classes compute what their names say."""
    forward = getattr(type(module), "forward", None)
    return "forward" not in vars(module) and str(getattr(forward, "__module__", "")).startswith(_LIBRARIES)


def known_as(module: nn.Module, names: Container[str]) -> str:
    """Which of these qualified class names is that of the module's class or of one above it; else nothing."""
    return next((name for name in map(full_name, type(module).__mro__) if name in names), "")
