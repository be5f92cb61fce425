"""Key maps: what a tensor is called in the model."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.strategies import names
from torchinit import CheckpointError, ConfigError, Name, Pretrained, Rule, initialize
from torchinit.checkpoints.key_mapping import KeyMap, revised
from torchinit.model.names import WRAPPERS

CASES = [
    (KeyMap(), "fc.weight", "fc.weight"),
    (KeyMap("backbone"), "backbone.fc.weight", "fc.weight"),
    (KeyMap("backbone."), "backbone.fc.weight", "fc.weight"),
    (KeyMap("backbone"), "backbone2.fc.weight", None),
    (KeyMap(rename=(("^", "net."),)), "fc.weight", "net.fc.weight"),
    (KeyMap(rename=(("^model[.]", "net."),)), "model.fc.weight", "net.fc.weight"),
    (KeyMap("a", (("b", "c"), ("c", "d"))), "a.b.weight", "d.weight"),
    (KeyMap(rename=((r"layer(\d+)", r"blocks.\1"),)), "layer3.w", "blocks.3.w"),
    (KeyMap(), "module._orig_mod.fc._fsdp_wrapped_module.weight", "fc.weight"),
    (KeyMap("module.net"), "module.net.module.fc.weight", "fc.weight"),
    (KeyMap("net"), "module._orig_mod.net.module.fc.weight", "fc.weight"),
    (KeyMap("module.net"), "_orig_mod.net.fc.weight", "fc.weight"),
    (KeyMap("module"), "fc.weight", None),
    (KeyMap("net"), "module.head.weight", None),
    (KeyMap(rename=(("^net[.]", "trunk."), ("gamma$", "weight"))), "module.net.fc.gamma", "trunk.fc.weight"),
    (KeyMap(rename=(("^module[.]net[.]", "a."),)), "module.net.fc.weight", "a.fc.weight"),
]


@pytest.mark.parametrize(("keymap", "key", "name"), CASES)
def test_names(keymap: KeyMap, key: str, name: str | None) -> None:
    assert keymap.apply([key]).name_of.get(key) == name


@given(names(), st.lists(st.sampled_from(sorted(WRAPPERS)), max_size=4), st.data())
def test_wrappers_never_matter(name: str, wrappers: list[str], data: st.DataObject) -> None:
    parts = name.split(".")
    for wrapper in wrappers:
        parts.insert(data.draw(st.integers(0, len(parts) - 1)), wrapper)
    assert KeyMap().apply([key := ".".join(parts)]).name_of[key] == name


def test_a_key_of_its_own_comes_before_an_unwrapped_one() -> None:
    found = KeyMap().apply(["module.fc.weight", "fc.weight"])
    assert (found.key_of, found.clashes) == ({"fc.weight": "fc.weight"}, {})
    found = KeyMap("net").apply(["module.net.fc.weight", "net.fc.weight", "head.weight"])
    assert (found.key_of, found.clashes) == ({"fc.weight": "net.fc.weight"}, {})
    assert found.name_of == {"module.net.fc.weight": "fc.weight", "net.fc.weight": "fc.weight"}
    found = KeyMap().apply(["module.fc.weight", "_orig_mod.fc.weight"])
    assert found.clashes == {"fc.weight": ["module.fc.weight", "_orig_mod.fc.weight"]}
    found = KeyMap(rename=(("[ab]", "c"),)).apply(["a.weight", "b.weight"])
    assert found.clashes == {"c.weight": ["a.weight", "b.weight"]}


@pytest.mark.parametrize("pair", [("(", ""), ("a", r"\1"), ("a", r"\g<x>")])
def test_renames_that_are_none(pair: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"is not a rename"):
        KeyMap(rename=(pair,))


def test_renames_that_would_take_forever() -> None:
    with pytest.raises(ConfigError, match=r"'\(a\|aa\)\+b' takes more than 1 s to match 'a{40}'\.\.\."):
        KeyMap(rename=(("(a|aa)+b", ""),)).apply(["a" * 99])
    with pytest.raises(ConfigError, match=r"is not a rename: more than Python can take"):
        KeyMap(rename=(("(" * 400 + ")" * 400, ""),))
    with pytest.raises(CheckpointError, match=r"a name of 1,000,000 letters is too long for a rename: 'aaa"):
        KeyMap(rename=((".*b", ""),)).apply(["a" * 1_000_000])
    with pytest.raises(CheckpointError, match=r"a name of 1,024 letters is too long for a rename"):
        KeyMap(rename=(("^(.+)$", r"\1\1"),) * 30).apply(["a"])
    net = nn.Module()
    net.register_parameter("w", nn.Parameter(torch.zeros(1)))
    rule = Rule(Name("**"), Pretrained({"a" * 2000: torch.ones(1)}, rename=(("b", "c"),)))
    with pytest.raises(CheckpointError, match=r"a name of 2,000 letters is too long"):
        initialize(net, rule)


def test_revise_keys_apply_to_the_whole_key_in_order() -> None:
    state = {"module.module.a": 1, "b": 2}
    assert revised(state, [(r"^module\.", ""), ("b", "c")]) == {"module.a": 1, "c": 2}


@pytest.mark.parametrize(
    ("keys", "error", "text"),
    [
        ("^module", TypeError, "revise_keys is a list of \\(pattern, replacement\\), but got \\('\\^',\\) in it"),
        ({"^module.": ""}, TypeError, "but got \\('\\^module.',\\) in it"),
        ([("^", "a", "b")], TypeError, "but got \\('\\^', 'a', 'b'\\) in it"),
        ([(3, "a")], TypeError, "but got \\(3, 'a'\\) in it"),
        ([("^(", "")], ConfigError, "revise_keys: '\\^\\(' to '' is not a rename: missing \\)"),
    ],
)
def test_revise_keys_that_are_none(keys: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        revised({"module.a": 1}, keys)


def test_revise_keys_that_would_take_forever() -> None:
    with pytest.raises(ConfigError, match=r"'\(a\|aa\)\+b' takes more than 1 s to match"):
        revised({"a" * 99: 1}, [("(a|aa)+b", "")])


def test_revise_keys_may_be_compiled_and_functions() -> None:
    assert revised({"module.a": 1}, [(re.compile("^module[.](.)"), lambda found: found[1].upper())]) == {"A": 1}  # type: ignore[list-item]
