# ruff: noqa: C408  # configs are written so
"""Recipes in the configs of others: OmegaConf's nodes, which Hydra gives, and MMEngine's ConfigDict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config, ConfigDict
from omegaconf import DictConfig, OmegaConf
from torch import nn

from torchinit import ConfigError, Kaiming, Name, Normal, Rule, initialize, lint, materialize, plan
from torchinit.recipes import to_rules

EXPECTED = Rule(Name("**.weight"), Normal(std=0.5))
CONFIG = """
spread: 0.5
which: ["**.weight"]
model:
  init:
    rules:
      - {type: Normal, std: "${spread}", name: "${which}", label: "${oc.env:TORCHINIT_TEST_LABEL,all}"}
  list:
    - {type: Normal, std: "${...init.rules[0].std}", name: "**.weight"}
  entry: {type: Normal, std: "${spread}", name: "**.weight"}
  names:
    "**.weight": {type: Normal, std: "${spread}"}
"""


def config() -> Any:
    return OmegaConf.create(CONFIG)


def net() -> Any:
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))


@pytest.mark.parametrize("node", ["init", "list", "entry", "names"])
def test_nodes_of_omegaconf(node: str) -> None:
    """Interpolations that lead out of the node are followed."""
    recipe = config().model[node]
    (rule,) = to_rules(recipe)
    assert (rule.where, rule.init) == (EXPECTED.where, EXPECTED.init)
    assert rule.origin.startswith(f"model.{node}")
    one, other, third = net(), net(), net().to("meta")
    initialize(one, EXPECTED, seed=0)
    initialize(other, recipe, seed=0)
    materialize(third, recipe, seed=0)
    assert torch.equal(one[0].weight, other[0].weight) and torch.equal(one[0].weight, third[0].weight)
    assert lint(one, recipe=recipe, select=["TI7"]).codes == ()


def test_nodes_within_python() -> None:
    cfg = config()
    assert to_rules([cfg.model.entry, EXPECTED])[1] == EXPECTED
    assert to_rules({"rules": cfg.model.list})[0].init == EXPECTED.init
    assert to_rules({"type": "Normal", "std": 0.5, "name": cfg.which})[0] == EXPECTED


MISTAKES = """
spread: 0.5
init:
  rules:
    - {type: Normal, sdt: 1, name: "**"}
    - {type: Normal, std: "${nothing}", name: "**"}
    - {type: Normal, std: "???", name: "**"}
    - {type: Kaimng, name: "**"}
    - {type: Normal, std: "${spread}s", name: "**"}
"""


def test_mistakes_name_the_place_in_the_config() -> None:
    recipe = OmegaConf.create(MISTAKES).init
    with pytest.raises(ConfigError) as caught:
        plan(net(), recipe)
    assert caught.value.problems == ("init.rules[1].std: Interpolation key 'nothing' not found",)
    del recipe.rules[1]
    with pytest.raises(ConfigError) as caught:
        plan(net(), recipe)
    assert caught.value.problems == ("init.rules[1].std: Missing mandatory value: init.rules[1].std",)
    del recipe.rules[1]
    with pytest.raises(ConfigError) as caught:
        plan(net(), recipe)
    assert [text.partition(":")[0] for text in caught.value.problems] == [
        "init.rules[0].sdt",
        "init.rules[1].type",
        "init.rules[2].std",
    ]
    with pytest.raises(ConfigError, match=r"init\.rules\[0\]\.sdt: Normal has no argument 'sdt'; did you mean 'std'"):
        plan(net(), recipe.rules)
    with pytest.raises(ConfigError, match=r"init\.rules\[0\]\.sdt: Normal has no argument 'sdt'"):
        plan(net(), recipe.rules[0])


def test_a_whole_config_of_omegaconf() -> None:
    cfg = OmegaConf.create({"rules": [{"type": "Normal", "sdt": 1, "name": "a"}]})
    with pytest.raises(ConfigError, match=r"\n  rules\[0\]\.sdt: "):
        plan(net(), cfg)
    assert isinstance(cfg, DictConfig)
    empty: Any = OmegaConf.create({})
    with pytest.raises(ConfigError, match="the recipe is empty"):
        plan(net(), empty)


@pytest.mark.parametrize(
    "recipe",
    [
        ConfigDict(rules=[dict(type="Normal", std=0.5, name="**.weight")]),
        ConfigDict(type="Normal", std=0.5, name="**.weight"),
        [ConfigDict(type="Normal", std=0.5, name="**.weight")],
        ConfigDict({"**.weight": dict(type="Normal", std=0.5)}),
        ConfigDict({"**.weight": Normal(std=0.5)}),
    ],
)
def test_config_dicts_of_mmengine(recipe: Any) -> None:
    (rule,) = to_rules(recipe)
    assert rule == EXPECTED
    assert lint(net(), recipe=recipe, select=["TI701"]).codes == ()


def test_mistakes_in_a_config_dict() -> None:
    recipe = ConfigDict(rules=[dict(typ="Normal", layer="Linear"), dict(type="Normal", override=dict(), layer="a")])
    with pytest.raises(ConfigError) as caught:
        plan(net(), recipe)
    assert caught.value.problems == (
        "rules[0]: needs 'type', the name of an initializer",
        "rules[1].override: an override needs 'name', the submodule that it is for",
    )


def test_a_config_file_of_mmengine_with_classes(tmp_path: Path) -> None:
    """Configs of the new style import what they name."""
    path = tmp_path / "config.py"
    path.write_text("from torchinit import Kaiming\ninit = dict(type=Kaiming, mode='fan_in', name='**.weight')\n")
    cfg = Config.fromfile(path, lazy_import=True)
    assert to_rules(cfg.init)[0].init == Kaiming(mode="fan_in")
