"""Key maps and guesses: what a tensor is called in the model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import names
from torchinit import ConfigError
from torchinit.checkpoints.guesses import by_case, guess
from torchinit.checkpoints.keymaps import KeyMap, revised
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
    table, clashes = KeyMap().table(["module.fc.weight", "fc.weight"])
    assert (table, clashes) == ({"fc.weight": "fc.weight"}, {})
    table, clashes = KeyMap().table(["module.fc.weight", "_orig_mod.fc.weight"])
    assert clashes == {"fc.weight": ["module.fc.weight", "_orig_mod.fc.weight"]}
    _, clashes = KeyMap(rename=(("[ab]", "c"),)).table(["a.weight", "b.weight"])
    assert clashes == {"c.weight": ["a.weight", "b.weight"]}


@pytest.mark.parametrize("pair", [("(", ""), ("a", r"\1"), ("a", r"\g<x>")])
def test_renames_that_are_none(pair: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"is no rename"):
        KeyMap(rename=(pair,))


def test_revise_keys_apply_to_the_whole_key_in_order() -> None:
    state = {"module.module.a": 1, "b": 2}
    assert revised(state, [(r"^module\.", ""), ("b", "c")]) == {"module.a": 1, "c": 2}


MODEL = {"stem.weight": (4, 3), "stem.bias": (4,), "head.weight": (2, 4)}


def moved(old: str, new: str) -> dict[str, tuple[int, ...]]:
    return {new + key.removeprefix(old): shape for key, shape in MODEL.items() if key.startswith(old)}


GUESSES = [
    (moved("", "backbone."), "with prefix='backbone.' 3 of 3 match"),
    (moved("", "model.net."), "with prefix='model.net.' 3 of 3 match"),
    (moved("stem.", ""), "with rename=[('^', 'stem.')] 2 of 3 match"),
    (moved("stem.", "trunk."), "with prefix='trunk.' and rename=[('^', 'stem.')] 2 of 3 match"),
    ({**moved("", "a."), **moved("stem.", "b.stem.")}, "with prefix='a.' 3 of 3 match"),
]


@pytest.mark.parametrize(("keys", "text"), GUESSES)
def test_guesses_come_with_their_proof(keys: dict[str, tuple[int, ...]], text: str) -> None:
    assert str(guess(MODEL, keys, 0)) == text


def test_a_guess_must_gain_something_and_fit_in_shape() -> None:
    assert guess(MODEL, MODEL, 3) is None
    assert guess(MODEL, {"net.stem.weight": (9, 9)}, 0) is None
    assert guess(MODEL, {}, 0) is None


def test_old_names_of_layer_norms() -> None:
    found = guess({"norm.weight": (2,), "norm.bias": (2,)}, {"norm.gamma": (2,), "norm.beta": (2,)}, 0)
    assert str(found) == "with rename=[('[.]gamma$', '.weight'), ('[.]beta$', '.bias')] 2 of 2 match"


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
