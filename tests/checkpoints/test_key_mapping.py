"""Key maps: what a tensor is called in the model; tensors without names are its parameters, if every shape agrees."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.strategies import names
from torchinit import CheckpointError, ConfigError, Name, Normal, Pretrained, Rule, initialize, open_checkpoint
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


# --- tensors without names -------------------------------------------------------------------------------------------


class Model(nn.Module):
    """Tensors above their children, behind them, tied, frozen, and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 4)) for _ in range(2)
        )
        self.scale = nn.Parameter(torch.randn(4))
        self.head = nn.Linear(4, 5)
        self.head.weight = self.table.weight
        self.blocks[0].requires_grad_(False)


def parameters(model: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in model.parameters()]


def learning(model: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]


def state(model: nn.Module) -> list[Tensor]:
    return [*model.state_dict().values()]


def rules(source: Any, **options: Any) -> list[Rule]:
    return [Rule(Name("**"), Normal(std=1.0)), Rule(Name("**"), Pretrained(source, order="parameters", **options))]


@pytest.mark.parametrize("listed", [parameters, learning, state])
@pytest.mark.parametrize(
    ("wrap", "part"),
    [
        (
            lambda tensors: {"ema": {"decay": 0.9, "shadow_params": tensors, "collected_params": None}},
            "ema.shadow_params",
        ),
        (lambda tensors: {"shadow_params": tuple(tensors), "model": {"w": torch.ones(1)}}, "shadow_params"),
        (lambda tensors: tensors, ""),
        (lambda tensors: dict(enumerate(tensors)), ""),
    ],
)
def test_a_list_is_what_its_number_and_shapes_are(
    listed: Callable[[nn.Module], list[Tensor]], wrap: Callable[[list[Tensor]], Any], part: str, tmp_path: Path
) -> None:
    trained, model = Model(), Model()
    torch.save(wrap(listed(trained)), path := tmp_path / "a.pth")
    missing = ("blocks.*.1.running_*", "blocks.*.1.num_batches_tracked", "blocks.0.**")
    for option in {None, part or None}:
        account = initialize(model, rules(str(path), part=option, expect_missing=missing), seed=0).loads[0]
        assert account.part == part
        wanted = {tensor.data_ptr() for tensor in listed(trained)}
        assert account.found == len(wanted)
        assert account.notes[-1].endswith("without names, taken in the order of the parameters")
        for name, tensor in trained.state_dict().items():
            if tensor.is_floating_point() and name in account.loaded:
                assert torch.equal(model.state_dict()[name], tensor), name


def test_what_does_not_agree_is_refused(tmp_path: Path) -> None:
    trained = Model()
    wrong = parameters(trained)
    wrong[1] = wrong[1].T
    file = {"a": wrong, "b": wrong[:-1]}
    torch.save(file, path := tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"holds 2 lists of tensors without names: choose with part, one of a, b"):
        initialize(Model(), rules(str(path)))
    with pytest.raises(CheckpointError, match=r"number 1 has shape \[4, 5\], and table.weight \[5, 4\]"):
        initialize(Model(), rules(str(path), part="a"))
    text = r"its 14 tensors without names are not the model's: it has 15 parameters, 9 that learn, and 22 in its state"
    with pytest.raises(CheckpointError, match=text):
        initialize(Model(), rules(str(path), part="b"))
    with pytest.raises(CheckpointError, match=r"holds no named tensors, only lists of them: a, b; a rule with order="):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"holds no list of tensors without names"):
        initialize(Model(), rules(dict(trained.state_dict())))


def test_names_are_not_passed_over() -> None:
    with pytest.raises(CheckpointError, match=r"its tensors have names, so order='parameters' is not for them"):
        initialize(Model(), rules({"model": dict(Model().state_dict())}, part="model"))
    with pytest.raises(ValueError, match=r"without names: no prefix, no rename, no layers"):
        Pretrained("a.pth", order="parameters", prefix="net")
    with pytest.raises(ValueError, match=r"order must be"):
        Pretrained("a.pth", order="alphabet")  # type: ignore[arg-type]
    file = {"ema": parameters(Model())}
    with pytest.raises(
        CheckpointError, match=r"Its tensors have no names: order='parameters' takes them for the model"
    ):
        initialize(Model(), Rule(Name("**"), Pretrained(open_checkpoint(file, part="ema"))))


def test_parts_of_what_is_in_memory() -> None:
    trained, other = nn.Linear(2, 2), nn.Linear(2, 2)
    content = {"model": trained.state_dict(), "ema": {"shadow": parameters(other), "named": other.state_dict()}}
    for options in ({"part": "ema.named"}, {"part": "ema.shadow", "order": "parameters"}, {"order": "parameters"}):
        model = nn.Linear(2, 2)
        initialize(model, Rule(Name("**"), Pretrained(content, **options)))  # type: ignore[arg-type]
        assert torch.equal(model.weight, other.weight)
