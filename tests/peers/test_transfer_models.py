"""Transfer of transformers' models: the multipliers act where they are put, and torchtitan takes the groups."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import torchinit
from torchinit.transfer import Transfer

SIZES = {"vocab_size": 50, "num_attention_heads": 4, "num_hidden_layers": 2, "tie_word_embeddings": False}


def gpt2(width: int, depth: int = 2) -> Any:
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=width, n_layer=depth, n_head=4, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def llama(width: int, depth: int = 2) -> Any:
    sizes = {**SIZES, "num_hidden_layers": depth, "hidden_size": width, "intermediate_size": 2 * width}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()


def granite(width: int, depth: int = 2, attention: float | None = None) -> Any:
    config = transformers.GraniteConfig(
        **{**SIZES, "num_hidden_layers": depth}, hidden_size=width, intermediate_size=2 * width,
        logits_scaling=2.0, attention_multiplier=attention or (width // 4) ** -0.5, residual_multiplier=0.8,
    )  # fmt: skip
    return transformers.GraniteForCausalLM(config).eval()


def by_hand(model: Any, width: int, branch: float) -> Any:
    """The same model with the multipliers in its weights: 1/4 in the readout, 1/2 in the queries."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, each in other.named_parameters():
            if name == "lm_head.weight":
                each.mul_(0.25)
            elif name.endswith("q_proj.weight"):
                each.mul_(0.5)
            elif "c_attn" in name:
                each[..., :width].mul_(0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight")) or ".c_proj." in name:
                each.mul_(branch)
    return other


@pytest.mark.parametrize("make", [gpt2, llama, granite])
@pytest.mark.parametrize("depth", [2, 8])
def test_multipliers_act(make: Any, depth: int) -> None:
    torch.manual_seed(0)
    model, base = make(64, depth), make(16)
    for each in model.parameters():
        nn.init.normal_(each, std=0.2)
    transfer = Transfer(model, base, parametrization="completep")
    expected = by_hand(model, 64, 2 / depth)
    ids = torch.arange(12)[None]
    before = model(ids).logits
    with transfer.apply():
        transfer.verify()
        torch.testing.assert_close(model(ids).logits, expected(ids).logits, rtol=1e-4, atol=1e-5)
        again = copy.deepcopy(model)
        torch.testing.assert_close(again(ids).logits, expected(ids).logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(ids).logits, before)
    assert not torch.allclose(before, expected(ids).logits, rtol=1e-2)
    places = {each.place for each in transfer.multipliers}
    assert places == ({"config"} if make is granite else {"input", "attribute"} | ({"output"} if depth == 8 else set()))


def test_a_config_carries_the_multipliers_through_a_save(tmp_path: Any) -> None:
    model = granite(64)
    transfer = Transfer(model, granite(16))
    transfer.apply()
    model.save_pretrained(tmp_path)
    again = transformers.GraniteForCausalLM.from_pretrained(tmp_path)
    transfer.verify(again)
    ids = torch.arange(12)[None]
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    plain = llama(64)
    other = Transfer(plain, llama(16))
    other.apply()
    plain.save_pretrained(tmp_path / "llama")
    with pytest.raises(torchinit.ReportError, match=r"lm_head.*|multipliers are not in the model"):
        other.verify(transformers.LlamaForCausalLM.from_pretrained(tmp_path / "llama"))


def test_multipliers_that_are_in_a_config_are_not_put_in_twice() -> None:
    model, base = granite(64, 4), granite(16)
    transfer = Transfer(model, base, parametrization="completep")
    with transfer.apply():
        again = Transfer(model, base, parametrization="completep")
        assert {each.factor for each in again.multipliers} == {1.0}
        again.verify()
        transfer.verify()


def test_a_scale_of_attention_that_does_not_go_with_the_heads() -> None:
    factors = [each for each in Transfer(granite(64, 2, 0.3), granite(16, 2, 0.3)).multipliers if each.field][1:]
    assert [(each.factor, each.value) for each in factors] == [(0.25, 0.075)]

    def t5(width: int) -> Any:
        sizes = {"d_model": width, "d_kv": width // 4, "d_ff": 2 * width, "num_heads": 4, "num_layers": 1}
        return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=50, **sizes))

    found = [each for each in Transfer(t5(64), t5(16)).multipliers if each.purpose == "attention"]
    assert len(found) == 3 and {each.factor for each in found} == {0.25}


def test_an_attention_of_timm() -> None:
    vit = pytest.importorskip("timm").models.vision_transformer.VisionTransformer
    wide, small = (vit(16, 8, embed_dim=width, depth=1, num_heads=4, num_classes=5) for width in (64, 16))
    transfer = Transfer(wide, small)
    assert [str(each) for each in transfer.multipliers][1:] == [
        "attention x 0.5: first 64 outputs of blocks.0.attn.qkv"
    ]


def test_a_trainer_takes_the_groups() -> None:
    model = llama(64)
    transfer = Transfer(model, llama(16))
    optimizer = torch.optim.AdamW(transfer.param_groups(lr=0.01, weight_decay=0.1))
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 2, 10)
    transfer.apply()
    for _ in range(5):
        optimizer.step()
        schedule.step()
        assert not [each for each in transfer.lint(model, optimizer) if each.code == "TI003"]


def test_torchtitan_takes_the_groups() -> None:
    optimizer = pytest.importorskip("torchtitan.components.optimizer")
    model = llama(64)
    transfer = Transfer(model, llama(16))
    entries = [optimizer.ParamGroupConfig(**each) for each in transfer.torchtitan(lr=0.01, weight_decay=0.1)]
    config = optimizer.OptimizersContainer.Config(param_groups=entries, implementation="for-loop")
    made = optimizer.OptimizersContainer(config, model_parts=[model])
    transfer.apply()
    assert not [each for each in transfer.lint(model, *made.optimizers) if each.code in ("TI003", "TI004")]
