"""Groups: what Megatron-style code is given, and torchtitan's patterns."""

from __future__ import annotations

import re

import pytest
import torch

from tests.transfer.nets import Decoder, mlp
from torchinit import ConfigError
from torchinit.transfer import Transfer


def test_megatron() -> None:
    transfer = Transfer(Decoder(64), Decoder(16))
    megatron = transfer.megatron(lr=0.01, min_lr=0.001, weight_decay=0.1, no_decay=["**.bias"])
    assert megatron.lr_mult == 0.25
    names = [name for name, _ in Decoder(64).named_parameters()]
    scaled = [name for name in names if megatron.scale_lr_cond(f"module.{name}")]
    assert scaled == [name for name in names if "layers" in name and name.endswith("weight") and "norm" not in name]
    assert [name for name in names if megatron.no_weight_decay_cond(name)] == [each for each in names if "bias" in each]
    override = next(each for each in megatron.overrides if "layers.0.self_attn.q_proj.weight" in each["name"])
    assert {key: value for key, value in override.items() if key != "name"} == {
        "max_lr": 0.0025, "min_lr": 0.00025, "wd_mult": 4.0, "eps": 2.5e-9,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="the transfer has no group with 'head'"):
        megatron.scale_lr_cond("head")
    deep = Transfer(Decoder(64, 4), Decoder(16, 2), parametrization="depth_mup").megatron(lr=0.01)
    with pytest.raises(ConfigError, match=r"one lr_mult cannot stand for the factors .* take overrides"):
        deep.lr_mult  # noqa: B018
    assert Transfer(mlp(16)).megatron(lr=0.01).lr_mult == 1


def test_an_init_method_draws_as_the_recipe_does() -> None:
    start = {"rules": [{"type": "Normal", "std": 0.2, "name": "*.weight"}, {"type": "Zeros", "name": "*.bias"}]}
    transfer = Transfer(mlp(64), mlp(16), start=start)
    drawn = transfer.init_method("2.weight")(torch.empty(200, 200))
    assert float(drawn.std()) == pytest.approx(0.1, rel=5 / 200)
    assert float(transfer.init_method("4.weight")(torch.empty(200, 200)).std()) == pytest.approx(0.2, rel=5 / 200)
    for glob in ("*.weight", "2.bias", "none"):
        with pytest.raises(ConfigError, match=f"an init_method is one normal distribution, but '{re.escape(glob)}' is"):
            transfer.init_method(glob)


def test_torchtitans_patterns_fit_each_parameter_once() -> None:
    groups = Transfer(Decoder(64), Decoder(16)).torchtitan(lr=0.01, weight_decay=0.1)
    for name, _ in Decoder(64).named_parameters():
        (group,) = (each for each in groups if re.search(each["pattern"], name))
        assert group["optimizer_name"] == "AdamW" and group["optimizer_kwargs"].keys() == {"lr", "weight_decay", "eps"}
