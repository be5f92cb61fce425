"""The schemes that come with the package, on small models in the shape of those they are named for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from torchinit import Constant, Kaiming, LeCun, Normal, PlanError, TruncNormal, Uniform, initialize, load_recipe, plan
from torchinit.initializers import Blockwise, Padded
from torchinit.recipes import schemes
from torchinit.recipes.files import read_scheme

ROOT = Path(__file__).parents[2]


def residual(width: int, depth: int) -> nn.ModuleDict:
    """Blocks of attention and a feed-forward layer, below a table and above norms."""

    def block() -> nn.ModuleDict:
        attention = {"c_attn": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)}
        mlp = {"c_fc": nn.Linear(width, width), "c_proj": nn.Linear(width, width)}
        parts = {"attn": nn.ModuleDict(attention), "mlp": nn.ModuleDict(mlp), "norm": nn.LayerNorm(width)}
        return nn.ModuleDict(parts)

    table = nn.Embedding(30, width, padding_idx=0)
    return nn.ModuleDict({"embed_tokens": table, "h": nn.ModuleList([block() for _ in range(depth)])})


class Image(nn.Module):
    """A patch embedding, a token, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 8, 4)
        self.cls_token = nn.Parameter(torch.empty(1, 1, 8))
        self.attn = nn.ModuleDict({"qkv": nn.Linear(8, 24), "proj": nn.Linear(8, 8)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(8, 16), "fc2": nn.Linear(16, 8)})
        self.norm = nn.LayerNorm(8)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 2)


def test_all_can_be_loaded_and_say_what_for() -> None:
    assert len(schemes()) >= 20
    assert {"general", "gpt2", "llama", "vit", "resnet"} <= schemes().keys()
    for name, about in schemes().items():
        data = read_scheme(name)
        assert load_recipe(name)
        assert about and data["source"] and data["claims"], name
        declared = data.get("arguments", {})
        assert all(isinstance(each, dict) and each["meaning"] for each in declared.values()), name
        for argument, each in declared.items():  # every choice can be made, and every entry read with it
            for choice in each.get("choices", ()):
                assert load_recipe(name, {argument: choice})


def test_the_example_is_the_scheme() -> None:
    """The example is written out, the scheme goes on from another."""
    model = residual(8, 8)
    shown, shipped = (plan(model, recipe, strict=True) for recipe in (ROOT / "examples" / "gpt2.toml", "gpt2"))
    assert shown.diff(shipped) == ()


def test_gpt2() -> None:
    made = plan(residual(8, 8), "gpt2", complete=True, strict=True)
    assert made["embed_tokens.weight"].fill == Padded(Normal(std=0.02), 0)
    assert made["h.3.mlp.c_fc.weight"].fill == Normal(std=0.02)
    assert made["h.3.mlp.c_proj.weight"].fill == made["h.3.attn.c_proj.weight"].fill == Normal(std=0.02 / 4)
    assert made["h.3.mlp.c_proj.bias"].fill == Constant(0.0)
    assert made["h.3.norm.weight"].fill == Constant(1.0)
    assert [str(rule) for rule in made["h.3.mlp.c_proj.weight"].over] == ["weights"]
    assert plan(residual(8, 8), "gpt2", layers=2, std=0.1)["h.3.mlp.c_proj.weight"].fill == Normal(std=0.05)
    assert made["h.3.mlp.c_fc.weight"].rule.origin == "extends.rules[0]"
    assert plan(Image(), "vit")["head.weight"].rule.origin == "rules[0]"
    assert made.arguments == {"gpt2": {"std": 0.02, "layers": "depth"}}


def test_bert_and_llama_do_not_look_at_depth() -> None:
    for scheme in ("bert", "llama"):
        made = plan(residual(8, 8), scheme)
        assert made["h.3.mlp.c_proj.weight"].fill == Normal(std=0.02)
        assert made["h.3.norm.weight"].fill == Constant(1.0)


def test_vit() -> None:
    made = plan(Image(), "vit", strict=True, variant="jax")
    assert made["patch_embed.weight"].fill == LeCun().resolve(made["patch_embed.weight"].site)
    assert made["head.weight"].fill == Constant(0.0)
    assert made["mlp.fc1.bias"].fill == Normal(std=1e-6)
    made = plan(Image(), "vit", strict=True, variant="transformers")
    assert made["cls_token"].fill == TruncNormal(std=0.02)
    assert made["head.weight"].fill == made["patch_embed.weight"].fill == Normal(std=0.02)
    assert made["norm.weight"].fill == Constant(1.0)


