"""Formulas from MMEngine's arguments: the core initializer that each call stands for."""

from __future__ import annotations

from typing import Any, cast

from torchinit.core.fills import Constant, Normal, TruncNormal, Uniform
from torchinit.core.formulas import FanMode, Kaiming, Xavier
from torchinit.core.gains import nonlinearities
from torchinit.errors import did_you_mean
from torchinit.modules.errors import InitCfgAssertionError, InitCfgRangeError, InitCfgTypeError, InitCfgValueError


def figure(name: str, value: Any) -> float:
    """The number that torch would take this for: numpy's and zero-dimensional tensors are numbers, too."""
    if type(value) in (int, float):
        return cast("float", value)
    if not hasattr(value, "__float__"):
        raise InitCfgTypeError(f"{name} must be a number, but got {value!r}")
    return float(value)


def constant(val: Any) -> Constant:
    """Every element ``val``."""
    return Constant(figure("val", val))


def normal(mean: Any, std: Any) -> Normal:
    """A normal; ValueError for a negative ``std``."""
    if figure("std", std) < 0:
        raise InitCfgRangeError(f"a normal needs std >= 0, but got std={std!r}")
    return Normal(figure("mean", mean), figure("std", std))


def uniform(a: Any, b: Any) -> Uniform:
    """A uniform; ValueError for ``a`` above ``b``."""
    if figure("a", a) > figure("b", b):
        raise InitCfgRangeError(f"a uniform needs a <= b, but got a={a!r}, b={b!r}")
    return Uniform(figure("a", a), figure("b", b))


def trunc_normal(mean: Any, std: Any, a: Any, b: Any) -> TruncNormal:
    """A truncated normal; ``a`` and ``b`` are values. ValueError for a ``std`` that is not above 0."""
    if figure("std", std) <= 0:
        raise InitCfgValueError(f"a truncated normal needs std > 0, but got std={std!r}")
    return TruncNormal(figure("mean", mean), figure("std", std), figure("a", a), figure("b", b))


def xavier(gain: Any, distribution: Any) -> Xavier:
    """Xavier; AssertionError for a distribution that is neither uniform nor normal."""
    _distribution(distribution)
    if figure("gain", gain) < 0:
        raise InitCfgRangeError(f"Xavier needs gain >= 0, but got gain={gain!r}")
    return Xavier(figure("gain", gain), distribution)


def kaiming(a: Any, mode: Any, nonlinearity: Any, distribution: Any) -> Kaiming:
    """Kaiming; AssertionError for another distribution, ValueError for another mode or nonlinearity."""
    _distribution(distribution)
    mode = str(mode).lower()
    if mode not in ("fan_in", "fan_out"):
        raise InitCfgValueError(f"mode must be fan_in or fan_out, but got {mode!r}")
    if nonlinearity not in nonlinearities():
        near = did_you_mean(nonlinearity, nonlinearities())
        raise InitCfgValueError(f"unknown nonlinearity {nonlinearity!r}{near}")
    # torch.nn.init takes a slope of None for its default.
    slope = 0.01 if a is None else figure("a", a)
    return Kaiming(slope, cast("FanMode", mode), nonlinearity, distribution)


def _distribution(value: Any) -> None:
    if value not in ("uniform", "normal"):
        raise InitCfgAssertionError(f"distribution must be 'uniform' or 'normal', but got {value!r}")
