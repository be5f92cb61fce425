"""Functional initializers: one module, its own ``weight`` and ``bias``, at once; and the formulas behind them.

A module without ``weight`` or ``bias``, or with None there, keeps what it has; what is below it is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from torchinit._text import did_you_mean
from torchinit.initializers.elementwise import Constant, Fill, Initializer, Normal, TruncNormal, Uniform
from torchinit.initializers.variance_scaling import Kaiming, Xavier
from torchinit.knowledge.gains import nonlinearities
from torchinit.mmengine.biases import by_attribute, number
from torchinit.mmengine.registry import InitCfgAssertionError, InitCfgValueError
from torchinit.model.sandbox import check_values
from torchinit.model.shards import Shard
from torchinit.model.sites import Site
from torchinit.noise import Global
from torchinit.plans.run import write
from torchinit.tracing.observer import Observer, unseen, watchers_of

NOISE = Global(truncation="inverse_cdf")
"""Torch's generator, drawn from as MMEngine draws."""


def constant_init(module: nn.Module, val: float, bias: float = 0) -> None:
    """Weights of one value and a constant bias.

    >>> layer = nn.Linear(2, 2)
    >>> constant_init(layer, 1.5, bias=2)
    >>> layer.weight[0, 0].item(), layer.bias[0].item()
    (1.5, 2.0)
    """
    _init(module, formula(Constant, val=val), bias)


def xavier_init(module: nn.Module, gain: float = 1, bias: float = 0, distribution: str = "normal") -> None:
    """Xavier weights (Glorot & Bengio 2010) and a constant bias; AssertionError for another distribution.

    >>> xavier_init(nn.Linear(300, 300), gain=2, distribution="uniform")
    """
    _init(module, xavier(gain, distribution), bias)


def normal_init(module: nn.Module, mean: float = 0, std: float = 1, bias: float = 0) -> None:
    """Normal weights and a constant bias.

    >>> layer = nn.Linear(2, 2)
    >>> normal_init(layer, mean=3.0, std=0.0)
    >>> layer.weight.unique()
    tensor([3.], grad_fn=...)
    """
    _init(module, formula(Normal, mean=mean, std=std), bias)


def trunc_normal_init(
    module: nn.Module, mean: float = 0, std: float = 1, a: float = -2, b: float = 2, bias: float = 0
) -> None:
    """Truncated normal weights and a constant bias; see :func:`trunc_normal_`.

    >>> trunc_normal_init(nn.Linear(40, 40), a=-0.5, b=0.5)
    """
    _init(module, trunc_normal(mean=mean, std=std, a=a, b=b), bias)


def uniform_init(module: nn.Module, a: float = 0, b: float = 1, bias: float = 0) -> None:
    """Uniform weights between ``a`` and ``b`` and a constant bias.

    >>> uniform_init(nn.Linear(4, 4), 2, 3)
    """
    _init(module, formula(Uniform, a=a, b=b), bias)


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

    >>> kaiming_init(nn.Linear(600, 6), mode="fan_in", distribution="uniform")
    """
    _init(module, kaiming(a, mode, nonlinearity, distribution), bias)


def caffe2_xavier_init(module: nn.Module, bias: float = 0) -> None:
    """The XavierFill of Caffe2: uniform weights of variance 1 / fan_in, and a constant bias.

    >>> caffe2_xavier_init(nn.Linear(300, 3))
    """
    kaiming_init(module, a=1, mode="fan_in", nonlinearity="leaky_relu", bias=bias, distribution="uniform")


def trunc_normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Tensor:
    """Fill the tensor from a normal distribution cut to [a, b], by MMEngine's algorithm, and return it.

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
    for leaf, init in by_attribute(weight, bias).items():
        tensor = getattr(module, leaf, None)
        if isinstance(tensor, Tensor):
            watchers = watchers_of(tensor)
            fill = unseen(watchers, _write_briefly, init, leaf, tensor, watchers)
            if fill is not None:
                write(fill, Shard.whole(leaf, tensor), NOISE)


