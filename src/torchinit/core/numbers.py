"""Numbers: arguments that must be numbers, looked at when the object is made."""

from __future__ import annotations

import math


def number(name: str, value: object, *, least: float = -math.inf, finite: bool = True) -> float:
    """The value as a float.

    Raises TypeError where it is no number, ValueError where it is NaN, not finite or too small.

    >>> number("std", 1)
    1.0
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, but got {value!r}")
    if math.isnan(value):
        raise ValueError(f"{name} must not be NaN")
    if finite and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, but got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least:g}, but got {value!r}")
    return float(value)


def whole_number(value: object, least: int = 1) -> bool:
    """Whether the value is a whole number that is not below ``least``.

    >>> whole_number(3), whole_number(True), whole_number(2.0)
    (True, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def replaced(values: tuple[int, ...], at: int, value: int) -> tuple[int, ...]:
    """The values with another one in one place.

    >>> replaced((4, 8), 0, 2)
    (2, 8)
    """
    return (*values[:at], value, *values[at + 1 :])
