"""Validation of arguments: numbers, whole numbers, choices."""

from __future__ import annotations

import math
from typing import Literal

import pytest

from torchinit.serialization.schema import check_choice, check_number, is_integer


def test_numbers() -> None:
    assert check_number("x", 3) == 3.0
    assert isinstance(check_number("x", 3), float)
    assert check_number("x", -math.inf, finite=False) == -math.inf


@pytest.mark.parametrize("value", ["1", None, True, 1j, [1.0], b"1"])
def test_no_numbers(value: object) -> None:
    with pytest.raises(TypeError, match="x must be a number, but got"):
        check_number("x", value)


@pytest.mark.parametrize(
    ("value", "finite", "least", "message"),
    [
        (math.nan, False, -math.inf, "x must not be NaN"),
        (math.inf, True, 0, "x must be finite, but got inf"),
        (-0.5, True, 0, r"x must be at least 0, but got -0\.5"),
        (1, True, 1.5, r"x must be at least 1\.5, but got 1"),
    ],
)
def test_bad_numbers(value: float, finite: bool, least: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_number("x", value, finite=finite, least=least)


def test_whole_numbers() -> None:
    assert [is_integer(value) for value in (1, 7, 0, -1, 1.0, True, "1")] == [
        True,
        True,
        False,
        False,
        False,
        False,
        False,
    ]
    assert is_integer(0, least=0)


def test_choices() -> None:
    check_choice("by", "a", Literal["a", "b"])
    with pytest.raises(ValueError, match="by must be one of a, b, but got 'c'"):
        check_choice("by", "c", Literal["a", "b"])