def _write_briefly(init: Initializer, leaf: str, tensor: Tensor, watchers: Sequence[Observer]) -> Fill | None:
    """Write what can be told of as one operation, and tell; the fill that is left, which others have to see drawn."""
    if not tensor.numel():
        return None
    site = leaf, tuple(tensor.shape), tensor.dtype
    fill = _resolved(init, *site) if type(init) is Kaiming else init.resolve(Site(*site))
    if fill is None or type(fill) not in _LAST or tensor.dtype.itemsize == 1:  # which are drawn elsewhere, and copied
        return fill
    operation, names = _LAST[type(fill)]
    if type(fill) is Constant and type(tensor) in (Tensor, nn.Parameter):  # without a shard, as most are
        check_values(leaf, tensor)
        with torch.no_grad():
            tensor.fill_(fill.val)
    else:
        write(fill, Shard.whole(leaf, tensor), NOISE)
    for watcher in watchers:
        watcher.tell(operation, (tensor, *(getattr(fill, name) for name in names)))
    return None


@lru_cache(maxsize=1024)
def _resolved(init: Kaiming, leaf: str, shape: tuple[int, ...], dtype: torch.dtype) -> Fill | None:
    """The fill of a formula, which nothing else decides; a model has hundreds of like layers."""
    return init.resolve(Site(leaf, shape, dtype))


_LAST: Final[dict[type, tuple[torch._ops.OpOverload, tuple[str, ...]]]] = {
    Constant: (torch.ops.aten.fill_.Scalar, ("val",)),
    Normal: (torch.ops.aten.normal_.default, ("mean", "std")),
    Uniform: (torch.ops.aten.uniform_.default, ("a", "b")),
    TruncNormal: (torch.ops.aten.clamp_.default, ("low", "high")),
}
"""The last operation that writing a fill consists of, and those of its numbers that are the arguments."""


# --- formulas: MMEngine's arguments, and the initializer of the core that they stand for -----------------------


def formula(cls: Callable[..., Initializer], **numbers: Any) -> Initializer:
    """Return the initializer of a class; ValueError, which is a RuntimeError, for numbers that it cannot have."""
    values = {name: number(name, value) for name, value in numbers.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise InitCfgValueError(str(error)) from None


def trunc_normal(**numbers: Any) -> Initializer:
    """A truncated normal; ValueError for a ``std`` of 0, which the core can have and MMEngine divides by."""
    if number("std", numbers["std"]) <= 0:
        raise InitCfgValueError(f"a truncated normal needs std > 0, but got std={numbers['std']!r}")
    return formula(TruncNormal, **numbers)


def xavier(gain: Any, distribution: Any) -> Initializer:
    """Xavier; AssertionError for a distribution that is neither uniform nor normal."""
    return formula(partial(Xavier, distribution=_distribution(distribution)), gain=gain)


def kaiming(a: Any, mode: Any, nonlinearity: Any, distribution: Any) -> Initializer:
    """Kaiming; AssertionError for another distribution, ValueError for another mode or nonlinearity."""
    is_plain = type(a) in (int, float) and all(type(word) is str for word in (mode, nonlinearity, distribution))
    return (_kaiming if is_plain else _kaiming.__wrapped__)(a, mode, nonlinearity, distribution)


@lru_cache(maxsize=1024, typed=True)
def _kaiming(a: Any, mode: Any, nonlinearity: Any, distribution: Any) -> Initializer:
    mode = str(mode).lower()
    if mode not in ("fan_in", "fan_out"):
        raise InitCfgValueError(f"mode must be fan_in or fan_out, but got {mode!r}")
    if nonlinearity not in nonlinearities():
        near = did_you_mean(nonlinearity, nonlinearities())
        raise InitCfgValueError(f"unknown nonlinearity {nonlinearity!r}{near}")
    words = {"mode": mode, "nonlinearity": nonlinearity, "distribution": _distribution(distribution)}
    # torch.nn.init takes a slope of None for its default.
    return formula(partial(Kaiming, **words), a=0.01 if a is None else a)


def _distribution(value: Any) -> Any:
    if value not in ("uniform", "normal"):
        raise InitCfgAssertionError(f"distribution must be 'uniform' or 'normal', but got {value!r}")
    return value
