"""Key maps and guesses: what a tensor is called in the model."""

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
from torchinit.checkpoints.guesses import Shapes, by_case, guess
from torchinit.checkpoints.key_mapping import KeyMap, revised
from torchinit.core.names import WRAPPERS

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
    assert keymap.name(key) == name


@given(names(), st.lists(st.sampled_from(sorted(WRAPPERS)), max_size=4), st.data())
def test_wrappers_never_matter(name: str, wrappers: list[str], data: st.DataObject) -> None:
    parts = name.split(".")
    for wrapper in wrappers:
        parts.insert(data.draw(st.integers(0, len(parts) - 1)), wrapper)
    assert KeyMap().name(".".join(parts)) == name


def test_a_key_of_its_own_comes_before_an_unwrapped_one() -> None:
    found = KeyMap().names(["module.fc.weight", "fc.weight"])
    assert (found.keys, found.clashes) == ({"fc.weight": "fc.weight"}, {})
    found = KeyMap("net").names(["module.net.fc.weight", "net.fc.weight", "head.weight"])
    assert (found.keys, found.clashes) == ({"fc.weight": "net.fc.weight"}, {})
    assert found.names == {"module.net.fc.weight": "fc.weight", "net.fc.weight": "fc.weight"}
    found = KeyMap().names(["module.fc.weight", "_orig_mod.fc.weight"])
    assert found.clashes == {"fc.weight": ["module.fc.weight", "_orig_mod.fc.weight"]}
    found = KeyMap(rename=(("[ab]", "c"),)).names(["a.weight", "b.weight"])
    assert found.clashes == {"c.weight": ["a.weight", "b.weight"]}


@pytest.mark.parametrize("pair", [("(", ""), ("a", r"\1"), ("a", r"\g<x>")])
def test_renames_that_are_none(pair: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"is no rename"):
        KeyMap(rename=(pair,))


def test_renames_that_would_take_forever() -> None:
    with pytest.raises(ConfigError, match=r"rename: '\(a\+\)\+b' may take forever to match"):
        KeyMap(rename=(("(a+)+b", ""),))
    with pytest.raises(ConfigError, match=r"is no rename|more than Python can take"):
        KeyMap(rename=(("(" * 5000 + ")" * 5000, ""),))
    with pytest.raises(CheckpointError, match=r"a name of 1,000,000 letters is too long for a rename: 'aaa"):
        KeyMap(rename=((".*b", ""),)).name("a" * 1_000_000)
    with pytest.raises(CheckpointError, match=r"a name of 1,024 letters is too long for a rename"):
        KeyMap(rename=(("^(.+)$", r"\1\1"),) * 30).name("a")
    net = nn.Module()
    net.register_parameter("w", nn.Parameter(torch.zeros(1)))
    rule = Rule(Name("**"), Pretrained({"a" * 2000: torch.ones(1)}, rename=(("b", "c"),)))
    with pytest.raises(CheckpointError, match=r"a name of 2,000 letters is too long"):
        initialize(net, rule)


def test_revise_keys_apply_to_the_whole_key_in_order() -> None:
    state = {"module.module.a": 1, "b": 2}
    assert revised(state, [(r"^module\.", ""), ("b", "c")]) == {"module.a": 1, "c": 2}


MODEL = {"stem.weight": (4, 3), "stem.bias": (4,), "head.weight": (2, 4)}


def moved(old: str, new: str) -> dict[str, tuple[int, ...]]:
    return {new + key.removeprefix(old): shape for key, shape in MODEL.items() if key.startswith(old)}


GUESSES = [
    (moved("", "backbone."), "with prefix='backbone.' 3 of 3 match"),
    (moved("", "model.net."), "with prefix='model.net.' 3 of 3 match"),
    (moved("stem.", ""), "with rename=[['^', 'stem.']] 2 of 3 match"),
    (moved("stem.", "trunk."), "with rename=[['^trunk[.]', 'stem.']] 2 of 3 match"),
    ({**moved("stem.", "Stem."), **moved("head.", "head.")}, "with rename=[['^Stem[.]', 'stem.']] 3 of 3 match"),
    ({**moved("stem.", "a.stem."), **moved("head.", "head.")}, "with rename=[['^a[.]', '']] 3 of 3 match"),
    ({**moved("", "a."), **moved("stem.", "b.stem.")}, "with prefix='a.' 3 of 3 match"),
    (moved("", "module.net._orig_mod."), "with prefix='net.' 3 of 3 match"),
    (moved("", "a-b(c."), "with prefix='a-b(c.' 3 of 3 match"),
]


