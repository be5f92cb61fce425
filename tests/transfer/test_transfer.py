"""Transfer: the identity at the base, the model it makes of a larger one, its data, and what it refuses."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import torchinit
from tests.transfer.nets import Attention, Decoder, ids, mlp
from torchinit import ConfigError, ReportError, RunError
from torchinit.model.layouts import Layout, register_layout
from torchinit.transfer import Base, Factors, Transfer


def meta(make: Any, *args: Any, **options: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = make(*args, **options)
    return model


@pytest.mark.parametrize("parametrization", ["mup", "depth_mup", "completep", "standard"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon", "lion"])
@pytest.mark.parametrize("form", ["table8", "folded"])
def test_the_base_itself_is_the_identity(parametrization: str, optimizer: str, form: Any) -> None:
    model = Decoder(16)
    transfer = Transfer(model, Decoder(16), parametrization=parametrization, optimizer=optimizer, form=form)
    assert transfer.is_identity
    assert {group["lr"] for group in transfer.param_groups(lr=0.01)} == {0.01}
    assert Transfer(model, base_width=16).is_identity
    assert Transfer(model).is_identity


def test_kinds_and_multipliers_of_a_transformer() -> None:
    transfer = Transfer(Decoder(64), Decoder(16))
    kinds = {row.name: row.kind for row in transfer.rows}
    assert kinds["embed_tokens.weight"] == "input" and kinds["lm_head.weight"] == "output"
    assert kinds["layers.1.mlp.up_proj.weight"] == "hidden" and kinds["layers.1.mlp.up_proj.bias"] == "vector"
    assert list(map(str, transfer.multipliers)) == [
        "readout x 0.25: input of lm_head",
        "attention x 0.5: output of layers.0.self_attn.q_proj",
        "attention x 0.5: output of layers.1.self_attn.q_proj",
    ]
    more_heads = Transfer(Decoder(64, heads=16), Decoder(16))
    assert [each.purpose for each in more_heads.multipliers] == ["readout"]  # heads keep their size


@pytest.mark.parametrize("outputs", [1, 10])
def test_a_head_of_one_output_is_an_output(outputs: int) -> None:
    model, base = (nn.Sequential(nn.Linear(5, w), nn.Linear(w, w), nn.Linear(w, outputs)) for w in (64, 16))
    transfer = Transfer(model, base)
    assert [row.kind for row in transfer.rows if row.name.endswith("weight")] == ["input", "hidden", "output"]
    assert list(map(str, transfer.multipliers)) == ["readout x 0.25: input of 2"]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)


def test_blocks_that_the_base_lacks_go_with_those_of_their_own_stage() -> None:
    def stages(widths: tuple[int, ...], depths: tuple[int, ...]) -> nn.Module:
        blocks = (nn.Sequential(*(Block(w) for _ in range(d))) for w, d in zip(widths, depths, strict=True))
        return nn.ModuleList(blocks)

    transfer = Transfer(stages((8, 16, 32), (2, 2, 3)), stages((4, 8, 16), (2, 1, 2)))
    found = {row.name: row.base_shape[1] for row in transfer.rows if row.name.endswith("up.weight")}
    assert [found[f"{stage}.{at}.up.weight"] for stage, at in ((0, 1), (1, 0), (1, 1), (2, 1), (2, 2))] == [
        *(4, 8, 8, 16, 16)
    ]


def test_multipliers_compute_what_they_say_and_come_out_again() -> None:
    torch.manual_seed(0)
    model = Decoder(64)
    transfer = Transfer(model, Decoder(16))
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        for name, each in by_hand.named_parameters():
            each.mul_(0.25 if name == "lm_head.weight" else 0.5 if name.endswith("q_proj.weight") else 1.0)
    before = model(ids())
    with transfer.apply():
        torch.testing.assert_close(model(ids()), by_hand(ids()))
        transfer.verify()
        again = pickle.loads(pickle.dumps(model))
        torch.testing.assert_close(again(ids()), by_hand(ids()))
        transfer.verify(again)
        with pytest.raises(RunError, match="it is in the model already"):
            transfer.apply()
    assert torch.equal(model(ids()), before)
    with pytest.raises(ReportError, match=r"multipliers are not in the model: call apply\(model\)"):
        transfer.verify()
    with pytest.raises(RunError, match="the model has no such module"):
        transfer.apply(mlp(8))


def test_folded_computes_and_trains_as_table8() -> None:
    def trained(form: Any) -> torch.Tensor:
        torch.manual_seed(0)
        model, base = Decoder(64), Decoder(16)
        transfer = Transfer(model, base, form=form, optimizer="adamw", start={"rules": RULES})
        torchinit.initialize(model, transfer.recipe, seed=0)
        transfer.apply()
        optimizer = torch.optim.AdamW(transfer.param_groups(lr=0.01, weight_decay=0.1))
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(ids()).flatten(0, 1), ids().flatten()).backward()
            optimizer.step()
        out: torch.Tensor = model(ids())
        return out

    torch.testing.assert_close(trained("folded"), trained("table8"), rtol=2e-3, atol=2e-3)


RULES = [
    {"type": "LeCun", "distribution": "normal", "role": "attn.*"},
    {"type": "LeCun", "distribution": "normal", "role": "mlp.*"},
    {"type": "Zeros", "param": "bias"},
    {"type": "Normal", "std": 1.0, "name": "embed_tokens.weight"},
    {"type": "Normal", "std": 0.25, "name": "lm_head.weight"},
    {"type": "Ones", "name": "**.norm*.weight"},
]


def test_the_recipe_of_a_constant_std_and_of_a_fan_in_one_are_one() -> None:
    base: dict[str, Any] = {
        "rules": [{"type": "Normal", "std": 0.25, "name": "*.weight"}, {"type": "Zeros", "name": "*.bias"}]
    }
    fan = {
        "rules": [{"type": "LeCun", "distribution": "normal", "name": "*.weight"}, {"type": "Zeros", "name": "*.bias"}]
    }
    for recipe in (base, fan):
        transfer = Transfer(mlp(64), mlp(16), start=recipe)
        fill = torchinit.plan(mlp(64), transfer.recipe)["2.weight"].fill
        moments = fill.moments((64, 64))
        assert moments is not None and moments.std == pytest.approx(0.125)


def test_json_both_ways() -> None:
    model, base = Decoder(64, 4), Decoder(16)
    transfer = Transfer(model, base, parametrization="completep", optimizer=torch.optim.AdamW, alpha=0.75)
    again = Transfer.from_json(transfer.to_json(), model)
    assert json.loads(again.to_json()) == json.loads(transfer.to_json())
    assert str(again) == str(transfer) and again.multipliers == transfer.multipliers
    assert again.recipe == transfer.recipe
    assert again.groups(lr=1.0) == transfer.groups(lr=1.0)
    with pytest.raises(ConfigError, match="has no model of its own: give one"):
        Transfer.from_json(transfer.to_json()).apply()
    unknown = Transfer(meta(mlp, 64), meta(mlp, 16))
    with pytest.raises(ConfigError, match="nobody knew what starts the base, so it has no recipe"):
        Transfer.from_json(unknown.to_json()).recipe  # noqa: B018
    for text in ("{}", "[]", "no", transfer.to_json().replace('"rows"', '"row"')):
        with pytest.raises(ConfigError, match="this is not a transfer"):
            Transfer.from_json(text)


def test_a_saved_base_stands_for_its_model(tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    Base.of(meta(Decoder, 16), {"rules": RULES}).save(path)
    saved, given = (Transfer(meta(Decoder, 64), base) for base in (path, Base.of(Decoder(16), {"rules": RULES})))
    assert saved.to_dict() == given.to_dict()
    path.write_text('{"format": "other"}', "utf-8")
    with pytest.raises(ConfigError, match=r"base.json is not a saved base: its format is 'other'"):
        Transfer(mlp(64), path)


def test_a_base_of_a_width_is_the_model_of_that_width() -> None:
    start = {"rules": RULES}
    by_width, by_model = (
        Transfer(Decoder(64, heads=16), start=start, base_width=16),
        Transfer(Decoder(64, heads=16), Base.of(Decoder(16, heads=4), start)),
    )
    assert by_width.to_dict() == by_model.to_dict()


def test_groups_keep_names_ties_once_and_leave_out_what_is_frozen() -> None:
    model = Decoder(64, tied=True)
    model.norm.requires_grad_(requires_grad=False)
    transfer = Transfer(model, Decoder(16, tied=True), optimizer="adamw")
    groups = transfer.param_groups(lr=0.01, weight_decay=0.1, eps=1e-6, no_decay=["**.bias"])
    held = dict(model.named_parameters())
    for group in groups:
        assert all(held[name] is each for name, each in zip(group["param_names"], group["params"], strict=True))
    names = [name for group in groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name in held if not name.startswith("norm."))
    hidden = next(group for group in groups if "layers.0.mlp.up_proj.weight" in group["param_names"])
    assert (hidden["lr"], hidden["weight_decay"], hidden["eps"], hidden["lr_scale"]) == (0.0025, 0.4, 2.5e-7, 0.25)
    assert all(not group["weight_decay"] for group in groups if group["param_names"][0].endswith("bias"))
    assert len({*map(str, ({k: v for k, v in g.items() if "param" not in k} for g in groups))}) == len(groups)
    torch.optim.AdamW(groups)


def test_groups_of_muon_are_two_optimizers() -> None:
    groups = Transfer(Decoder(64), Decoder(16), optimizer="muon").param_groups(lr=0.02, adam_lr=0.003, weight_decay=0.1)
    muon = [group for group in groups if group["optimizer"] == "muon"]
    assert {name for group in muon for name in group["param_names"]} == {
        name for name, each in Decoder(64).named_parameters() if name.startswith("layers") and each.dim() == 2
    }
    assert {group["lr"] for group in muon} == {0.02} and {group["lr"] for group in groups} == {0.02, 0.003}
    made = [{key: value for key, value in group.items() if key != "eps"} for group in muon]
    torch.optim.Muon(made)


def test_coupled_decay_and_frozen_models_are_refused() -> None:
    transfer = Transfer(mlp(64), mlp(16), optimizer="adam")
    assert transfer.param_groups(lr=0.01)
    with pytest.raises(ConfigError, match="which no rule transfers: take optimizer='adamw'"):
        transfer.param_groups(lr=0.01, weight_decay=0.1)
    with pytest.raises(ConfigError, match="lr is a number from 0 on, but got -1"):
        transfer.param_groups(lr=-1)
    frozen = mlp(64).requires_grad_(requires_grad=False)
    with pytest.raises(ConfigError, match=r"none of the 6 parameters learns \(requires_grad is false\)"):
        Transfer(frozen, mlp(16)).param_groups(lr=0.01)
    with pytest.raises(ConfigError, match=r"the model has no parameter '0.weight', which the transfer is for"):
        transfer.param_groups(Decoder(16), lr=0.01)


def test_depth_multiplies_branches_and_needs_to_know_them() -> None:
    transfer = Transfer(Decoder(16, 8), Decoder(16, 2), parametrization="completep")
    assert {str(each) for each in transfer.multipliers} == {
        f"branch x 0.25: output of layers.{at}.{name}"
        for at in range(8)
        for name in ("self_attn.o_proj", "mlp.down_proj")
    }
    assert transfer["layers.7.mlp.up_proj.weight"].factors == Factors(eps=0.25)
    assert transfer["lm_head.weight"].factors == Factors()
    folded = Transfer(Decoder(16, 8), Decoder(16, 2), parametrization="depth_mup", form="folded")
    assert folded["layers.7.mlp.down_proj.weight"].factors == pytest.approx(Factors(0.5, 1.0, 0.25, 1.0, 4.0))
    assert not folded.multipliers

    class Odd(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))

    with pytest.raises(ConfigError, match=r"nobody tells which layers end their residual branches; name them"):
        Transfer(Odd(4), Odd(2), parametrization="completep")
    named = Transfer(Odd(4), Odd(2), parametrization="completep", branches=["blocks.*"])
    assert len(named.multipliers) == 4
    assert not Transfer(Odd(4), Odd(2), branches=["blocks.*"]).multipliers  # depth has no part in mup
    with pytest.raises(ConfigError, match=r"branches: no layer of a block fits 'block.\*'; did you mean"):
        Transfer(Odd(4), Odd(2), branches=["block.*"])


class Tabled(nn.Module):
    """A table of positions that no layer describes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(5, width))


