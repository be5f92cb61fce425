"""Adapters beside the code of timm and transformers that does the same, and on their models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple
from timm.models._manipulate import adapt_input_conv
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from transformers import (
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)
from transformers.models.gptj import modeling_gptj as gptj
from transformers.models.llama import modeling_llama as llama

from tests.peers.foreign import DECODER
from torchinit.checkpoints.adapters import (
    Adapter,
    Chain,
    FoldBatchNorm,
    Fuse,
    InputChannels,
    ResizePatches,
    ResizePositions,
    ResizeRelativeBias,
    ResizeVocabulary,
    RopeOrder,
    Split,
    Stack,
    Transpose,
)
from torchinit.core.globs import glob_matches

SMALL: dict[str, Any] = {**DECODER, "vocab_size": 50, "rms_norm_eps": 1e-5}


def load(model: nn.Module, state: Mapping[str, Tensor], adapt: Mapping[str, Adapter]) -> None:
    """Each parameter of the model from the state, through the adapter whose glob it fits."""
    for name, parameter in model.named_parameters():
        adapter = next((adapter for glob, adapter in adapt.items() if glob_matches(glob, name)), None)
        if adapter is None:
            parameter.data = state[name].clone()
        else:
            tensors = [state[key] for key in adapter.wants(name)]
            adapter.check([tuple(tensor.shape) for tensor in tensors], tuple(parameter.shape), name)
            parameter.data = adapter.adapt(tensors, tuple(parameter.shape), name)


@pytest.mark.parametrize("channels", [1, 2, 4, 9])
def test_input_channels_of_timm(channels: int) -> None:
    weight = torch.randn(8, 3, 7, 7)
    made = InputChannels().adapt([weight], (8, channels, 7, 7), "conv1.weight")
    torch.testing.assert_close(made, adapt_input_conv(channels, weight))


@pytest.mark.parametrize("new", [(24, 24), (10, 10), (12, 20)])
def test_positions_of_timm(new: tuple[int, int]) -> None:
    table = torch.randn(1, 197, 16)
    made = ResizePositions(site=new).adapt([table], (1, 1 + new[0] * new[1], 16), "pos_embed")
    torch.testing.assert_close(made, resample_abs_pos_embed(table, list(new)))


@pytest.mark.parametrize(("window", "extra"), [(12, 0), (5, 0), (12, 3)])
def test_relative_biases_of_timm(window: int, extra: int) -> None:
    table, rows = torch.randn(169 + extra, 4), (2 * window - 1) ** 2 + extra
    made = ResizeRelativeBias(extra).adapt([table], (rows, 4), "relative_position_bias_table")
    torch.testing.assert_close(made, resize_rel_pos_bias_table_simple(table, (window, window), (rows, 4)))


@pytest.mark.parametrize("size", [8, 12, 32])
def test_patches_of_timm(size: int) -> None:
    weight = torch.randn(8, 3, 16, 16)
    made = ResizePatches().adapt([weight], (8, 3, size, size), "patch_embed.proj.weight")
    theirs = resample_patch_embed(weight, [size, size])
    torch.testing.assert_close(made, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=1e-3)


def test_a_vision_transformer_for_larger_images_with_smaller_patches() -> None:
    """As timm loads it itself: from 32 pixels in patches of 8 to 48 in patches of 6."""
    sizes = {"embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 3}
    source = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, **sizes).eval()
    theirs, ours = (timm.create_model("vit_tiny_patch16_224", img_size=48, patch_size=6, **sizes).eval() for _ in "to")
    state = {name: tensor.detach() for name, tensor in source.state_dict().items()}
    theirs.load_state_dict(checkpoint_filter_fn(dict(state), theirs))
    load(ours, state, {"pos_embed": ResizePositions(), "patch_embed.proj.weight": ResizePatches()})
    images = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=1e-4)


def test_a_resnet_without_its_norms() -> None:
    model, folded = (timm.create_model("resnet18", num_classes=5).eval() for _ in "to")
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "running_var", "bn1.bias")):
            tensor.uniform_(0.5, 1.5)
    adapters: dict[str, Adapter] = {}
    for name, norm in list(folded.named_modules()):
        if isinstance(norm, nn.BatchNorm2d):
            layer = name.replace("downsample.1", "downsample.0").replace("bn", "conv")
            conv = folded.get_submodule(layer)
            assert isinstance(conv, nn.Conv2d)
            conv.bias = nn.Parameter(torch.empty(conv.out_channels))
            adapter = FoldBatchNorm(layer.rpartition(".")[2], name.rpartition(".")[2], norm.eps)
            adapters |= {f"{layer}.{leaf}": adapter for leaf in ("weight", "bias")}
    for name, norm in list(folded.named_modules()):
        if isinstance(norm, nn.BatchNorm2d):
            parent, _, leaf = name.rpartition(".")
            # timm's own norm layers hold the activation, too
            setattr(folded.get_submodule(parent), leaf, getattr(norm, "act", nn.Identity()))
    state = model.state_dict()
    load(folded, state, adapters)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(folded(images), model(images), atol=1e-3, rtol=1e-3)
    mean, variance = (state[f"bn1.{leaf}"] for leaf in ("running_mean", "running_var"))
    theirs, _ = fuse_conv_bn_weights(
        state["conv1.weight"], None, mean, variance, 1e-5, state["bn1.weight"], state["bn1.bias"]
    )
    torch.testing.assert_close(folded.get_parameter("conv1.weight"), theirs)


def test_projections_of_gpt2_as_linear_layers() -> None:
    """Its Conv1D keeps weights as (inputs, outputs), and query, key and value in one."""
    attention = GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=50, n_positions=16)).h[0].attn
    hidden = torch.randn(2, 7, 32)
    whole, key = nn.Linear(32, 96), nn.Linear(32, 32)
    state = {f"c_attn.{name}": tensor.detach() for name, tensor in attention.c_attn.state_dict().items()}
    load(nn.ModuleDict({"c_attn": whole}), state, {"**.weight": Transpose()})
    split = Split("c_attn", ("q", "k", "v"))
    load(nn.ModuleDict({"k": key}), state, {"**.weight": Chain((Transpose(), split)), "**.bias": split})
    torch.testing.assert_close(whole(hidden), attention.c_attn(hidden))
    torch.testing.assert_close(key(hidden), attention.c_attn(hidden).split(32, dim=2)[1])


def test_rotary_order_of_gptj_and_llama() -> None:
    """GPT-J turns neighbours, Llama turns halves: the scores are the same once the rows are reordered."""
    heads, size, length = 4, 8, 6
    weights, hidden = [torch.randn(heads * size, 16) for _ in "qk"], torch.randn(1, length, 16)
    table = gptj.create_sinusoidal_positions(length, size)[None]
    sine, cosine = table.chunk(2, -1)
    rows, columns = ((hidden @ weight.T).view(1, length, heads, size) for weight in weights)
    neighbours = [gptj.apply_rotary_pos_emb(part, sine, cosine) for part in (rows, columns)]
    adapter = RopeOrder(heads, to="half")
    adapted = [adapter.adapt([weight], tuple(weight.shape), "q_proj.weight") for weight in weights]
    rows, columns = ((hidden @ weight.T).view(1, length, heads, size) for weight in adapted)
    halves = llama.apply_rotary_pos_emb(
        rows, columns, torch.cat([cosine, cosine], -1), torch.cat([sine, sine], -1), unsqueeze_dim=2
    )
    scores = [torch.einsum("bihd,bjhd->bhij", q, k) for q, k in (neighbours, halves)]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)


def test_llama_as_phi3() -> None:
    """The same function, with q, k and v in one weight, gate and up in another."""
    source, model = LlamaForCausalLM(LlamaConfig(**SMALL)).eval(), Phi3ForCausalLM(Phi3Config(**SMALL)).eval()
    adapt = {
        "**.qkv_proj.weight": Fuse("qkv_proj", ("q_proj", "k_proj", "v_proj")),
        "**.gate_up_proj.weight": Fuse("gate_up_proj", ("gate_proj", "up_proj")),
    }
    load(model, source.state_dict(), adapt)
    tokens = torch.randint(50, (2, 9))
    torch.testing.assert_close(model(tokens).logits, source(tokens).logits)
    attention, gates = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
    back = dict.fromkeys((f"**.{name}.weight" for name in attention), Split("qkv_proj", attention, (4, 2, 2)))
    back |= dict.fromkeys((f"**.{name}.weight" for name in gates), Split("gate_up_proj", gates))
    again = LlamaForCausalLM(LlamaConfig(**SMALL))
    load(again, model.state_dict(), back)
    for name, tensor in source.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_experts_of_mixtral(tmp_path: Path) -> None:
    """Its files have a weight for each expert, its model one stack, with gate and up fused."""
    from safetensors.torch import load_file

    config = MixtralConfig(**SMALL, num_local_experts=3)
    source, model = (MixtralForCausalLM(config).eval() for _ in "to")
    source.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert "model.layers.0.block_sparse_moe.experts.2.w3.weight" in state
    state = {key.replace("block_sparse_moe", "mlp"): tensor for key, tensor in state.items()}
    fuse = Fuse("gate_up", ("w1", "w3"))
    adapt = {
        "**.experts.gate_up_proj": Chain((fuse, Stack("experts.gate_up_proj", "experts.*.gate_up.weight", 3))),
        "**.experts.down_proj": Stack("experts.down_proj", "experts.*.w2.weight", 3),
    }
    load(model, state, adapt)
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_more_tokens_than_before() -> None:
    """Transformers draws new rows from the same distribution, with a covariance of almost nothing."""
    config = LlamaConfig(**SMALL, tie_word_embeddings=True)
    theirs, ours = LlamaForCausalLM(config).eval(), ResizeVocabulary(spread=0)
    table = theirs.get_input_embeddings().weight.detach().clone()
    grown = theirs.resize_token_embeddings(55, mean_resizing=True).weight.detach()
    made = ours.adapt([table], (55, 32), "model.embed_tokens.weight")
    assert torch.equal(made[:50], table)
    torch.testing.assert_close(made, grown, atol=1e-3, rtol=0)
