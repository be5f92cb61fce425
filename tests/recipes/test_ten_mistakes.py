"""Ten mistakes in one recipe: ten messages with their paths in one error, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from torchinit import ConfigError, initialize, load_recipe

RECIPE = """
rulez = 1

[[rules]]
type = "Kaimng"
layer = "Linear"

[[rules]]
type = "Normal"
sdt = 0.02
layer = "Linear"

[[rules]]
type = "Normal"
std = true
layer = "Linear"

[[rules]]
type = "Normal"
std = -1
layer = "Linear"

[[rules]]
type = "Normal"
std = "0.02 / sqrt(2 * dpeth)"
layer = "Linear"

[[rules]]
type = "Normal"
std = "__import__('os').system('true')"
layer = "Linear"

[[rules]]
type = "Constant"
layer = "Linear"

[[rules]]
type = "Ones"

[[rules]]
type = "Ones"
regex = "("
"""

EXPECTED = (
    "rulez: a recipe has no 'rulez'; did you mean 'rules'?",
    "rules[0].type: unknown initializer 'Kaimng'; did you mean 'Kaiming'?",
    "rules[1].sdt: Normal has no argument 'sdt'; did you mean 'std'?",
    "rules[2].std: must be a number, but got True",
    "rules[3]: Normal: std must be at least 0, but got -1",
    "rules[4].std: '0.02 / sqrt(2 * dpeth)': unknown name 'dpeth'; did you mean 'depth'?",
    "rules[5].std: ",
    "rules[6]: Constant needs 'val', a number",
    "rules[7]: selects nothing: give layer, name, regex, within, param or role; name = '**' selects every parameter",
    "rules[8].regex: '(' is not a regular expression",
)


def test_ten_mistakes_ten_messages_and_nothing_written(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    layer = nn.Linear(2, 2)
    before = layer.weight.detach().clone()
    with pytest.raises(ConfigError, match=r"10 mistakes in .*recipe\.toml") as caught:
        initialize(layer, path, seed=0)
    assert len(caught.value.problems) == len(EXPECTED)
    for problem, start in zip(caught.value.problems, EXPECTED, strict=True):
        assert problem.startswith(start)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("suffix", ["toml", "json", "yaml"])
def test_the_same_recipe_in_every_format(suffix: str, tmp_path: Path) -> None:
    texts = {
        "toml": '[[rules]]\ntype = "Normal"\nstd = 1e-3\nlayer = "Linear"\n',
        "json": '{"rules": [{"type": "Normal", "std": 1e-3, "layer": "Linear"}]}',
        "yaml": "rules:\n  - type: Normal\n    std: 1e-3\n    layer: Linear\n",
    }
    path = tmp_path / f"recipe.{suffix}"
    path.write_text(texts[suffix])
    rule, biases = load_recipe(path)
    assert repr(rule.init) == "Normal(mean=0.0, std=0.001)"
    assert repr(biases.init) == "Constant(val=0.0)"


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", '{"rules": [], "rules": []}'), ("a.yaml", "rules: []\nrules: []\n")]
)
def test_a_key_given_twice_is_refused(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match="rules"):
        load_recipe(path)