def test_what_no_layer_describes_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"nobody tells which axis of 'table' .*say what it is.*'input'"):
        Transfer(Tabled(64), Tabled(16))
    assert Transfer(Tabled(64), Tabled(16), kinds={"table": "input"})["table"].kind == "input"
    assert Transfer(Tabled(64), Tabled(16), kinds={"table": "output"})["table"].factors.mult == 0.25
    assert Transfer(Tabled(64), Tabled(16), fixed=["table"])["table"].kind == "scalar"
    with pytest.raises(ConfigError, match="no parameter fits 'tabel'; did you mean 'table'"):
        Transfer(Tabled(64), Tabled(16), kinds={"tabel": "input"})
    with pytest.raises(ConfigError, match=r"kinds\['table'\] is one of .*, but got 'inputs'; did you mean 'input'"):
        Transfer(Tabled(64), Tabled(16), kinds={"table": "inputs"})  # type: ignore[dict-item]


def convolutional() -> nn.Module:
    model = mlp(16)
    model[0] = nn.Conv1d(8, 16, 1)
    return model


def lacking() -> nn.Module:
    model = Decoder(16)
    model.norm = nn.LayerNorm(16, bias=False)
    return model


@pytest.mark.parametrize(
    ("model", "base", "text"),
    [
        (mlp(64), Decoder(16), r"another structure: it has no '0.weight'"),
        (Decoder(64), lacking(), r"another structure: it has no 'norm.bias'"),
        (lacking(), Decoder(16), r"another structure: this model has no 'norm.bias'"),
        (mlp(64), convolutional(), r"'0.weight' has shape 64x8, and 16x8x1 in the base"),
        (Decoder(64, tied=True), Decoder(16), r"it does not tie it to another, as this model does: "),
        (Decoder(64), Decoder(16, tied=True), r"(ties it to another|has no)"),
        (nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 8)), nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)),
         r"axis 0 of '0.weight' grows from 16 to 64 and axis 1 of '0.weight' shrinks from 8 to 4"),
    ],
)  # fmt: skip
def test_bases_of_another_structure(model: nn.Module, base: nn.Module, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Transfer(model, base)


def test_arguments_that_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match="base= and base_width= are two ways"):
        Transfer(mlp(64), mlp(16), base_width=16)
    with pytest.raises(ConfigError, match=r"base_width is a whole number from 1 on, but got 0"):
        Transfer(mlp(64), base_width=0)
    with pytest.raises(ConfigError, match="code that starts the base model needs a base model"):
        Transfer(mlp(64), base_width=16, start=lambda model: None)
    with pytest.raises(TypeError, match=r"Transfer takes a torch.nn.Module, but got str"):
        Transfer("model")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"base is a model, a file of Base.save or a Base, but got int"):
        Transfer(mlp(64), 16)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="problem with the recipe of the base model"):
        Transfer(mlp(64), mlp(16), start={"rules": [{"type": "Orthogonal", "name": "0.bias"}]})
    with pytest.raises(KeyError, match=r"no parameter is called '0.weigth'"):
        Transfer(mlp(64), mlp(16))["0.weigth"]
    with pytest.raises(ConfigError, match="nobody knows what starts the base model"):
        Transfer(meta(mlp, 64), meta(mlp, 16)).recipe  # noqa: B018
    with pytest.raises(ConfigError, match="the width of Flatten is not known: give base"):
        Transfer(nn.Flatten(), base_width=4)


