"""The schemes that come with the package, on small models in the shape of those they are named for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from torchinit import Constant, Kaiming, LeCun, Normal, TruncNormal, initialize, load_recipe, plan
from torchinit.initializers import Padded
from torchinit.recipes import schemes
from torchinit.recipes.files import read_data

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "src" / "torchinit" / "recipes" / "schemes"


def residual(width: int, depth: int) -> nn.ModuleDict:
    """Blocks of a projection back into the residual stream, below a table and above a norm."""
    block = [
        nn.ModuleDict({"c_fc": nn.Linear(width, width), "c_proj": nn.Linear(width, width), "norm": nn.LayerNorm(width)})
        for _ in range(depth)
    ]
    return nn.ModuleDict({"embed": nn.Embedding(30, width, padding_idx=0), "h": nn.ModuleList(block)})


class Image(nn.Module):
    """A patch embedding, a token, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4)
        self.cls_token = nn.Parameter(torch.empty(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 2)


def test_all_can_be_loaded_and_say_what_for() -> None:
    assert sorted(schemes()) == ["bert", "general", "gpt2", "llama", "resnet", "vit"]
    for name, about in schemes().items():
        assert load_recipe(name)
        assert about
        assert (FOLDER / f"{name}.toml").read_text("utf-8").startswith("# ")


def test_the_example_is_the_scheme() -> None:
    assert read_data(ROOT / "examples" / "gpt2.toml") == read_data(FOLDER / "gpt2.toml")


def test_gpt2() -> None:
    made = plan(residual(8, 8), "gpt2", complete=True, strict=True)
    assert made["embed.weight"].fill == Padded(Normal(std=0.02), 0)
    assert made["h.3.c_fc.weight"].fill == Normal(std=0.02)
    assert made["h.3.c_proj.weight"].fill == Normal(std=0.02 / 4)
    assert made["h.3.c_proj.bias"].fill == Constant(0.0)
    assert made["h.3.norm.weight"].fill == Constant(1.0)
    assert [str(rule) for rule in made["h.3.c_proj.weight"].over] == ["weights"]


def test_bert_and_llama_do_not_look_at_depth() -> None:
    for scheme in ("bert", "llama"):
        made = plan(residual(8, 8), scheme)
        assert made["h.3.c_proj.weight"].fill == Normal(std=0.02)
        assert made["h.3.norm.weight"].fill == Constant(1.0)


def test_vit() -> None:
    made = plan(Image(), "vit", strict=True)
    assert made["patches.weight"].fill == LeCun().resolve(made["patches.weight"].site)
    assert made["cls_token"].fill == made["head.weight"].fill == TruncNormal(std=0.02)
    assert made["norm.weight"].fill == Constant(1.0)


def test_resnet() -> None:
    made = plan(Image(), "resnet", strict=True)
    assert made["patches.weight"].fill == Kaiming(mode="fan_out").resolve(made["patches.weight"].site)
    assert made["bn.weight"].fill == Constant(1.0)
    assert made["bn.bias"].fill == Constant(0.0)


@pytest.mark.parametrize("model", [residual(8, 2), Image(), nn.LSTM(4, 4), nn.TransformerDecoderLayer(8, 2, 8)])
def test_the_general_one_covers_everything_in_torch(model: nn.Module) -> None:
    plan(model, "general", complete=True)
    initialize(model, "general", seed=0).assert_ok()