def test_resnet() -> None:
    made = plan(Image(), "resnet", strict=True)
    assert made["patch_embed.weight"].fill == Kaiming(mode="fan_out").resolve(made["patch_embed.weight"].site)
    assert made["bn.weight"].fill == Constant(1.0)
    assert made["bn.bias"].fill == Constant(0.0)


def test_frozen_parameters_are_left_alone_unless_told() -> None:
    model = residual(8, 2)
    model["h"].requires_grad_(False)
    made = plan(model, "gpt2", complete=True)
    assert [step.site.name for step in made] == ["embed_tokens.weight"]
    assert "frozen: requires_grad is false" in made.summary()
    assert len(plan(model, "gpt2", trainable=False)) == len(list(model.parameters()))
    assert len(plan(model, ["gpt2", {"type": "Zeros", "name": "h.**"}])) == len(list(model.parameters()))  # one's own
    model.requires_grad_(False)
    with pytest.raises(
        PlanError, match="schemes leave frozen ones alone, and all of 21 parameters are; trainable=False"
    ):
        plan(model, "gpt2")
    with pytest.raises(PlanError, match="trainable=True leaves frozen parameters alone"):
        plan(model, "gpt2", trainable=True)


def test_the_fused_projection_of_deepnorm() -> None:
    """Queries and keys have the gain 1, values that of the ways out: blocks of one tensor."""
    made = plan(residual(8, 2), "deepnorm", encoder_layers=2)
    fill = made["h.0.attn.c_attn.weight"].fill
    assert isinstance(fill, Blockwise)
    assert [each.std for each in fill.fills if isinstance(each, Normal)] == pytest.approx(
        [(2 / 16) ** 0.5, (2 / 16) ** 0.5, (2 / 16) ** 0.5 * 16**-0.25]
    )


@pytest.mark.parametrize(("scheme", "std"), [("general", 0.02), ("torch", 1.0), ("t5", 1.0)])
@pytest.mark.parametrize("names", [("tok", "out"), ("embed", "head"), ("tok_embeddings", "output"), ("a", "b")])
def test_a_head_that_shares_the_table_of_embeddings(names: tuple[str, str], scheme: str, std: float) -> None:
    model = nn.ModuleDict({names[0]: nn.Embedding(10, 8), names[1]: nn.Linear(8, 10)})
    model[names[1]].weight = model[names[0]].weight
    for told in (model, nn.ModuleDict({name: model[name] for name in reversed(names)})):
        made = plan(told, {"type": "scheme", "name": scheme, "optional": True})
        assert [step.fill for step in made if step.site.shape == (10, 8)] == [Normal(std=std)]


def test_lstm_leaves_a_gru_alone() -> None:
    model = nn.ModuleDict({"a": nn.LSTM(4, 8, 2), "b": nn.GRU(4, 8), "c": nn.LSTMCell(4, 8)})
    assert sorted(step.site.name for step in plan(model, "lstm")) == sorted(
        name for name, _ in model.named_parameters() if name[0] != "b"
    )
    assert not plan(model["b"], "lstm").writes


def test_t_fixup_of_torchs_own_transformer() -> None:
    made = plan(nn.Transformer(16, 2, 2, 3, 32, batch_first=True), "t_fixup", complete=True)
    for part, gain in (("encoder", 0.67 * 2**-0.25), ("decoder", 27**-0.25)):
        fill = made[f"{part}.layers.0.self_attn.in_proj_weight"].fill
        assert isinstance(fill, Blockwise)
        assert [each.b for each in fill.fills if isinstance(each, Uniform)] == pytest.approx(
            [math.sqrt(3 / 32), math.sqrt(3 / 32), gain * math.sqrt(6 / 32)]
        )


def test_the_argument_to_give_where_there_is_no_depth() -> None:
    table = nn.ModuleDict({"decoder": nn.ModuleDict({"embed_tokens": nn.Embedding(10, 16)})})
    with pytest.raises(PlanError, match=r"there is no depth: .* Or give encoder_layers and decoder_layers of t_fixup"):
        plan(table, "t_fixup")
    made = plan(
        table, {"type": "scheme", "name": "t_fixup", "optional": True, "encoder_layers": 9, "decoder_layers": 9}
    )
    assert made["decoder.embed_tokens.weight"].fill == Normal(std=1 / 12)


@pytest.mark.parametrize("model", [residual(8, 2), Image(), nn.LSTM(4, 4), nn.TransformerDecoderLayer(8, 2, 8)])
def test_the_general_one_covers_everything_in_torch(model: nn.Module) -> None:
    plan(model, "general", complete=True)
    initialize(model, "general", seed=0).assert_ok()
