"""Grouped tables of real models: one screen of GPT-2 small, blocks of several kinds told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import torchinit

ROOT = Path(__file__).parents[2]
transformers = pytest.importorskip("transformers")


def built(config: object) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    return model


@pytest.mark.parametrize("width", [80, 100, 120])
def test_gpt2_small_fits_one_screen(width: int) -> None:
    model = built(transformers.AutoConfig.from_pretrained(ROOT / "examples/gpt2"))
    plan = torchinit.plan(model, ROOT / "examples/gpt2.toml", complete=True)
    lines = plan.table(width=width).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= width
    assert lines[0] == "148 sites to write: 16 kinds, 124.4 M elements, float32"
    assert "    also lm_head.weight" in lines
    assert [line.split()[:2] for line in lines if line.startswith("  h.*")] == [["h.*", "12"]]
    assert repr(plan).startswith("<Plan of 148 sites: 16 kinds, 124.4 M elements, 0 problems>")
    assert len(repr(plan)) < 2000
    changed = plan.diff(torchinit.plan(model, "general"))
    assert str(changed).endswith("\n4 kinds change (48 tensors); 12 kinds are the same.")


def test_blocks_of_several_kinds_are_told_apart_by_their_numbers() -> None:
    config = transformers.JambaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, attn_layer_period=4, attn_layer_offset=2, expert_layer_period=2, expert_layer_offset=1,
        num_experts=2, mamba_d_state=4,
    )  # fmt: skip
    text = str(torchinit.plan(built(config), {"type": "Normal", "std": 0.02, "name": "**"}))
    assert "    2,6 " in text, "the layers with attention"
    assert "    0-1,3-5,7 " in text, "the layers with a state space"
    assert "    *.input_layernorm.weight             8 " in text, "what all of them have"
