"""Arguments: what they must be, looked at when an object is made."""

from __future__ import annotations

import math
from typing import get_args


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


def is_whole(value: object, least: int = 1) -> bool:
    """Whether the value is a whole number that is not below ``least``.

    >>> is_whole(3), is_whole(True), is_whole(2.0)
    (True, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def text(name: str, value: object) -> None:
    """Raises TypeError unless the value is text, or None.

    >>> text("prefix", "backbone")
    """
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be text, but got {value!r}")


def truth(name: str, value: object) -> None:
    """Raises TypeError unless the value is true or false.

    >>> truth("lock", value=False)
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be true or false, but got {value!r}")


def choice(name: str, value: object, choices: object) -> None:
    """Raises ValueError unless the value is one of a Literal's.

    >>> from typing import Literal
    >>> choice("by", "depth", Literal["depth", "index"])
    """
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, but got {value!r}")
