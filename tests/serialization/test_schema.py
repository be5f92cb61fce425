"""Schemas: objects as plain data and back, and every mistake at once; numbers and choices that are checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import strategies
from torchinit import ConfigError, Constant, Kaiming, Rule, Shape
from torchinit.initializers import Fill, Initializer
from torchinit.model import Site
from torchinit.rules import Selector
from torchinit.rules.rule import SCHEMA
from torchinit.serialization.json import FrozenDict
from torchinit.serialization.registry import ClassRegistry, TaggedUnion
from torchinit.serialization.schema import Schema, check_choice, check_number, is_integer


@dataclass(frozen=True)
class Inner:
    """A dataclass within another."""

    low: float = -math.inf
    pair: tuple[int, str] | None = None


@dataclass(frozen=True)
class Outer:
    """One field of each form."""

    count: int
    size: float = 0.5
    flag: bool = False
    mode: Literal["in", "out"] = "in"
    parts: int | tuple[int, ...] = 1
    inner: Inner = Inner()
    dtype: torch.dtype = torch.float32
    table: Mapping[str, Inner | float] = FrozenDict()

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count must be at least 0")


SMALL = Schema({})


def mistakes(data: Any, hint: Any, schema: Schema = SMALL) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        schema.decode(data, hint, "it")
    return caught.value.problems


@pytest.mark.parametrize(
    "value",
    [
        Outer(3),
        Outer(3, 2.0, True, "out", (1, 2), Inner(1.5, (2, "x")), torch.bfloat16),
        Outer(3, parts=(), size=math.inf),
        Outer(3, table={"a.*": Inner(1.0), "b": math.inf, "c": 1.0}),
    ],
)
@pytest.mark.parametrize("defaults", [True, False])
def test_there_and_back(value: Outer, defaults: bool) -> None:
    data = SMALL.encode(value, Outer, defaults=defaults)
    assert SMALL.decode(json.loads(json.dumps(data, allow_nan=False)), Outer, "it") == value


def test_defaults_left_out() -> None:
    assert SMALL.encode(Outer(3, inner=Inner(1.0)), Outer, defaults=False) == {"count": 3, "inner": {"low": 1.0}}


def test_a_vocabulary_added_later() -> None:
    class Word:
        """An abstract type."""

    @dataclass(frozen=True)
    class Yes(Word):
        """A word of it."""

        how: float = 1.0

    schema, words = Schema({}), ClassRegistry("word", method="__init__")
    words.register(Yes)
    schema.add(Word, TaggedUnion(words))
    hint = Mapping[str, Word]
    assert schema.decode({"a": {"type": "Yes"}}, hint, "it") == {"a": Yes()}
    assert schema.encode({"a": Yes()}, hint) == {"a": {"type": "Yes", "how": 1.0}}
    assert mistakes({"a": {"type": "Yse"}}, hint, schema) == ("['a'].type: unknown word 'Yse'; did you mean 'Yes'?",)


def test_whole_numbers_become_floats_where_floats_are_meant() -> None:
    assert repr(SMALL.decode({"count": 3, "size": 2}, Outer, "it").size) == "2.0"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"count": 1.5}, "count: must be a whole number, but got 1.5"),
        ({"count": True}, "count: must be a whole number, but got True"),
        ({"count": 1, "size": "0.5"}, "size: must be a number, but got '0.5'"),
        ({"count": 1, "size": 10**400}, f"size: must be a number, but got 1{'0' * 17}...{'0' * 19}"),
        ({"count": 1, "flag": 1}, "flag: must be true or false, but got 1"),
        ({"count": 1, "mode": "inn"}, "mode: must be one of 'in', 'out', but got 'inn'; did you mean 'in'?"),
        ({"count": 1, "parts": [1, "2"]}, "parts[1]: must be a whole number, but got '2'"),
        ({"count": 1, "parts": "2"}, "parts: must be a whole number or a list, but got '2'"),
        ({"count": 1, "inner": 3}, "inner: must be a table, but got 3"),
        ({"count": 1, "inner": {"pair": [1]}}, "inner.pair: must have 2 items, but has 1"),
        ({"count": 1, "inner": {"lo": 1}}, "inner.lo: Inner has no argument 'lo'; did you mean 'low'?"),
        ({"count": 1, "dtype": "flaot32"}, "dtype: must be the name of a dtype, but got 'flaot32'"),
        ({"count": 1, "table": []}, "table: must be a table, but got []"),
        ({"count": 1, "table": {3: 1}}, "table: has the key 3, which must be text"),
        ({"count": 1, "table": {"a.b": "x"}}, "table['a.b']: must be a table or a number, but got 'x'"),
        ({"count": 1, "table": {"a": {"lo": 1}}}, "table['a'].lo: Inner has no argument 'lo'; did you mean 'low'?"),
        ({}, "Outer needs 'count', a whole number"),
        ({"count": -1}, "Outer: count must be at least 0"),
        ({"count": 1, 7: 2}, "7: Outer has no argument 7"),
        (["count"], "must be a table, but got ['count']"),
    ],
)
def test_each_mistake(data: Any, text: str) -> None:
    assert mistakes(data, Outer) == (text,)


def test_all_mistakes_at_once() -> None:
    found = mistakes({"count": "a", "size": None, "inner": {"low": [], "up": 1}, "moed": 1}, Outer)
    assert [text.split(":")[0] for text in found] == ["count", "size", "inner.low", "inner.up", "moed"]


def test_headline_counts_and_names_the_source() -> None:
    with pytest.raises(ConfigError, match=r"^1 mistake in here\n  must be a table, but got None$"):
        SMALL.decode(None, Outer, "here")


def test_long_values_are_cut_short() -> None:
    (text,) = mistakes({"count": "x" * 10_000}, Outer)
    assert len(text) < 120


@given(strategies.initializers())
def test_every_initializer_there_and_back(init: Initializer) -> None:
    data = json.loads(json.dumps(SCHEMA.encode(init, Initializer), allow_nan=False))
    assert SCHEMA.decode(data, Initializer, "it") == init


@given(strategies.selectors())
def test_every_selector_there_and_back(where: Selector) -> None:
    data = json.loads(json.dumps(SCHEMA.encode(where, Selector), allow_nan=False))
    assert SCHEMA.decode(data, Selector, "it") == where


@given(strategies.rules(), st.booleans())
def test_every_rule_there_and_back(rule: Rule, defaults: bool) -> None:
    assert SCHEMA.decode(SCHEMA.encode(rule, Rule, defaults=defaults), Rule, "it") == rule


@given(strategies.sites())
def test_every_site_there_and_back(site: Site) -> None:
    assert SCHEMA.decode(SCHEMA.encode(site, Site), Site, "it") == site


def test_none_within_a_list() -> None:
    assert SCHEMA.decode({"type": "Shape", "sizes": [None, 8]}, Selector, "it") == Shape((None, 8))


def test_a_bare_number_is_a_constant() -> None:
    assert SCHEMA.decode(0.5, Initializer, "it") == Constant(0.5)
    assert SCHEMA.decode("1 / 4", Initializer, "it") == Constant(0.25)


def test_an_object_stays_as_it_is() -> None:
    rule = SCHEMA.decode({"where": {"type": "Leaf", "names": ["a"]}, "init": Kaiming()}, Rule, "it")
    assert rule.init == Kaiming()


@pytest.mark.parametrize(
    ("data", "hint", "text"),
    [
        ({"std": 1}, Initializer, "needs 'type', the name of an initializer"),
        ({"type": 3}, Initializer, "type: must be text, but got 3"),
        ({"type": "Norml"}, Initializer, "type: unknown initializer 'Norml'; did you mean 'Normal'?"),
        ({"type": "Kaiming"}, Fill, "type: Kaiming is not a Fill, which this must be"),
        ({"type": "Nme", "globs": []}, Selector, "type: unknown selector 'Nme'; did you mean 'Name'?"),
        ({"type": "Name", "globs": "a"}, Selector, "globs: must be a list, but got 'a'"),
        ([], Initializer, "must be a number or an initializer, but got []"),
        (True, Initializer, "must be a number or an initializer, but got True"),
        (3, Selector, "must be a selector, but got 3"),
        (
            {"type": "Normal", "std": "1 / dept"},
            Initializer,
            "std: '1 / dept': unknown name 'dept'; did you mean 'depth'?",
        ),
        ({"type": "Normal", "std": "1 / depth"}, Fill, "std: must be a number, but got '1 / depth'"),
        ({"type": "Dirac", "groups": "1 / 2"}, Initializer, "groups: must be a whole number or 'layer', but got 0.5"),
    ],
)
def test_mistakes_of_a_word(data: Any, hint: Any, text: str) -> None:
    assert mistakes(data, hint, SCHEMA) == (text,)


def test_nesting_without_end() -> None:
    data: Any = {"type": "Zeros"}
    for _ in range(200):
        data = {"type": "Scaled", "init": data, "factor": 1}
    (text,) = mistakes(data, Initializer, SCHEMA)
    assert text.endswith("is nested too deeply")


def test_a_class_without_a_name_cannot_be_written() -> None:
    class Nameless(Fill):
        """Of a class that is not registered."""

        def write(self, shard: object, noise: object) -> None:
            """Nothing."""

    with pytest.raises(
        ConfigError, match=r"^Nameless cannot be written as data: .*Nameless is not registered as initializer"
    ):
        SCHEMA.encode(Rule(Shape(ndim=1), Nameless()), Rule)


def test_data_name_no_class_by_its_place() -> None:
    assert mistakes({"type": "json.JSONDecoder"}, Initializer, SCHEMA) == (
        "type: unknown initializer 'json.JSONDecoder'",
    )


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
