"""Experts of transformers' models: their axes against what the modules themselves compute, and rules on all of them."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from torch import nn

from torchinit import Name, Rule, Xavier, initialize, lint, plan, sites
from torchinit.initializers import Stacked

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts": 4, "head_dim": 8,
    "num_experts_per_tok": 2,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "Mixtral": {},
    "Qwen2Moe": {"shared_expert_intermediate_size": 16, "decoder_sparse_step": 1},
    "Qwen3Moe": {},
    "GptOss": {},
    "PhiMoE": {},
    "OlmoE": {},
    "Llama4": {"intermediate_size_mlp": 32, "interleave_moe_layer_step": 1},
}


def model_of(name: str) -> nn.Module:
    config = {"OlmoE": "OlmoeConfig", "PhiMoE": "PhimoeConfig", "Llama4": "Llama4TextConfig"}.get(name, f"{name}Config")
    made: nn.Module = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, config)(**SIZES, **MODELS[name])
    )
    return made


@pytest.mark.parametrize("name", MODELS)
def test_the_fans_of_one_expert(name: str) -> None:
    """One expert has 32 inputs, two parts of 48 (OLMoE and Qwen-MoE say so elsewhere), and 32 outputs."""
    known = {site.leaf: site for site in sites(model_of(name)) if "experts." in site.name and len(site.shape) == 3}
    assert known["gate_up_proj"].fans("true") == (32, 48)
    assert known["down_proj"].fans("true") == (48, 32)


@pytest.mark.parametrize("name", MODELS)
def test_torch_s_count_is_told(name: str) -> None:
    model, names = model_of(name), Name("**.gate_up_proj") | Name("**.down_proj")
    rules = {2: Rule(names, Xavier()), 0: Rule(names, Xavier(fans="true"))}
    for found, rule in rules.items():
        model_plan = plan(model, rule)
        experts = [step for step in model_plan if len(step.site.shape) == 3]
        assert all("fans by torch's count" in step.notes[0] for step in experts)
        hits = {one.site for one in lint(model, recipe=rule, select=["TI703"])}
        assert len(hits & {step.site.name for step in experts}) == found


def test_each_expert_starts_as_it_would_alone() -> None:
    """Of Mixtral: by the layout, and by Stacked, whose experts have two parts together as outputs."""
    model = model_of("Mixtral")
    initialize(model, Rule(Name("**.experts.*"), Xavier(fans="true")), seed=0).assert_ok()
    stds = {name: float(value.detach().std()) for name, value in model.named_parameters() if "experts." in name}
    for std in stds.values():
        assert std == pytest.approx((2 / (32 + 48)) ** 0.5, rel=0.1)
    stacked = plan(model, Rule(Name("**.experts.*"), Stacked(Xavier())))
    assert all(step.notes == () for step in stacked)
