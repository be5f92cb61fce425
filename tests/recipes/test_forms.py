"""Recipes as plain data, both ways."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import strategies
from torchinit import ConfigError, Leaf, Normal, Rule
from torchinit.recipes import decode_recipe, recipe_to_data


@given(st.lists(strategies.rules(), max_size=4))
def test_there_and_back(rules: list[Rule]) -> None:
    recipe = tuple(rules)
    data = json.loads(json.dumps(recipe_to_data(recipe), allow_nan=False))
    assert decode_recipe(data) == recipe


def test_an_entry_is_written_out_in_full() -> None:
    entry = {"type": "Xavier", "layer": "Linear", "override": {"name": "head"}}
    recipe = decode_recipe({"rules": [entry]})
    assert len(recipe) == 4
    again = decode_recipe(recipe_to_data(recipe))
    assert again == recipe
    assert [rule.origin for rule in again] == [f"rules[{number}]" for number in range(4)]


def test_it_may_say_what_it_is_about() -> None:
    assert decode_recipe({"about": "nothing", "rules": []}) == ()
    assert decode_recipe([]) == decode_recipe({}) == ()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"rules": {}}, "a recipe is a table with a list 'rules'"),
        ({"rules": [], "rulse": 1}, "rulse: a recipe has no 'rulse'; did you mean 'rules'?"),
        ({"rules": [], 3: 1}, "3: a recipe has no 3"),
        ({"rules": [], "about": 3}, "about: must be text, but got 3"),
    ],
)
def test_what_is_no_recipe(data: Any, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decode_recipe(data, "here")
    assert str(caught.value) == f"1 mistake in here\n  {text}"


def test_a_class_without_a_name_cannot_be_written() -> None:
    class Nameless:
        """Not registered."""

        def resolve(self, site: object) -> None:
            """Declines."""

    with pytest.raises(ConfigError, match="Nameless cannot be written as data"):
        recipe_to_data((Rule(Leaf("a"), Normal()), Rule(Leaf("b"), Nameless())))


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.sampled_from(["Normal", "**"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["type", "layer", "name", "bias", "override", "where", "init", "std"]), inner
            )
        ),
        max_leaves=8,
    )
)
def test_any_data_decode_or_are_a_config_error(data: Any) -> None:
    with contextlib.suppress(ConfigError):
        assert all(isinstance(rule, Rule) for rule in decode_recipe({"rules": [data]}))
