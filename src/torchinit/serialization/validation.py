"""Validation: checks of arguments when an object is made."""

from __future__ import annotations

import math
from typing import get_args


def check_number(name: str, value: object, *, least: float = -math.inf, finite: bool = True) -> float:
    """The value as a float; raises TypeError if it is not a number, ValueError if it is NaN, infinite or too small."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, but got {value!r}")
    if math.isnan(value):
        raise ValueError(f"{name} must not be NaN")
    if finite and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, but got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least:g}, but got {value!r}")
    return float(value)


def is_integer(value: object, least: int = 1) -> bool:
    """Whether the value is an ``int``, not a ``bool``, that is not below ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_str(name: str, value: object) -> None:
    """Raise TypeError unless the value is a ``str`` or None."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be text, but got {value!r}")


def check_bool(name: str, value: object) -> None:
    """Raise TypeError unless the value is a ``bool``."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be true or false, but got {value!r}")


def check_choice(name: str, value: object, choices: object) -> None:
    """Raise ValueError unless the value is one of a Literal's."""
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, but got {value!r}")


def check_integers(value: object, *names: str, least: int = 1) -> None:
    """Raise ValueError unless these attributes of an object are whole numbers that are not below ``least``."""
    for name in names:
        if not is_integer(number := getattr(value, name), least):
            raise ValueError(f"{name} must be a whole number of at least {least}, but got {number!r}")
