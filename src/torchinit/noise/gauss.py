"""Gauss: the tail of the normal distribution to 40 digits, the same on every machine.

Platforms differ in the last bit of ``erf``; decimal arithmetic, its ``exp`` included, is correctly rounded
by its definition, so whatever is derived from these numbers is the same everywhere.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from decimal import Context, Decimal, localcontext
from functools import lru_cache

_DIGITS = 60
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803")
_SERIES_UP_TO = 6.0
_FRACTION_TERMS = 200


def exactly() -> AbstractContextManager[Context]:
    """Decimal arithmetic to 60 digits, whatever the caller's decimal context is."""
    return localcontext(Context(prec=_DIGITS, Emin=-999999, Emax=999999))


@lru_cache(maxsize=8192)
def upper_tail(z: float) -> Decimal:
    """The probability that a standard normal exceeds z, to 40 digits.

    Near the middle ``1/2 - phi(z) * sum(z**(2k+1) / (1 * 3 * ... * (2k+1)))``, further out Laplace's
    continued fraction ``phi(z) / (z + 1/(z + 2/(z + 3/(z + ...))))`` (Abramowitz and Stegun 26.2.11,
    26.2.14).

    >>> f"{upper_tail(1.0):.12f}", f"{upper_tail(10.0):.12e}"
    ('0.158655253931', '7.619853024161e-24')
    """
    if math.isinf(z):
        return Decimal(0 if z > 0 else 1)
    with exactly():
        tail = _series(Decimal(abs(z))) if abs(z) <= _SERIES_UP_TO else _fraction(Decimal(abs(z)))
        return tail if z >= 0 else 1 - tail


def _density(z: Decimal) -> Decimal:
    return (-z * z / 2).exp() / (2 * _PI).sqrt()


def _series(z: Decimal) -> Decimal:
    term = total = z
    odd = 3
    while term > Decimal("1e-62"):
        term = term * z * z / odd
        total += term
        odd += 2
    return Decimal("0.5") - _density(z) * total


def _fraction(z: Decimal) -> Decimal:
    below = z
    for term in range(_FRACTION_TERMS, 0, -1):
        below = z + term / below
    return _density(z) / below
