"""Models from models beside code that makes them, too: Mixtral of Llama, the starts of peft, tokens by a tokenizer."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from torchinit import CheckpointError, Name, Pretrained, Rule, initialize, plan, preserves
from torchinit.checkpoints.adapters import (
    Adapter,
    Chain,
    Fuse,
    LoRA,
    MergeExperts,
    PoolHeads,
    ResizeVocabulary,
    Split,
    Transpose,
    Upcycle,
    UpcycleRouter,
)
from torchinit.recipes import decode_recipe

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip
IDS = torch.arange(48).view(3, 16)


def llama(**changes: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "intermediate_size": 48, **changes})).eval()


def mixtral(experts: int, granularity: int = 1) -> MixtralForCausalLM:
    sizes = {"num_local_experts": experts, "num_experts_per_tok": 2 * granularity}
    return MixtralForCausalLM(MixtralConfig(**SIZES, **sizes, intermediate_size=48 // granularity)).eval()


def distance(model: nn.Module, other: nn.Module, ids: Tensor = IDS) -> float:
    """The largest difference of logits, by the root mean square of the first ones."""
    with torch.no_grad():
        before, after = other(ids).logits, model(ids).logits
    return float((after - before).abs().max() / before.square().mean().sqrt())


def upcycled(granularity: int = 1, **arguments: Any) -> dict[str, Adapter]:
    cut = {"granularity": granularity, **arguments}
    fuse, gate_up = Fuse("gate_up", ("gate_proj", "up_proj")), ("experts.gate_up_proj", "gate_up.weight")
    return {
        "**.experts.gate_up_proj": Chain((fuse, Upcycle(*gate_up, hidden=0, fused=2, **cut))),
        "**.experts.down_proj": Upcycle("experts.down_proj", "down_proj.weight", hidden=1, scale=granularity, **cut),
        "**.mlp.gate.weight": UpcycleRouter("gate.weight", "down_proj.weight", granularity=granularity),
    }


@pytest.mark.parametrize("granularity", [1, 2, 4])
def test_mixtral_computes_what_llama_does(granularity: int) -> None:
    dense, mixture = llama(), mixtral(8, granularity)
    report = initialize(mixture, Rule(Name("**"), Pretrained(dense, adapt=upcycled(granularity))))
    assert report.loads[0].complete
    assert report.loads[0].promise == "function"
    assert distance(mixture, dense) <= 1e-5
    assert preserves(dense, mixture, IDS)
    assert mixture.model.layers[0].mlp.gate.weight.std() > 0.01


def test_in_a_recipe() -> None:
    """The same as data, and as the entry of an ``init_cfg`` would have it."""
    dense, mixture = llama(), mixtral(4)
    adapt = {
        "**.gate_up_proj": {"type": "Chain", "steps": [
            {"type": "Fuse", "into": "gate_up", "parts": ["gate_proj", "up_proj"]},
            {"type": "Upcycle", "into": "experts.gate_up_proj", "dense": "gate_up.weight"},
        ]},
        "**.experts.down_proj": {"type": "Upcycle", "into": "experts.down_proj", "dense": "down_proj.weight"},
        "**.gate.weight": {"type": "UpcycleRouter", "into": "gate.weight", "dense": "down_proj.weight"},
    }  # fmt: skip
    (rule,) = decode_recipe([{"type": "Pretrained", "checkpoint": "x.pth", "name": "**", "adapt": adapt}])
    assert isinstance(rule.init, Pretrained)
    initialize(mixture, Rule(Name("**"), Pretrained(dense, adapt=rule.init.adapt))).assert_ok()
    assert distance(mixture, dense) <= 1e-5


def test_noise_and_units_anew_change_what_it_computes() -> None:
    """The function is not promised, and the distance is measured; half of the units anew is further than some noise."""
    dense, found, promises = llama(), list[float](), list[str | None]()
    for adapt in (upcycled(noise=1e-4), upcycled(drop=0.5)):
        mixture = mixtral(4)
        report = initialize(mixture, Rule(Name("**"), Pretrained(dense, adapt=adapt)))
        promises.append(report.loads[0].promise)
        found.append(distance(mixture, dense))
        assert not preserves(dense, mixture, IDS)
    assert promises == ["none", "statistics"]
    assert 1e-5 < found[0] < 1e-2 < found[1]


def test_llama_again_from_its_mixture() -> None:
    dense, mixture, again = llama(), mixtral(4), llama()
    initialize(mixture, Rule(Name("**"), Pretrained(dense, adapt=upcycled())))
    split = Split("gate_up_proj", ("gate_proj", "up_proj"), axis=1)
    adapt: dict[str, Adapter] = {
        f"**.{part}.weight": Chain((split, MergeExperts(f"{part}.weight", f"experts.{part}")))
        for part in ("gate_proj", "up_proj")
    }
    adapt["**.down_proj.weight"] = MergeExperts("down_proj.weight", "experts.down_proj")
    initialize(again, Rule(Name("**"), Pretrained(mixture, adapt=adapt, expect_unexpected="**.gate.weight")))
    assert all(torch.equal(value, dense.state_dict()[name]) for name, value in again.state_dict().items())


def test_fewer_key_heads_by_mean_and_by_choice() -> None:
    """Not the same function, unless the heads of each group are alike."""
    dense = llama(num_key_value_heads=4)
    with torch.no_grad():
        for layer in dense.model.layers:
            for weight in (layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight):
                weight.copy_(weight.view(2, 2, 8, 32)[:, :1].expand(2, 2, 8, 32).reshape(32, 32))
    for pool in (PoolHeads(4), PoolHeads(4, choose=(1, 2))):
        grouped = llama()
        initialize(grouped, Rule(Name("**"), Pretrained(dense, adapt={"**.k_proj.*": pool, "**.v_proj.*": pool})))
        assert distance(grouped, dense) <= 1e-5


def test_tokens_by_a_tokenizer() -> None:
    """New tokens begin as the means of their descriptions, in embedding and head together."""
    words = {word: number for number, word in enumerate(("begin", "to", "think", "end", "it", *map(str, range(45))))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="0"))
    tokenizer.pre_tokenizer = Whitespace()
    old, new = llama(), llama(vocab_size=52)
    tokenizer.add_tokens(["<think>", "<end>"])
    described = {"<think>": "begin to think", "<end>": "end"}
    like = {tokenizer.token_to_id(token): tuple(tokenizer.encode(text).ids) for token, text in described.items()}
    assert like == {50: (0, 1, 2), 51: (3,)}
    vocabulary = ResizeVocabulary(spread=0, like=like)
    adapt = {"model.embed_tokens.weight": vocabulary, "lm_head.weight": vocabulary}
    initialize(new, Rule(Name("**"), Pretrained(old, adapt=adapt)))
    for name in adapt:
        before, after = (model.state_dict()[name].double().numpy() for model in (old, new))
        np.testing.assert_allclose(after, [*before, before[:3].mean(0), before[3]], atol=1e-7)
    with torch.no_grad():
        assert torch.equal(new(IDS).logits[..., :50], old(IDS).logits)


def adapted(model: nn.Module, targets: list[str], **arguments: Any) -> nn.Module:
    made: nn.Module = get_peft_model(
        copy.deepcopy(model), LoraConfig(r=4, lora_alpha=8, target_modules=targets, **arguments)
    )
    return made.eval()


RENAME = (("^", "base_model.model."), (r"\.([qv]_proj)\.", r".\1.base_layer."))


@pytest.mark.parametrize("method", ["pissa", "olora", "orthogonal", "gaussian", "default", "pissa_niter_8"])
def test_the_starts_of_peft(method: str) -> None:
    """What is left of W, B A and the spans of both are peft's, and the model computes what it did."""
    dense, targets = llama(), ["q_proj", "v_proj"]
    theirs = adapted(dense, targets, init_lora_weights=True if method == "default" else method)
    ours = adapted(dense, targets)
    layer: Any = ours.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    scaling = layer.scaling["default"]
    name, _, rounds = method.partition("_niter_")
    lora = LoRA(name, rank=4, scaling=scaling, iterations=int(rounds) if rounds else None)  # type: ignore[arg-type]
    adapt = {"**.q_proj.**": lora, "**.v_proj.**": lora}
    report = initialize(ours, Rule(Name("**"), Pretrained(dense, rename=RENAME, adapt=adapt)))
    assert report.loads[0].complete
    assert report.loads[0].promise == "function"
    assert distance(ours, dense) <= 1e-5
    mine, their = ours.state_dict(), theirs.state_dict()
    for key in (key.removesuffix("base_layer.weight") for key in mine if key.endswith("base_layer.weight")):
        products = [
            state[f"{key}lora_B.default.weight"] @ state[f"{key}lora_A.default.weight"] for state in (mine, their)
        ]
        rests = [state[f"{key}base_layer.weight"] for state in (mine, their)]
        wholes = [rest + scaling * product for rest, product in zip(rests, products, strict=True)]
        torch.testing.assert_close(*wholes, atol=1e-6, rtol=0)
        if not rounds:  # theirs begins with other draws
            torch.testing.assert_close(*products, atol=1e-6, rtol=0)
            torch.testing.assert_close(*rests, atol=1e-6, rtol=0)
        if name in ("pissa", "olora") and not rounds:
            spans = [torch.linalg.qr(state[f"{key}lora_B.default.weight"]).Q for state in (mine, their)]
            torch.testing.assert_close(torch.linalg.svdvals(spans[0].T @ spans[1]), torch.ones(4), atol=1e-5, rtol=0)
    for factor in ("A", "B"):
        values = [[value for key, value in state.items() if f"lora_{factor}" in key] for state in (mine, their)]
        mean = [float(torch.cat([value.flatten() for value in each]).square().mean()) for each in values]
        assert mean[0] == pytest.approx(mean[1], rel=0.35)  # of draws, 384 numbers and more


