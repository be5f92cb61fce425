"""Rules of roles: what decides, what is said of it, and that nothing is guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations

from torchinit import (
    ConfigError,
    Constant,
    Layer,
    Name,
    Plan,
    PlanError,
    Regex,
    Roles,
    Rule,
    Zeros,
    plan,
    roles,
    sites,
)
from torchinit.knowledge import Role, read_rules, register_roles, role_rules
from torchinit.model import Site
from torchinit.model.sites import sites as model_sites
from torchinit.plans import make_plan
from torchinit.rules import Selector


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
    assert found["head.weight"] == found["wte.weight"]
    assert "head.weight" in found
    assert "head.weight" not in [*found]
    assert len(found) == len([*found]) == len(sites(tower))
    assert "nothing.weight" not in found
    assert repr(found).startswith("{'wte.weight': Role(")
    assert found["layers.0.attn.q_proj.weight"].name == "attn.q"


class Backwards(nn.Module):
    """The head comes before the table that it shares."""

    def __init__(self) -> None:
        super().__init__()
        self.lm_head, self.embed_tokens = nn.Linear(4, 50, bias=False), nn.Embedding(50, 4)
        self.embed_tokens.weight = self.lm_head.weight


def test_a_tied_table_is_an_embedding_under_each_of_its_names() -> None:
    found = roles(Backwards())
    assert [*found] == ["lm_head.weight"]
    assert found["lm_head.weight"].name == found["embed_tokens.weight"].name == "embed.token"
    (site,) = sites(Backwards())
    assert [view.role for view in site.views] == ["embed.token", "embed.token"]
    (step,) = plan(Backwards(), {"type": "Normal", "role": "embed.token"})
    assert step.site.name == "lm_head.weight"


@pytest.mark.parametrize("make", [Tower, MLP, lambda: nn.TransformerEncoderLayer(8, 2, 16), lambda: nn.LSTM(3, 4)])
def test_selecting_by_every_role_partitions_the_sites(make: Callable[[], nn.Module]) -> None:
    model = make()
    known, found = sites(model), roles(model)
    assert {site.name: site.role for site in known} == {name: role.name for name, role in found.items()}
    parts = [[site.name for site in known if Roles(role).matches(site)] for role in {each.role or "" for each in known}]
    assert sorted(name for part in parts for name in part) == sorted(site.name for site in known)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile imports deprecated parts of torch
def test_wrappers_change_no_role() -> None:
    bare = {name: role.name for name, role in roles(Tower()).items()}
    wrapped = Tower()
    for layer in cast("list[nn.ModuleDict]", wrapped.layers):
        layer["mlp"].fc1 = checkpoint_wrapper(cast("nn.Module", layer["mlp"].fc1))
        layer["attn"] = checkpoint_wrapper(layer["attn"])
    for model in (cast("nn.Module", torch.compile(Tower())), nn.DataParallel(Tower()), wrapped):
        assert {name: role.name for name, role in roles(model).items()} == bare


class Biased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixer = nn.Module()
        self.mixer.A_log = nn.Parameter(torch.ones(3))
        self.fc1, self.norm, self.strange = nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("entry", "written"),
    [
        ({"role": "mlp.in"}, {"fc1.weight": 2, "fc1.bias": 0}),
        ({"role": "mlp.*", "bias": 5}, {"fc1.weight": 2, "fc1.bias": 5}),
        ({"role": "mlp.*", "bias": "keep"}, {"fc1.weight": 2}),
        ({"role": ["mlp.in.bias"]}, {"fc1.bias": 2}),
        ({"role": "norm.shift"}, {"norm.bias": 2}),
        ({"role": "norm.*"}, {"norm.weight": 2, "norm.bias": 2}),
        ({"role": "ssm.A"}, {"mixer.A_log": 2}),
        ({"role": "unsure"}, {"strange.weight": 2, "strange.bias": 0}),
        (
            {"role": ["unsure", "mlp.in"], "layer": "Linear"},
            {"strange.weight": 2, "strange.bias": 0, "fc1.weight": 2, "fc1.bias": 0},
        ),
        ({"role": "**", "exclude": "*.weight"}, {"mixer.A_log": 2, "norm.bias": 2, "strange.bias": 0, "fc1.bias": 0}),
        ({"role": "**", "name": "fc1.*"}, {"fc1.weight": 2, "fc1.bias": 0}),
        ({"role": "**", "param": "weight"}, {"fc1.weight": 2, "norm.weight": 2, "strange.weight": 2}),
        ({"role": "norm.scale", "within": "norm"}, {"norm.weight": 2}),
    ],
)
def test_an_entry_by_role(entry: dict[str, Any], written: dict[str, float]) -> None:
    made = plan(Biased(), {"type": "Constant", "val": 2, **entry})
    assert {step.site.name: step.fill for step in made} == {name: Constant(val) for name, val in written.items()}
    again = Plan.from_json(made.to_json())
    assert again == made
    assert all(step.site.role for step in again)


def test_a_role_that_the_model_has_not() -> None:
    with pytest.raises(
        PlanError, match=r"Roles\('attn.q'\) matches none of \d roles of this model: mlp.in, norm.scale,"
    ):
        plan(Biased(), {"type": "Normal", "role": "attn.q"}, strict=True)
    known = model_sites(Biased())
    with pytest.raises(PlanError, match=r"6 sites whose roles are not known: torchinit.sites\(model\) knows them"):
        make_plan(known[:6], [Rule(Roles("mlp.in"), Zeros())]).check(strict=True)


class ByRole(Selector):
    def matches(self, site: Site) -> bool:
        return site.role == "mlp.in"


class OwnInit:
    def resolve(self, site: Site) -> Constant | None:
        return Constant(1.0) if site.role == "mlp.in" else None


@pytest.mark.parametrize(
    ("rule", "asks"),
    [
        (Rule(Roles("mlp.in"), Zeros()), True),
        (Rule(~Roles("mlp.in") & Name("**"), Zeros()), True),
        (Rule(ByRole(), Zeros()), True),
        (Rule("**", OwnInit()), True),
        (Rule("fc1.*", Zeros()), False),
        (Rule(~Layer("Linear") | Regex("fc1.*"), Zeros()), False),
    ],
)
def test_roles_are_looked_for_where_a_rule_may_ask(rule: Rule, asks: bool) -> None:
    assert {step.site.role is not None for step in plan(Biased(), rule)} == {asks}


def test_a_role_of_ones_own_is_selected() -> None:
    with pytest.raises(ValueError, match=r"no rule gives the role 'my\.role'"):
        Roles("my.role")
    register_roles('rules = [{ role = "my.role", leaf = "strange" }]')
    (weight, bias) = plan(Biased(), {"type": "Ones", "role": "my.*"})
    assert (weight.site.name, bias.site.role) == ("strange.weight", "my.role.bias")


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(4, 8, 3), ["conv", "conv.bias"]),
        (nn.Conv2d(4, 4, 3, groups=4), ["conv.depthwise", "conv.depthwise.bias"]),
        (nn.Conv1d(4, 8, 1), ["conv.pointwise", "conv.pointwise.bias"]),
        (nn.BatchNorm2d(3), ["norm.scale", "norm.shift", "buffer", "buffer", "buffer"]),
        (nn.PReLU(), ["activation"]),
        (nn.GRU(3, 3), ["rnn", "rnn", "rnn.bias", "rnn.bias"]),
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
