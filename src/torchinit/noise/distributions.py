"""Distributions, each reduced to the few numbers that its arithmetic needs.

Everything that depends on the parameters alone is done here, once, on the host, in exact or correctly rounded
arithmetic; what is left for each element is integer operations and binary32 ``+ - * /``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Context, Decimal, localcontext
from enum import IntEnum
from functools import cached_property, lru_cache, partial

import torch

PACKED = struct.Struct("<iIII7fi")
"""The layout of a draw in the kernel's memory."""

MAX_SIGMAS = 6.5
"""No draw of a normal is further from its mean than this, in standard deviations: no word gives more than 6.34."""

_FARTHEST = 38.0  # a truncation whose nearer bound is more standard deviations away has no mass
_MAX32 = float(torch.finfo(torch.float32).max)
_WHOLE = 1 << 24
_WORDS = 1 << 32
_FEW_CELLS = 1 << 24
_CENTRAL = Decimal(1) / 64
_EXACT = Context(prec=60, Emin=-999999, Emax=999999)
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803")


class DrawKind(IntEnum):
    """The arithmetic that turns a word into a value; the numbers are those of ``kernel.h``."""

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
    """All that an engine needs to know of a distribution; every float is a binary32 number.

    ``value = clamp(z * scale + shift, low, high)``, where z comes from the word as ``kind`` says:
    ``width`` and ``start`` map words to words; ``first``, ``step`` and ``depth`` map them into a small
    part of the normal.
    """

    kind: DrawKind
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
    """
    check_parameters(distribution, params)
    if any(math.isnan(value) for value in params):
        raise ValueError(f"{distribution}{params} has a parameter that is not a number")
    # The cache takes -0.0 for 0.0 and 1 for 1.0, whichever was asked for first. So a draw must not depend on which of
    # them it was: no zero among its numbers is negative.
    draw = _RESOLVERS[distribution][1](*params)
    if distribution in ("normal", "bernoulli", "sign"):
        return draw
    low, high = _bounds(distribution, params, dtype)
    reach = MAX_SIGMAS * draw.scale
    if draw.kind is DrawKind.NORMAL and low <= draw.shift - reach and draw.shift + reach <= high:
        return draw
    return replace(draw, low=low, high=high)


def check_parameters(distribution: str, params: tuple[float, ...]) -> None:
    """Raise ValueError for a distribution that is not known or the wrong number of parameters."""
    if distribution not in _RESOLVERS:
        raise ValueError(f"unknown distribution {distribution!r}; known are {', '.join(sorted(_RESOLVERS))}")
    count, _ = _RESOLVERS[distribution]
    if len(params) != count:
        raise ValueError(f"{distribution} takes {count} numbers, got {params}")


def _normal(mean: float, std: float) -> Draw:
    _check_normal("normal", mean, std)
    return Draw(DrawKind.NORMAL, scale=binary32(std), shift=binary32(mean))


def _check_normal(distribution: str, mean: float, std: float) -> None:
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"{distribution} needs a finite std >= 0, got {std}")
    if not math.isfinite(mean):
        raise ValueError(f"{distribution} needs a finite mean, got {mean}")


def _uniform(low: float, high: float) -> Draw:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high and high - low <= _MAX32):
        raise ValueError(f"uniform needs finite low <= high at most {_MAX32:.4g} apart, got ({low}, {high})")
    return Draw(DrawKind.UNIFORM, scale=binary32((high - low) * 2.0**-24), shift=binary32(low))


def _truncated(mean: float, std: float, low: float, high: float) -> Draw:
    _check_normal("truncated normal", mean, std)
    if low > high:
        raise ValueError(f"truncated normal needs low <= high, got low={low}, high={high}")
    if std == 0 and low <= mean <= high:
        return Draw(DrawKind.UNIFORM, scale=0.0, shift=binary32(mean))
    draw = _restricted((low - mean) / std, (high - mean) / std) if std > 0 else None
    if draw is None:
        spelled = f"truncated normal with mean={mean}, std={std}, low={low}, high={high}"
        raise ValueError(f"{spelled} has no mass between its bounds")
    return replace(draw, scale=draw.scale * binary32(std), shift=binary32(mean))


def _bernoulli(p: float) -> Draw:
    if not 0 <= p <= 1:
        raise ValueError(f"bernoulli needs a probability between 0 and 1, got {p}")
    ones = round(p * _WORDS)
    return Draw(DrawKind.BERNOULLI, width=ones - 1) if ones else Draw(DrawKind.INTEGER)


def _integer(low: float, high: float) -> Draw:
    whole = all(math.isfinite(value) and value == math.floor(value) for value in (low, high))
    if not whole or not -_WHOLE <= low < high <= _WHOLE:
        raise ValueError(f"integer needs whole numbers -2**24 <= low < high <= 2**24, got ({low}, {high})")
    return Draw(DrawKind.INTEGER, shift=float(low), width=int(high) - int(low))


_RESOLVERS: dict[str, tuple[int, Callable[..., Draw]]] = {
    "normal": (2, _normal),
    "uniform": (2, _uniform),
    "truncated": (4, _truncated),
    "bernoulli": (1, _bernoulli),
    "integer": (2, _integer),
    "sign": (0, partial(Draw, DrawKind.SIGN)),
}
"""The number of parameters of each distribution, and its reduction."""


@lru_cache(maxsize=4096)
def _restricted(alpha: float, beta: float) -> Draw | None:
    """The standard normal between ``alpha`` and ``beta``; None where it has no mass.

    A word is a cell of probability 2**-32, and the quantile of a cell is one value. So the coarsest map is taken that
    loses nothing: all words, where the interval holds all cells; else the words are spread over the cells that it holds
    (SCALED), as long as these are many. Where they are few, values would repeat, and what is left of the normal is cut
    into cells of its own: as wide in probability near the middle (NARROW), by logarithm in the tail (TAIL), where a
    binary32 probability near 1 has no digits left. Tail masses are exact there, or the cells would not meet the bounds.
    """
    flip = alpha + beta < 0
    near, far = (-beta, -alpha) if flip else (alpha, beta)
    above, beyond = upper_tail(near), upper_tail(far)
    if near > _FARTHEST or above <= beyond:
        return None
    with localcontext(_EXACT):
        bottom, top = (round((1 - upper_tail(end)) * _WORDS) for end in (alpha, beta))
        if top - bottom == _WORDS:
            return Draw(DrawKind.NORMAL)
        # The quantile reads a word as signed, so that the lowest of the 2**32 cells is the word 2**31: a half of all
        # words is added to the place where the cells begin. floor(word * width / 2**32) spreads the words over the
        # cells; each gets as many as any other, or one more.
        if top - bottom >= _FEW_CELLS:
            return Draw(DrawKind.SCALED, width=top - bottom, start=(bottom + _WORDS // 2) % _WORDS)
        return replace(_fine(above, beyond), scale=-1.0 if flip else 1.0)


def _fine(above: Decimal, beyond: Decimal) -> Draw:
    """The part of the normal between two tail masses, where too few words would fall."""
    mass = above - beyond
    # NARROW draws x = 2 p - 1, what the central part of the quantile is a function of. That fit ends at |x| = 31/32,
    # which is a tail of 1/64, so each end must leave that much outside; the flip has seen to the nearer one. TAIL draws
    # which share of the mass above the nearer end lies above the value: from 1 - part on, up to 1. With it -ln(tail
    # mass) is -ln(above) - ln(share), in which nothing is lost however far out it lies; 1 - p would have no digits
    # there. Both begin a half of a step in, so that each word stands for the middle of its cell and none for an end,
    # where a quantile may be infinite.
    if beyond >= _CENTRAL:
        step = 2 * mass / _FEW_CELLS
        return Draw(DrawKind.NARROW, first=binary32(1 - 2 * above + step / 2), step=binary32(step))
    part = mass / above
    step = part / (_WORDS // 2)
    return Draw(DrawKind.TAIL, first=binary32(1 - part + step / 2), step=binary32(step), depth=binary32(-above.ln()))


@lru_cache(maxsize=8192)
def upper_tail(z: float) -> Decimal:
    """The probability that a standard normal exceeds z, to 40 digits, the same on every machine.

    Platforms differ in the last bit of ``erf``; decimal arithmetic, its ``exp`` included, is correctly rounded by its
    definition. Near the middle ``1/2 - phi(z) * sum(z**(2k+1) / (1 * 3 * ... * (2k+1)))``, further out Laplace's
    continued fraction ``phi(z) / (z + 1/(z + 2/(z + 3/(z + ...))))`` (Abramowitz and Stegun 26.2.11, 26.2.14).
    """
    if math.isinf(z):
        return Decimal(0 if z > 0 else 1)
    with localcontext(_EXACT):
        distance = Decimal(abs(z))
        density = (-distance * distance / 2).exp() / (2 * _PI).sqrt()
        # All terms of the series are positive, but what is left of a half at 6 begins with nine zeros, and so has 51 of
        # the 60 digits. The fraction would do nearer to the middle, too, with more terms; from 6 on 200 of them are
        # good to all digits.
        tail = Decimal("0.5") - density * _series(distance) if distance <= 6 else density / _fraction(distance)
        return tail if z >= 0 else 1 - tail


def _series(z: Decimal) -> Decimal:
    term = total = z
    odd = 3
    while term > Decimal("1e-62"):
        term = term * z * z / odd
        total += term
        odd += 2
    return total


def _fraction(z: Decimal) -> Decimal:
    below = z
    for term in range(200, 0, -1):
        below = z + term / below
    return below


def _bounds(distribution: str, params: tuple[float, ...], dtype: torch.dtype) -> tuple[float, float]:
    """The least and the greatest number of the dtype within the bounds.

    Where the dtype has none there, both are the number next below the upper bound.
    """
    # Values are clamped before they are rounded to the dtype, and no value that lies between two of its numbers is
    # rounded to one beyond them. So the bounds are numbers of the dtype: the outermost within the interval as the user
    # gave it, not as float32 has it. A float64 tensor has float32's, as its values are float32's. The least one is made
    # by a subtraction from 0.0: with -0.0 for a bound, the torch engine wrote -0.0 where the kernel, and the page of
    # the stream, have 0.0.
    low, high = params[-2:]
    grid = torch.float32 if dtype == torch.float64 else dtype
    closed = distribution == "truncated" or low == high
    top = floor_to(high if closed else math.nextafter(high, -math.inf), grid)
    return min(0.0 - floor_to(-low, grid), top), top


def binary32(value: float | Decimal) -> float:
    """The binary32 number nearest to the value, ties to even, and no negative zero."""
    try:
        (single,) = struct.unpack("<f", struct.pack("<f", value))
    except OverflowError:
        raise ValueError(f"{value} is too large for float32") from None
    return float(single) + 0.0


def floor_to(value: float, dtype: torch.dtype) -> float:
    """The greatest finite number of the dtype that is not above the value; infinities stay."""
    info = torch.finfo(dtype)
    if math.isinf(value):
        return value
    if abs(value) > info.max:
        return math.copysign(float(info.max), value)
    exponent = max(math.frexp(value)[1], math.frexp(info.smallest_normal)[1])
    spacing = math.ldexp(info.eps, exponent - 1)
    return math.floor(value / spacing) * spacing + 0.0