def test_gpt2_s_transposed_weights() -> None:
    dense = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=1, n_head=4)).eval()
    ours = adapted(dense, ["c_attn"], fan_in_fan_out=True)
    pissa = LoRA("pissa", rank=4, scaling=2.0)
    square = adapted(dense, ["attn.c_proj"], fan_in_fan_out=True)
    again = (("^", "base_model.model."), (r"attn\.c_proj\.", "attn.c_proj.base_layer."))
    with pytest.raises(CheckpointError, match=r"Conv1D has inputs first: give Chain\(\(Transpose\(\), LoRA"):
        plan(square, Rule(Name("**"), Pretrained(dense, rename=again, adapt={"**.attn.c_proj.**": pissa})))
    adapt = {
        "**.c_attn.base_layer.weight": Chain((Transpose(), pissa, Transpose())),
        "**.c_attn.lora_*.**": Chain((Transpose(), pissa)),
    }
    rename = (("^", "base_model.model."), (r"\.c_attn\.", ".c_attn.base_layer."))
    initialize(ours, Rule(Name("**"), Pretrained(dense, rename=rename, adapt=adapt)))
    assert distance(ours, dense, IDS[:, :16]) <= 1e-5
    theirs = adapted(dense, ["c_attn"], fan_in_fan_out=True, init_lora_weights="pissa")
    key = "base_model.model.transformer.h.0.attn.c_attn.base_layer.weight"
    torch.testing.assert_close(ours.state_dict()[key], theirs.state_dict()[key], atol=1e-6, rtol=0)


def test_a_base_that_is_not_adapted_is_refused() -> None:
    ours, lora = adapted(llama(), ["q_proj", "v_proj"]), LoRA("pissa", rank=4, scaling=2.0)
    rule = Rule(Name("**"), Pretrained(llama(), rename=RENAME, adapt={"**.lora_*.**": lora}))
    with pytest.raises(CheckpointError, match=r"takes a share of .*base_layer\.weight: adapt that, too"):
        plan(ours, rule)
