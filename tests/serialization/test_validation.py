"""Arguments, short text and columns: what everything else in the core leans on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pytest

from torchinit import Normal
from torchinit._spelling import spell
from torchinit._text import columns, some
from torchinit.initializers import Padded
from torchinit.serialization.validation import choice, is_whole, number


def test_numbers() -> None:
    assert number("x", 3) == 3.0
    assert isinstance(number("x", 3), float)
    assert number("x", -math.inf, finite=False) == -math.inf


@pytest.mark.parametrize("value", ["1", None, True, 1j, [1.0], b"1"])
def test_no_numbers(value: object) -> None:
    with pytest.raises(TypeError, match="x must be a number, but got"):
        number("x", value)


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
        number("x", value, finite=finite, least=least)


def test_whole_numbers() -> None:
    assert [is_whole(value) for value in (1, 7, 0, -1, 1.0, True, "1")] == [
        True,
        True,
        False,
        False,
        False,
        False,
        False,
    ]
    assert is_whole(0, least=0)


def test_choices() -> None:
    choice("by", "a", Literal["a", "b"])
    with pytest.raises(ValueError, match="by must be one of a, b, but got 'c'"):
        choice("by", "c", Literal["a", "b"])


@dataclass
class Custom:
    """A dataclass of a user's own, which knows nothing of short text."""

    inner: object
    name: str = "x"
    rate: float = 0.5


def test_spelling() -> None:
    assert spell(Custom(Normal(), rate=1 / 3)) == "Custom(Normal(), rate=0.333333)"
    assert spell(Custom((1, 2.0, "a"), name="it's")) == "Custom((1, 2, 'a'), name=\"it's\")"
    assert spell(Custom(Padded(Normal(), 1))) == "Custom(Normal(), row 1 zero)"
    assert spell(Custom) == repr(Custom)
    assert spell(None) == "None"


def test_columns_and_lists() -> None:
    assert columns(["a", "b"], []) == "a  b"
    assert columns(["a", "b"], [["xx", ""], ["", "y"]]).splitlines() == ["a   b", "xx", "    y"]
    assert some(["a"]) == "a"
    assert some(["a", "b", "c"], most=1) == "a and 2 more"