def test_a_tied_head_has_its_multiplier_and_is_neither_folded_nor_zero() -> None:
    model, base = Decoder(64, tied=True), Decoder(16, tied=True)
    transfer = Transfer(model, base)
    assert transfer["lm_head.weight"] is transfer["embed_tokens.weight"]
    assert str(transfer.multipliers[0]) == "readout x 0.25: input of lm_head"
    with pytest.raises(ConfigError, match="which is the embedding as well: take form='table8'"):
        Transfer(model, base, form="folded")
    with pytest.raises(ConfigError, match=r"the head cannot start at zero, since .* is the embedding as well"):
        Transfer(model, base, zero_readout=True)


def test_a_zero_readout_at_every_width() -> None:
    for width in (16, 64):
        model = Decoder(width)
        torchinit.initialize(model, Transfer(model, Decoder(16), zero_readout=True).recipe, seed=0)
        assert not model.lm_head.weight.any() and model.embed_tokens.weight.all()
    with pytest.raises(ConfigError, match="nobody tells which layer is the head that should start at zero"):
        Transfer(mlp(16), mlp(16), zero_readout=True)
    assert Transfer(mlp(16), mlp(16), zero_readout=True, kinds={"4.*": "output"}).is_identity


def test_what_is_no_width() -> None:
    more_tokens = Transfer(Decoder(64, tokens=40), Decoder(16))
    assert more_tokens["embed_tokens.weight"].kind == "input" and more_tokens["lm_head.weight"].kind == "output"
    with pytest.raises(ConfigError, match=r"has .* experts, and .* in the base model: their number is no width"):
        Transfer(StackedExperts(8, 64), StackedExperts(4, 16))
    row = Transfer(StackedExperts(8, 64), StackedExperts(4, 16), fixed=["w:0"])["w"]
    assert row.kind == "hidden" and row.factors == Factors(0.5, 1.0, 0.25, 0.25, 4.0)


