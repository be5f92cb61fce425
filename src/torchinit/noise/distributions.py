"""Draws: a distribution reduced to the few numbers that its arithmetic needs.

Everything that depends on the parameters alone is done here, once, on the host, in exact or correctly rounded
arithmetic; what is left for each element is integer operations and binary32 ``+ - * /``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import IntEnum
from functools import cached_property, lru_cache

import torch

from torchinit.noise.gauss import exactly, upper_tail

SIZES = {"normal": 2, "uniform": 2, "truncated": 4, "bernoulli": 1, "integer": 2, "sign": 0}
"""How many parameters each distribution takes."""

FARTHEST = 38.0
"""A truncation whose nearer bound is more standard deviations away than this has no mass."""

PACKED = struct.Struct("<iIII7fi")
"""How the kernel has a draw in its memory."""

MAX_SIGMAS = 6.5
"""No draw of a normal is further from its mean than this, in standard deviations: no word gives more than 6.34."""

_MAX32 = float(torch.finfo(torch.float32).max)
_WHOLE = 1 << 24
_WORDS = 1 << 32
_FEW_CELLS = 1 << 24
_CENTRAL = Decimal(1) / 64


class Kind(IntEnum):
    """Which arithmetic turns a word into a value; the numbers are those of ``kernel.c``."""

    UNIFORM = 0
    NORMAL = 1
    SCALED = 2
    NARROW = 3
    TAIL = 4
    BERNOULLI = 5
    INTEGER = 6
    SIGN = 7
    WORDS = 8


@dataclass(frozen=True)
class Draw:
    """What an engine needs to know of a distribution; every float is a binary32 number.

    ``value = clamp(z * scale + shift, low, high)``, where z comes from the word as ``kind`` says:
    ``width`` and ``start`` map words to words; ``first``, ``step`` and ``depth`` map them into a small
    part of the normal.
    """

    kind: Kind
    scale: float = 1.0
    shift: float = 0.0
    low: float = -math.inf
    high: float = math.inf
    width: int = 0
    start: int = 0
    first: float = 0.0
    step: float = 0.0
    depth: float = 0.0

    @property
    def bounded(self) -> bool:
        return self.low > -math.inf or self.high < math.inf

    @cached_property
    def packed(self) -> bytes:
        """The draw as it stands in a job of the kernel."""
        numbers = (self.scale, self.shift, self.low, self.high, self.first, self.step, self.depth)
        return PACKED.pack(self.kind, self.width, self.start, self.bounded, *numbers, 0)


@lru_cache(maxsize=4096)
def resolve(distribution: str, params: tuple[float, ...], dtype: torch.dtype) -> Draw:
    """The draw of a distribution for a real floating dtype.

    Raises ValueError for a distribution that is not known or that its parameters do not make.

    >>> resolve("normal", (0.0, 0.5), torch.float32).scale
    0.5
    >>> resolve("uniform", (0.0, 1.0), torch.bfloat16).high
    0.99609375
    """
    check_parameters(distribution, params)
    if any(math.isnan(value) for value in params):
        raise ValueError(f"{distribution}{params} has a parameter that is not a number")
    draw = _RESOLVERS[distribution](*params)
    if distribution in ("normal", "bernoulli", "sign"):
        return draw
    low, high = _bounds(distribution, params, dtype)
    reach = MAX_SIGMAS * draw.scale
    if draw.kind is Kind.NORMAL and low <= draw.shift - reach and draw.shift + reach <= high:
        return draw
    return replace(draw, low=low, high=high)


def check_parameters(distribution: str, params: tuple[float, ...]) -> None:
    """Refuses, by a ValueError, a distribution that is not known or the wrong number of parameters."""
    if distribution not in SIZES:
        raise ValueError(f"unknown distribution {distribution!r}; known are {', '.join(sorted(SIZES))}")
    if len(params) != SIZES[distribution]:
        raise ValueError(f"{distribution} takes {SIZES[distribution]} numbers, got {params}")


def _normal(mean: float, std: float) -> Draw:
    _check_normal("normal", mean, std)
    return Draw(Kind.NORMAL, scale=binary32(std), shift=binary32(mean))


def _uniform(low: float, high: float) -> Draw:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high and high - low <= _MAX32):
        raise ValueError(f"uniform needs finite low <= high at most {_MAX32:.4g} apart, got ({low}, {high})")
    return Draw(Kind.UNIFORM, scale=binary32((high - low) * 2.0**-24), shift=binary32(low))


def _truncated(mean: float, std: float, low: float, high: float) -> Draw:
    _check_normal("truncated normal", mean, std)
    if low > high:
        raise ValueError(f"truncated normal needs low <= high, got low={low}, high={high}")
    if std == 0 and low <= mean <= high:
        return Draw(Kind.UNIFORM, scale=0.0, shift=binary32(mean))
    draw = _restricted((low - mean) / std, (high - mean) / std) if std > 0 else None
    if draw is None:
        spelled = f"truncated normal with mean={mean}, std={std}, low={low}, high={high}"
        raise ValueError(f"{spelled} has no mass between its bounds")
    return replace(draw, scale=draw.scale * binary32(std), shift=binary32(mean))


def _bernoulli(p: float) -> Draw:
    if not 0 <= p <= 1:
        raise ValueError(f"bernoulli needs a probability between 0 and 1, got {p}")
    ones = round(p * _WORDS)
    return Draw(Kind.BERNOULLI, width=ones - 1) if ones else Draw(Kind.INTEGER)


def _integer(low: float, high: float) -> Draw:
    whole = all(math.isfinite(value) and value == math.floor(value) for value in (low, high))
    if not whole or not -_WHOLE <= low < high <= _WHOLE:
        raise ValueError(f"integer needs whole numbers -2**24 <= low < high <= 2**24, got ({low}, {high})")
    return Draw(Kind.INTEGER, shift=float(low), width=int(high) - int(low))


def _sign() -> Draw:
    return Draw(Kind.SIGN)


_RESOLVERS: dict[str, Callable[..., Draw]] = {
    "normal": _normal,
    "uniform": _uniform,
    "truncated": _truncated,
    "bernoulli": _bernoulli,
    "integer": _integer,
    "sign": _sign,
}


@lru_cache(maxsize=4096)
def _restricted(alpha: float, beta: float) -> Draw | None:
    """The standard normal between ``alpha`` and ``beta``, by the coarsest map that loses nothing."""
    flip = alpha + beta < 0
    near, far = (-beta, -alpha) if flip else (alpha, beta)
    above, beyond = upper_tail(near), upper_tail(far)
    if near > FARTHEST or above <= beyond:
        return None
    with exactly():
        bottom, top = _cell(1 - upper_tail(alpha)), _cell(1 - upper_tail(beta))
        if top - bottom == _WORDS:
            return Draw(Kind.NORMAL)
        if top - bottom >= _FEW_CELLS:
            return Draw(Kind.SCALED, width=top - bottom, start=(bottom + _WORDS // 2) % _WORDS)
        return replace(_fine(above, beyond), scale=-1.0 if flip else 1.0)


def _fine(above: Decimal, beyond: Decimal) -> Draw:
    """The part of the normal between two tail masses, where too few words would fall."""
    mass = above - beyond
    if beyond >= _CENTRAL:
        step = 2 * mass / _FEW_CELLS
        return Draw(Kind.NARROW, first=_near(1 - 2 * above + step / 2), step=_near(step))
    part = mass / above
    step = part / (_WORDS // 2)
    return Draw(Kind.TAIL, first=_near(1 - part + step / 2), step=_near(step), depth=_near(-above.ln()))


def _cell(probability: Decimal) -> int:
    return round(probability * _WORDS)


def _near(value: Decimal) -> float:
    return binary32(float(value))


def _check_normal(what: str, mean: float, std: float) -> None:
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"{what} needs a finite std >= 0, got {std}")
    if not math.isfinite(mean):
        raise ValueError(f"{what} needs a finite mean, got {mean}")


def _bounds(distribution: str, params: tuple[float, ...], dtype: torch.dtype) -> tuple[float, float]:
    """The least and the greatest number of the dtype within the bounds.

    Where the dtype has none there, both are the number next below the upper bound.
    """
    low, high = params[-2:]
    grid = torch.float32 if dtype == torch.float64 else dtype
    closed = distribution == "truncated" or low == high
    inside = high if closed else math.nextafter(high, -math.inf)
    top = floor_to(inside, grid)
    bottom = -floor_to(-low, grid)
    return min(bottom, top), top


def binary32(value: float) -> float:
    """The binary32 number nearest to the value, ties to even, and no negative zero.

    >>> binary32(0.1)
    0.10000000149011612
    """
    try:
        (single,) = struct.unpack("<f", struct.pack("<f", value))
    except OverflowError:
        raise ValueError(f"{value} is too large for float32") from None
    return float(single) + 0.0


def floor_to(value: float, dtype: torch.dtype) -> float:
    """The greatest finite number of the dtype that is not above the value; infinities stay.

    >>> floor_to(0.1, torch.bfloat16), floor_to(1e9, torch.float16)
    (0.099609375, 65504.0)
    """
    info = torch.finfo(dtype)
    if math.isinf(value):
        return value
    if abs(value) > info.max:
        return math.copysign(float(info.max), value)
    _, exponent = math.frexp(value)
    least = math.frexp(info.smallest_normal * info.eps)[1] - 1
    ulp = math.ldexp(info.eps, exponent - 1) if value else 1.0
    ulp = max(ulp, math.ldexp(1.0, least))
    return math.floor(value / ulp) * ulp + 0.0