@pytest.mark.parametrize(("keys", "text"), GUESSES)
def test_guesses_come_with_their_proof(keys: dict[str, tuple[int, ...]], text: str) -> None:
    assert str(guess(MODEL, keys, 0)) == text


def test_a_guess_must_gain_something_and_fit_in_shape() -> None:
    assert guess(MODEL, MODEL, 3) is None
    assert guess(MODEL, {"net.stem.weight": (9, 9)}, 0) is None
    assert guess(MODEL, {}, 0) is None


def test_old_names_of_layer_norms() -> None:
    model = {"norm.weight": (2,), "norm.bias": (2,), "fc.bias": (3,)}
    found = guess(model, {"norm.gamma": (2,), "norm.beta": (2,), "fc.bias": (3,)}, 1)
    assert str(found) == "with rename=[['[.]gamma$', '.weight'], ['[.]beta$', '.bias']] 3 of 3 match"
    found = guess(model, {"bert.norm.gamma": (2,), "bert.norm.beta": (2,), "bert.fc.bias": (3,)}, 0)
    assert str(found) == "with prefix='bert.', rename=[['[.]gamma$', '.weight'], ['[.]beta$', '.bias']] 3 of 3 match"


def test_next_to_nothing_is_no_guess() -> None:
    model = {f"block{n}.weight": (n, 1) for n in range(50)}
    other = {f"layer{n}.kernel": (n, 2) for n in range(50)} | {"fc.weight": (7, 1)}
    assert guess(model, other, 0) is None


shapes = st.dictionaries(names(), st.sampled_from([(1,), (2,), (2, 3)]), min_size=1, max_size=8)


@given(shapes, shapes, st.sampled_from(["", "net.", "module.net.", "a.b."]), st.sampled_from(["", "trunk.", "b."]))
def test_a_guess_keeps_its_promise(model: Shapes, other: Shapes, old: str, new: str) -> None:
    keys = {**other, **{f"{old}{name.removeprefix(new)}": shape for name, shape in model.items()}}
    found = guess(model, keys, 0)
    if found is not None:
        held = KeyMap(found.prefix, found.rename).names(keys)
        fitting = [name for name, key in held.keys.items() if model.get(name) == keys[key] and name not in held.clashes]
        assert len(fitting) == found.matching > 0
        assert found.wanted == len(model)


def test_a_guess_for_thousands_of_experts_asks_a_sample() -> None:
    tails = [
        f"layers.{layer}.experts.{expert}.w{n}.weight" for layer in range(8) for expert in range(64) for n in "123"
    ]
    model = dict.fromkeys(tails, (4, 4))
    found = guess(model, {f"model.{name}": (4, 4) for name in tails}, 0)
    assert str(found) == "with prefix='model.' 1536 of 1536 match"


@given(st.sets(names(), min_size=1, max_size=8), names())
def test_a_prefix_that_all_keys_have_is_found(model: set[str], prefix: str) -> None:
    wanted = {name: (number,) for number, name in enumerate(sorted(model))}
    keys = {f"{prefix}.{name}": shape for name, shape in wanted.items()}
    if prefix.count(".") < 3:
        found = guess(wanted, keys, 0)
        assert found is not None
        assert found.matching == len(wanted)


def test_by_case() -> None:
    assert by_case({"a.Weight": (1,)}, {"a.weight": (1,)}) == ("a.Weight", "a.weight")
    assert by_case({"a.weight": (1,)}, {"a.weight": (1,)}) is None


@pytest.mark.parametrize(
    ("keys", "error", "text"),
    [
        ("^module", TypeError, "revise_keys is a list of \\(pattern, replacement\\), but got \\('\\^',\\) in it"),
        ({"^module.": ""}, TypeError, "but got \\('\\^module.',\\) in it"),
        ([("^", "a", "b")], TypeError, "but got \\('\\^', 'a', 'b'\\) in it"),
        ([(3, "a")], TypeError, "but got \\(3, 'a'\\) in it"),
        ([("^(", "")], ConfigError, "revise_keys: '\\^\\(' to '' is no rename: missing \\)"),
    ],
)
def test_revise_keys_that_are_none(keys: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        revised({"module.a": 1}, keys)


def test_revise_keys_may_be_compiled_and_functions() -> None:
    assert revised({"module.a": 1}, [(re.compile("^module[.](.)"), lambda found: found[1].upper())]) == {"A": 1}  # type: ignore[list-item]
