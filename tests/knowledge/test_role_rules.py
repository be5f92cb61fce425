"""Rules of roles: what decides, what is said of it, and that nothing is guessed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from torchinit import ConfigError, roles
from torchinit.knowledge import Role, read_rules, register_roles, role_rules


@pytest.fixture(autouse=True)
def _own() -> Iterator[None]:
    before = list(role_rules._OWN)
    yield
    role_rules._OWN[:] = before


class Attention(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.q_proj, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)


class MLP(nn.Module):
    """Gate and up in one, as rows twice those that the way out takes tell."""

    def __init__(self, width: int = 4, rows: int = 16) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, rows), nn.Linear(8, width)


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(50, 4)
        self.layers = nn.ModuleList(nn.ModuleDict({"attn": Attention(), "mlp": MLP()}) for _ in range(2))
        self.head = nn.Linear(4, 50)
        self.register_buffer("steps", torch.zeros(1))


def test_a_model() -> None:
    with torch.device("meta"):
        found = roles(Tower())
    names = {name.replace("layers.0.", ""): role.name for name, role in found.items() if "layers.1" not in name}
    assert names == {
        "wte.weight": "embed.token", "attn.q_proj.weight": "attn.q", "attn.q_proj.bias": "attn.q.bias",
        "attn.out.weight": "attn.out", "attn.out.bias": "attn.out.bias", "attn.norm.weight": "norm.scale",
        "attn.norm.bias": "norm.shift", "mlp.fc1.weight": "mlp.gate_up", "mlp.fc1.bias": "mlp.gate_up.bias",
        "mlp.fc2.weight": "mlp.down", "mlp.fc2.bias": "mlp.down.bias", "head.weight": "head.lm",
        "head.bias": "head.lm.bias", "steps": "buffer",
    }  # fmt: skip
    assert found["layers.0.attn.q_proj.weight"] == Role("attn.q", "called 'q_proj', in attn")
    assert found["head.weight"].why == "called 'head', of a Linear, as many rows as tokens"
    assert found["layers.0.mlp.fc1.weight"].why.endswith("twice the rows that layers.0.mlp.fc2.weight takes")


def test_a_plain_mlp_is_not_gated() -> None:
    assert [role.name for role in roles(MLP(rows=8)).values()] == ["mlp.in", "mlp.in.bias", "mlp.out", "mlp.out.bias"]


def test_ties_and_parametrizations() -> None:
    tower = Tower()
    tower.head.weight = tower.wte.weight
    parametrizations.weight_norm(tower.layers[0].attn.q_proj)  # type: ignore[union-attr, arg-type]
    found = roles(tower)
    assert found["wte.weight"].name == "embed.token"
    assert "head.weight" not in found
    assert found["layers.0.attn.q_proj.weight"].name == "attn.q"


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(4, 8, 3), ["conv", "conv.bias"]),
        (nn.Conv2d(4, 4, 3, groups=4), ["conv.depthwise", "conv.depthwise.bias"]),
        (nn.Conv1d(4, 8, 1), ["conv.pointwise", "conv.pointwise.bias"]),
        (nn.BatchNorm2d(3), ["norm.scale", "norm.shift", "buffer", "buffer", "buffer"]),
        (nn.PReLU(), ["activation"]),
        (nn.GRU(3, 3), ["rnn"] * 4),
        (nn.Linear(3, 3), ["unsure", "unsure"]),
    ],
)
def test_layers_by_their_class(layer: nn.Module, expected: list[str]) -> None:
    assert [role.name for role in roles(nn.Sequential(layer)).values()] == expected


@given(st.text("qxzvw", min_size=3, max_size=8))
def test_an_unknown_name_is_not_guessed(name: str) -> None:
    role = roles(nn.ModuleDict({name: nn.Linear(2, 2)}))[f"{name}.weight"]
    assert role == Role("unsure", f"no rule knows {name!r} in ModuleDict", sure=False)


def test_rules_of_ones_own_come_first() -> None:
    register_roles("""
rules = [{ role = "attn.q", leaf = "fc1 asks", beside = "fc2", near = "{mine}" }]
[words]
mine = "MLP"
""")
    found = roles(nn.Sequential(MLP()))
    assert found["0.fc1.weight"] == Role("attn.q", "called 'fc1', in MLP, beside 'fc2'")
    assert found["0.fc2.weight"].name == "mlp.out"
    register_roles(read_rules('rules = [{ role = "mlp.in", leaf = "fc1", ndim = [2], bias = false, around = "mlp" }]'))
    found = roles(nn.Sequential(MLP()))
    assert (
        found["0.fc1.weight"].why == "called 'fc1', below MLP, of 2 dimensions, twice the rows that 0.fc2.weight takes"
    )
    assert found["0.fc1.bias"].name == "mlp.gate_up.bias"


@pytest.mark.parametrize(
    "text",
    [
        *("rules = 3", "a", "", 'rules = [{ leaf = "a" }]', 'rules = [{ role = "a", leaves = "b" }]'),
        *('rules = [{ role = "a", leaf = 3 }]', 'rules = [{ role = "a", near = "{nobody}" }]'),
    ],
)
def test_what_is_not_rules(text: str) -> None:
    with pytest.raises(ConfigError, match="these are not rules of roles: "):
        register_roles(text)


def test_what_is_not_a_model() -> None:
    wrong: Any = "gpt2"
    with pytest.raises(TypeError, match=r"roles are those of a model, an nn\.Module, but got 'gpt2'"):
        roles(wrong)


def test_the_words_of_the_survey() -> None:
    """Every role that a rule gives is spelt as those of the page."""
    rules = role_rules._shipped()
    assert len(rules) > 100
    assert all(rule.role == rule.role.strip() and " " not in rule.role for rule in rules)