class StackedExperts(nn.Module):
    def __init__(self, number: int, width: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(number, width, 2 * width))


@register_layout(StackedExperts)
def _(module: nn.Module, name: str) -> Layout:
    return Layout(out_axes=(2,), in_axes=(1,), batch_axes=(0,))


@pytest.mark.parametrize(("norm", "count"), [(nn.RMSNorm, 0), (nn.Identity, 2)])
def test_a_query_norm_sets_the_scale_itself(norm: Any, count: int) -> None:
    def make(width: int) -> nn.Module:
        model = Decoder(width)
        for layer in model.layers:
            assert isinstance(layer.self_attn, Attention)
            layer.self_attn.q_norm = norm(layer.self_attn.head_dim)
        return model

    assert [each.purpose for each in Transfer(make(64), make(16)).multipliers] == ["readout", *["attention"] * count]


@pytest.mark.parametrize("make", [mlp, Decoder])
def test_muon_has_the_same_parameters_at_the_base(make: Any) -> None:
    def given(width: int) -> dict[str, str]:
        groups = Transfer(make(width), make(16), optimizer="muon").groups()
        return {name: group.optimizer for group in groups for name in group.names}

    assert given(16) == given(64)
    assert set(given(16).values()) == {"muon", "adamw"}


def perceptron(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 64))


