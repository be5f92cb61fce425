"""Adapters beside the code of timm and transformers that does the same, and on their models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers.norm_act import FrozenBatchNormAct2d
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple
from timm.models._manipulate import adapt_input_conv
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2Model,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
)
from transformers.core_model_loading import PermuteForRope
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention
from transformers.models.gptj import modeling_gptj as gptj
from transformers.models.llama import modeling_llama as llama

from tests.peers.foreign import DECODER, ENCODER, IMAGE
from torchinit import Name, Pretrained, Rule, initialize
from torchinit.checkpoints.adapters import (
    Adapter,
    BatchNormAffine,
    Chain,
    FoldBatchNorm,
    Fuse,
    InputChannels,
    PoolHeads,
    ResizePatches,
    ResizePositions,
    ResizeRelativeBias,
    ResizeVocabulary,
    RopeOrder,
    Rows,
    Split,
    Stack,
    Transpose,
)

SMALL: dict[str, Any] = {**DECODER, "vocab_size": 50, "rms_norm_eps": 1e-5}


def load(model: nn.Module, state: Mapping[str, Tensor], adapt: Mapping[str, Adapter], **arguments: Any) -> None:
    """The whole model from the state, as a user would load it."""
    report = initialize(model, Rule(Name("**"), Pretrained(dict(state), adapt=adapt, **arguments)))
    assert report.loads[0].complete


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


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize(("old", "new"), [((8, 12), (16, 10)), ((12, 6), (9, 9))])
def test_positions_of_timm_on_other_grids(old: tuple[int, int], new: tuple[int, int], prefix: int) -> None:
    table, shape = torch.randn(1, prefix + old[0] * old[1], 16), (1, prefix + new[0] * new[1], 16)
    made = ResizePositions(prefix, old, new).adapt([table], shape, "pos_embed")
    torch.testing.assert_close(made, resample_abs_pos_embed(table, list(new), list(old), prefix))


@pytest.mark.parametrize("new", [(8, 8), (3, 3), (6, 5)])
def test_positions_of_transformers(new: tuple[int, int]) -> None:
    """Its ViT resamples them whenever an image has another size, without antialiasing."""
    model = ViTModel(ViTConfig(**ENCODER, **IMAGE)).eval()
    table, places = model.embeddings.position_embeddings.detach().clone().normal_(), new[0] * new[1]
    model.embeddings.position_embeddings.data = table
    theirs = model.embeddings.interpolate_pos_encoding(torch.empty(1, 1 + places, 32), 8 * new[0], 8 * new[1])
    made = ResizePositions(site=new, antialias=False).adapt([table], (1, 1 + places, 32), "position_embeddings")
    torch.testing.assert_close(made, theirs.detach())


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


def test_a_vision_transformer_of_transformers_in_timm() -> None:
    """One attention weight for three, other names everywhere, the same outputs."""
    source = ViTModel(ViTConfig(**ENCODER, **IMAGE), add_pooling_layer=False).eval()
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 1.5, "num_classes": 0}
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, **sizes).eval()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_(std=0.2)
        for norm in (module for module in model.modules() if isinstance(module, nn.LayerNorm)):
            norm.eps = source.config.layer_norm_eps
    rename = [
        (r"^embeddings\.cls_token", "cls_token"), (r"^embeddings\.position_embeddings", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"), (r"^layers", "blocks"),
        (r"attention\.o_proj", "attn.proj"), (r"attention", "attn"),
        (r"layernorm_before", "norm1"), (r"layernorm_after", "norm2"), (r"^layernorm", "norm"),
    ]  # fmt: skip
    load(model, source.state_dict(), {"**.qkv.*": Fuse("qkv", ("q_proj", "k_proj", "v_proj"))}, rename=rename)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.forward_features(images), source(images).last_hidden_state, atol=1e-4, rtol=1e-4)


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


def test_a_frozen_norm_of_timm() -> None:
    """It keeps four numbers a channel and takes them as they are; one factor and one offset do the same."""
    norm, images = nn.BatchNorm2d(5).eval(), torch.randn(2, 5, 4, 4)
    state = {name: torch.rand_like(tensor) + 0.5 for name, tensor in norm.state_dict().items() if tensor.dim()}
    norm.load_state_dict(state, strict=False)
    frozen, affine = FrozenBatchNormAct2d(5, apply_act=False), FrozenBatchNormAct2d(5, eps=0.0, apply_act=False)
    load(frozen, norm.state_dict(), {})
    initialize(affine, Rule(Name("weight", "bias"), Pretrained(state, adapt={"*": BatchNormAffine()})))
    for made in (frozen, affine):
        torch.testing.assert_close(made(images), norm(images))


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


@pytest.mark.parametrize("heads", [4, 2])
def test_rotary_order_by_the_conversion_of_transformers(heads: int) -> None:
    config = LlamaConfig(**{**SMALL, "num_attention_heads": heads})
    for tensor in (torch.randn(32, 16), torch.randn(32)):
        for inverse, adapter in enumerate((RopeOrder(heads), RopeOrder(heads, "interleaved"))):
            theirs = PermuteForRope(inverse=bool(inverse)).convert({"q": tensor}, ["q"], ["q"], config)["q"]
            assert torch.equal(adapter.adapt([tensor], tuple(tensor.shape), "q"), theirs)


class MetaAttention(nn.Module):
    """Attention as Meta's Llama has it: neighbours are turned, as complex numbers."""

    def __init__(self, width: int, heads: int, shared: int) -> None:
        super().__init__()
        self.size = width // heads
        self.wq, self.wo = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.wk, self.wv = (nn.Linear(width, shared * self.size, bias=False) for _ in "kv")

    def forward(self, hidden: Tensor) -> Tensor:
        count = hidden.shape[1]
        q, k, v = (layer(hidden).unflatten(2, (-1, self.size)) for layer in (self.wq, self.wk, self.wv))
        angles = torch.outer(torch.arange(count), 10_000.0 ** -(torch.arange(0, self.size, 2) / self.size))
        turn = torch.polar(torch.ones_like(angles), angles)[:, None]
        q, k = (
            torch.view_as_real(torch.view_as_complex(part.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
            for part in (q, k)
        )
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        made = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out: Tensor = self.wo(made.transpose(1, 2).flatten(2))
        return out


def test_attention_of_llama_as_meta_wrote_it() -> None:
    """There and back: four heads, two of which share a key."""
    config = LlamaConfig(**SMALL, attn_implementation="sdpa")
    source, model, again = llama.LlamaAttention(config, 0), MetaAttention(32, 4, 2), llama.LlamaAttention(config, 0)
    hidden, places = torch.randn(2, 9, 32), torch.arange(9)[None]
    turns = llama.LlamaRotaryEmbedding(config)(hidden, places)
    to_meta, back = [(r"(.)_proj", r"w\1")], [(r"^w(.)", r"\1_proj")]
    orders: dict[str, Adapter] = {"wq.*": RopeOrder(4, "interleaved"), "wk.*": RopeOrder(2, "interleaved")}
    load(model, source.state_dict(), orders, rename=to_meta)
    expected = source(hidden, turns, None)[0]
    torch.testing.assert_close(model(hidden), expected, atol=1e-5, rtol=1e-4)
    load(again, model.state_dict(), {"q_proj.*": RopeOrder(4), "k_proj.*": RopeOrder(2)}, rename=back)
    assert torch.equal(again(hidden, turns, None)[0], expected)


def test_attention_of_gpt_neox_as_that_of_llama() -> None:
    """Head by head in one weight, or query, key and value apart; there and back."""
    settings = {"hidden_size": 32, "num_attention_heads": 4, "attention_bias": True}
    turned = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    neox = GPTNeoXConfig(**settings, rope_parameters=turned)
    source, again = (GPTNeoXAttention(neox, 0) for _ in "to")
    config = LlamaConfig(**settings)
    model = llama.LlamaAttention(config, 0)
    parts = ("q_proj", "k_proj", "v_proj")
    load(
        model, source.state_dict(), {f"{part}.*": Split("query_key_value", parts, groups=4) for part in parts},
        rename=[("dense", "o_proj")],
    )  # fmt: skip
    hidden = torch.randn(2, 9, 32)
    turns = llama.LlamaRotaryEmbedding(config)(hidden, torch.arange(9)[None])
    expected = source(hidden, None, position_embeddings=turns)[0]
    torch.testing.assert_close(model(hidden, turns, None)[0], expected)
    fuse = Fuse("query_key_value", parts, groups=4)
    load(again, model.state_dict(), {"query_key_value.*": fuse}, rename=[("o_proj", "dense")])
    for name, tensor in source.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_llama_with_keys_that_are_alike_shares_them() -> None:
    shared, again = (LlamaForCausalLM(LlamaConfig(**SMALL)).eval() for _ in "to")
    apart = LlamaForCausalLM(LlamaConfig(**{**SMALL, "num_key_value_heads": 4})).eval()
    twice = tuple(row for head in range(2) for _ in "to" for row in range(8 * head, 8 * head + 8))
    globs = ("**.k_proj.weight", "**.v_proj.weight")
    load(apart, shared.state_dict(), dict.fromkeys(globs, Rows(twice)))
    load(again, apart.state_dict(), dict.fromkeys(globs, PoolHeads(4)))
    tokens = torch.randint(50, (2, 9))
    for model in (apart, again):
        torch.testing.assert_close(model(tokens).logits, shared(tokens).logits)


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


@pytest.mark.parametrize("tokens", [40, 57])
@pytest.mark.parametrize(
    "make",
    [
        lambda tokens: LlamaForCausalLM(LlamaConfig(**{**SMALL, "vocab_size": tokens})),
        lambda tokens: BertForMaskedLM(BertConfig(**ENCODER, vocab_size=tokens, max_position_embeddings=32)),
    ],
    ids=["untied", "tied, with a bias"],
)
def test_another_number_of_tokens(make: Callable[[int], PreTrainedModel], tokens: int) -> None:
    """Old tokens stay bit for bit; transformers draws new ones about the mean, with a covariance of almost nothing."""
    theirs, ours = make(50).eval(), make(tokens).eval()
    state = {name: tensor.detach().clone().normal_() for name, tensor in theirs.state_dict().items()}
    theirs.load_state_dict(state)
    grown = [name for name, tensor in ours.state_dict().items() if tensor.shape != state[name].shape]
    load(ours, theirs.state_dict(), dict.fromkeys(grown, ResizeVocabulary(spread=0)))
    theirs.resize_token_embeddings(tokens, mean_resizing=True)
    for name, tensor in theirs.state_dict().items():
        made, old = ours.state_dict()[name], min(50, tokens) if name in grown else len(tensor)
        assert torch.equal(made[:old], tensor[:old]), name
        if tensor.dim() == 2:  # the bias of a new token, which transformers makes zero, is the mean here, too
            torch.testing.assert_close(made, tensor, atol=1e-3, rtol=0, msg=name)
    assert grown
