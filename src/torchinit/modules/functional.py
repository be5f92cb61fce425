"""Functional initializers: one module, its own ``weight`` and ``bias``, at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from torchinit.core.fills import Initializer
from torchinit.core.runs import write
from torchinit.core.shards import Shard
from torchinit.core.sites import Site
from torchinit.modules.formulas import constant, kaiming, normal, trunc_normal, uniform, xavier
from torchinit.noise import Global

NOISE = Global(truncation="inverse_cdf")
"""Torch's generator, drawn from as MMEngine draws."""


def constant_init(module: nn.Module, val: float, bias: float = 0) -> None:
    """Gives the module's weight the value ``val`` and its bias the value ``bias``.

    A module without ``weight`` or ``bias``, or with None there, keeps what it has; what is below the
    module is never touched. The same is true of every function here.

    >>> layer = nn.Linear(2, 2)
    >>> constant_init(layer, 1.5, bias=2)
    >>> layer.weight[0, 0].item(), layer.bias[0].item()
    (1.5, 2.0)
    """
    _init(module, constant(val), bias)


def xavier_init(module: nn.Module, gain: float = 1, bias: float = 0, distribution: str = "normal") -> None:
    """Xavier weights (Glorot & Bengio 2010) and a constant bias; AssertionError for another distribution.

    >>> layer = nn.Linear(300, 300)
    >>> xavier_init(layer, gain=2, distribution="uniform")
    >>> bool(layer.weight.abs().max() <= 0.2)
    True
    """
    _init(module, xavier(gain, distribution), bias)


def normal_init(module: nn.Module, mean: float = 0, std: float = 1, bias: float = 0) -> None:
    """Normal weights and a constant bias.

    >>> layer = nn.Linear(2, 2)
    >>> normal_init(layer, mean=3.0, std=0.0)
    >>> layer.weight.unique()
    tensor([3.], grad_fn=...)
    """
    _init(module, normal(mean, std), bias)


def trunc_normal_init(
    module: nn.Module, mean: float = 0, std: float = 1, a: float = -2, b: float = 2, bias: float = 0
) -> None:
    """Truncated normal weights and a constant bias; see :func:`trunc_normal_`.

    >>> layer = nn.Linear(40, 40)
    >>> trunc_normal_init(layer, a=-0.5, b=0.5)
    >>> bool(layer.weight.abs().max() <= 0.5)
    True
    """
    _init(module, trunc_normal(mean, std, a, b), bias)


def uniform_init(module: nn.Module, a: float = 0, b: float = 1, bias: float = 0) -> None:
    """Uniform weights between ``a`` and ``b`` and a constant bias.

    >>> layer = nn.Linear(4, 4)
    >>> uniform_init(layer, 2, 3)
    >>> bool(layer.weight.min() >= 2)
    True
    """
    _init(module, uniform(a, b), bias)


def kaiming_init(
    module: nn.Module,
    a: float = 0,
    mode: str = "fan_out",
    nonlinearity: str = "relu",
    bias: float = 0,
    distribution: str = "normal",
) -> None:
    """Kaiming weights (He et al. 2015) and a constant bias; AssertionError for another distribution.

    ``mode`` and ``nonlinearity`` have other defaults than ``torch.nn.init.kaiming_normal_``.

    >>> layer = nn.Linear(600, 6)
    >>> kaiming_init(layer, mode="fan_in", distribution="uniform")
    >>> bool(layer.weight.abs().max() <= 0.1)
    True
    """
    _init(module, kaiming(a, mode, nonlinearity, distribution), bias)


def caffe2_xavier_init(module: nn.Module, bias: float = 0) -> None:
    """The XavierFill of Caffe2: uniform weights of variance 1 / fan_in, and a constant bias.

    >>> layer = nn.Linear(300, 3)
    >>> caffe2_xavier_init(layer)
    >>> bool(layer.weight.abs().max() <= 0.1)
    True
    """
    kaiming_init(module, a=1, mode="fan_in", nonlinearity="leaky_relu", bias=bias, distribution="uniform")


def trunc_normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Tensor:
    """Fills the tensor from a normal distribution cut to [a, b], by MMEngine's algorithm, and returns it.

    ``a`` and ``b`` are values, not multiples of ``std``. The algorithm is the inverse of the distribution
    function in the tensor's own precision, one uniform draw an element: the values of MMEngine 0.10.7,
    and not those of ``torch.nn.init.trunc_normal_``, which samples by rejection since torch 2.13. Warns
    where the mean lies more than two standard deviations outside of the bounds.

    >>> import torch
    >>> bool(trunc_normal_(torch.empty(1000), std=2.0).abs().max() <= 2)
    True
    """
    NOISE.fill(Shard.whole("tensor", tensor), "truncated", (float(mean), float(std), float(a), float(b)))
    return tensor


def _init(module: nn.Module, weight: Initializer, bias: Any) -> None:
    for leaf, init in (("weight", weight), ("bias", constant(bias))):
        tensor = getattr(module, leaf, None)
        if isinstance(tensor, Tensor):
            fill_tensor(leaf, tensor, init)


def fill_tensor(name: str, tensor: Tensor, init: Initializer) -> None:
    """Writes one tensor that need not belong to any module."""
    site = Site(name, tuple(tensor.shape), tensor.dtype)
    fill = init.resolve(site) if tensor.numel() else None
    if fill is not None:
        write(fill, Shard.whole(name, tensor), NOISE)