def patches(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 16, 16), nn.BatchNorm2d(width), nn.Conv2d(width, width, 8))


def uneven(width: int) -> nn.Module:
    """A feed-forward layer of 43/16 of the width, as Llama's, between heads of 16."""
    model = Decoder(width, heads=width // 16)
    layers: list[Any] = [*model.layers]
    for layer in layers:
        layer.mlp.up_proj, layer.mlp.down_proj = nn.Linear(width, width * 43 // 16), nn.Linear(width * 43 // 16, width)
    return model


@pytest.mark.parametrize("make", [perceptron, patches, uneven])
@pytest.mark.parametrize(("width", "base"), [(64, 16), (256, 64), (96, 32)])
def test_a_base_width_gives_the_shapes_of_the_smaller_model(make: Any, width: int, base: int) -> None:
    expected = {name: tuple(each.shape) for name, each in meta(make, base).named_parameters()}
    if make is perceptron and width == 64:
        expected["4.weight"], expected["4.bias"] = (base, base), (base,)  # as many outputs as the width are one
    found = Base.of_width(meta(make, width), base)
    assert {name: found.sites[name].shape for name in expected} == expected


def test_a_base_width_that_splits_a_head() -> None:
    with pytest.raises(ConfigError, match=r"base_width=24 would leave 24 of the 64 .* not whole heads of 16"):
        Base.of_width(Decoder(64), 24)
    with pytest.raises(ConfigError, match=r"base_width=7 would leave 14 of the 128|is not whole"):
        Base.of_width(uneven(64), 7)


class Fused(nn.Module):
    """Attention with one projection for queries, keys and values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = 4
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = (each.unflatten(-1, (4, -1)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(*parts)
        out: torch.Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


def encoder(width: int) -> nn.Module:
    return nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True)


@pytest.mark.parametrize(("make", "query"), [(Fused, "qkv"), (encoder, "in_proj")])
@pytest.mark.parametrize("training", [True, False])
def test_attention_within_a_fused_weight(make: Any, query: str, training: bool) -> None:
    torch.manual_seed(0)
    model = make(64).train(training)
    x = torch.randn(2, 5, 64)
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        for name, each in by_hand.named_parameters():
            if query in name:
                each[:64].mul_(0.5)
    transfer = Transfer(model, make(16))
    assert [(each.purpose, each.factor) for each in transfer.multipliers] == [("attention", 0.5)]
    with torch.no_grad(), transfer.apply():
        torch.testing.assert_close(model(x), by_hand(x), rtol=1e-5, atol=1e-5)  # torch's fast path has no hooks
    folded = Transfer(model, make(16), form="folded")
    assert len(folded.multipliers) == 1  # no group of an optimizer can have a part of a weight


def test_what_names_nothing_is_refused() -> None:
    model, base = Decoder(64, 4), Decoder(16)
    for axis in ("lm_head.weight:2", "lm_head.weight:rows", "lm_head.weight:"):
        with pytest.raises(ConfigError, match=r"fixed='lm_head.weight:\w*' ends with the number of an axis, of 0 to 1"):
            Transfer(model, base, fixed=[axis])
    with pytest.raises(ConfigError, match=r"branches: no layer of a block fits 'layers.\*.mlp.down'"):
        Transfer(model, base, parametrization="completep", branches=["layers.*.mlp.down"])
    with pytest.raises(ConfigError, match=r"no_decay: no parameter fits 'norm.weights'; did you mean 'norm.weight'"):
        Transfer(model, base).param_groups(lr=1.0, no_decay=["norm.weights"])
    with pytest.raises(ConfigError, match="alpha is a number from 0 on, but got -1"):
        Transfer(model, base, parametrization="completep", alpha=-1)


@pytest.mark.parametrize("parametrization", ["standard", "mup", "depth_mup", "completep"])
def test_json_is_checked(parametrization: str) -> None:
    text = Transfer(Decoder(64, 4), Decoder(16), parametrization=parametrization).to_json()
    assert Transfer.from_json(text).to_json() == text
    for before, after in ((parametrization, "mupp"), ('"hidden"', '"inner"'), ('"adamw"', '"adafactor"')):
        with pytest.raises(ConfigError, match=r"this is not a transfer: .*(mupp|inner|adafactor)"):
            Transfer.from_json(text.replace(before, after))


def test_heads_whose_size_nobody_tells_are_noted() -> None:
    def make(width: int, is_told: bool = False) -> nn.Module:
        model = Decoder(width)
        for layer in model.layers:
            assert isinstance(layer.self_attn, Attention)
            layer.self_attn.of_each = layer.self_attn.__dict__.pop("head_dim")
            heads = layer.self_attn.__dict__.pop("num_heads")
            if is_told:
                layer.self_attn.h = heads
        return model

    transfer = Transfer(make(64), make(16))
    assert [each.purpose for each in transfer.multipliers] == ["readout"]
    assert "nobody tells the size of its heads" in str(transfer)
    told = Transfer(make(64, True), make(16, True))
    assert len(told.multipliers) == 3 and "nobody" not in str(told)


class Gained(nn.Module):
    """A block whose layer scale is a parameter of its own, as ConvNeXt's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(width), nn.Linear(width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.gamma * self.mlp(self.norm(x))
        return out


class GainedNet(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Gained(8) for _ in range(depth)), nn.Linear(8, 3)


def test_the_multiplier_of_a_layer_scale_is_in_it() -> None:
    transfer = Transfer(GainedNet(8), GainedNet(2), parametrization="completep")
    assert not transfer.multipliers  # a hook on the block would scale the stream as well
    assert transfer["blocks.0.gamma"].factors == Factors(std=0.25, lr=0.25, wd=4.0)
    fill = torchinit.plan(GainedNet(8), transfer.recipe)["blocks.7.gamma"].fill
    moments = fill.moments((8,))
    assert moments is not None and moments.mean == pytest.approx(0.025)


def test_a_scale_of_attention_in_a_config_is_folded_into_the_queries_of_each_layer() -> None:
    def granite(width: int) -> Any:
        model: Any = Decoder(width)
        model.config = SimpleNamespace(attention_multiplier=0.125)
        return model

    transfer = Transfer(granite(64), granite(16), form="folded")
    assert not transfer.multipliers
    first, second = (transfer[f"layers.{at}.self_attn.q_proj.weight"].factors for at in (0, 1))
    assert first == second and first.std == pytest.approx(0.5 / 4)  # that of the width, and that of the heads' size
