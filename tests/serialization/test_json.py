"""Maps: frozen, in order, and printed as the dict that they were made of."""

from __future__ import annotations

import copy
import pickle

import pytest

from torchinit.serialization.json import DuplicateKeyError, FrozenDict, reject_duplicate_keys

MADE = FrozenDict({"b": 1, "a": 2})


def test_reads_like_the_dict_it_was_made_of() -> None:
    assert (list(MADE), MADE["a"], len(MADE), "c" in MADE) == (["b", "a"], 2, 2, False)
    assert eval(repr(MADE)) == {"b": 1, "a": 2}


def test_order_counts() -> None:
    assert FrozenDict({"b": 1, "a": 2}) == MADE
    assert hash(MADE) == hash(FrozenDict({"b": 1, "a": 2}))
    assert FrozenDict({"a": 2, "b": 1}) != MADE
    assert FrozenDict() == {}


def test_knows_nothing_of_later_changes_to_the_dict() -> None:
    source = {"a": 1}
    made = FrozenDict(source)
    source["a"] = 2
    assert made["a"] == 1
    with pytest.raises(TypeError, match="does not support item assignment"):
        made["a"] = 3  # type: ignore[index]  # this is what must not work


def test_can_be_copied_and_sent() -> None:
    assert pickle.loads(pickle.dumps(MADE)) == copy.deepcopy(MADE) == MADE


def test_every_key_that_is_twice_is_told() -> None:
    assert reject_duplicate_keys([("a", 1), ("b", 2)]) == {"a": 1, "b": 2}
    with pytest.raises(DuplicateKeyError, match=r"the key 'b' stands twice in one table") as caught:
        reject_duplicate_keys([("a", 1), ("b", 2), ("b", 3), ("a", 4), ("b", 5)])
    assert caught.value.keys == ("b", "a")
