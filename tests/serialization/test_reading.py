"""Reading: type annotations, and the plain data that they stand for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch

from torchinit import Layer, Name, Normal
from torchinit.initializers import Sparse
from torchinit.serialization.reading import (
    Reader,
    argument_types,
    arguments,
    construct,
    is_integer_type,
    is_number_type,
    kind_of,
    required,
)


@pytest.mark.parametrize(
    ("data", "hint", "answer"),
    [
        (1, int, True),
        (1.0, int, False),
        (True, int, False),
        (1, float, True),
        (0.5, float, True),
        (False, float, False),
        ("0.5", float, False),
        ("-inf", float, True),
        (10**400, float, False),
        (True, bool, True),
        (1, bool, False),
        ("a", str, True),
        (None, type(None), True),
        ("float32", torch.dtype, True),
        ("compile", torch.dtype, False),
        (3, torch.dtype, False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (True, Literal[1], False),
        ([1], Literal[1], False),
        (float("nan"), float, True),
    ],
)
def test_fits(data: object, hint: Any, answer: bool) -> None:
    assert kind_of(hint).fits(data, Reader({}, "data")) is answer


def test_plain_values() -> None:
    reader = Reader({}, "data")
    assert reader.read("bfloat16", torch.dtype, "") is torch.bfloat16
    assert reader.read("-inf", float, "") == -math.inf
    assert type(reader.read(1, float, "")) is float
    assert type(reader.read(1, int, "")) is int
    assert reader.mistakes == []


def test_where_numbers_stand() -> None:
    assert is_number_type(float | None)
    assert not is_number_type(float.__class__)
    assert is_integer_type(int)
    assert is_integer_type(int | tuple[int, ...])
    assert not is_integer_type(float)
    assert not is_integer_type(str)


def test_descriptions() -> None:
    hints: tuple[Any, ...] = (float, int, str, bool, type(None), torch.dtype, tuple[int, ...], Literal["a"], Normal)
    assert [kind_of(hint).describe(Reader({}, "data")) for hint in hints] == [
        "a number", "a whole number", "text", "true or false", "nothing", "the name of a dtype", "a list", "'a'",
        "a table",
    ]  # fmt: skip


def test_arguments_build_the_object_again() -> None:
    for value in (Normal(std=0.02), Name("a.*", "b"), Layer("Linear", subclasses=True), Name()):
        assert construct(type(value), arguments(value)) == value
    assert arguments(Normal(std=0.02), defaults=False) == {"std": 0.02}
    assert arguments(Layer("Linear"), defaults=False) == {"names": ("Linear",)}


def test_required_arguments() -> None:
    assert required(Normal) == ()
    assert required(Sparse) == ("sparsity",)
    assert required(Layer) == ("names",)


def test_hints_follow_the_signature() -> None:
    @dataclass
    class Odd:
        first: int
        second: str = ""

    Odd.__annotations__ = {"first": int, "second": str}
    assert list(argument_types(Odd)) == ["first", "second"]
