"""Foreign models: small ones of transformers and timm, made from settings alone, as nobody here wrote them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import timm
import transformers
from torch import nn

Make = Callable[[], nn.Module]

# Enough for every kind of layer that the architecture has, and few enough numbers to draw them often.
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
DECODER = {**ENCODER, "vocab_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 64, **TOKENS}
IMAGE = {"image_size": 32, "patch_size": 8}

SETTINGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2", "LMHeadModel", {"vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "llama": ("Llama", "ForCausalLM", DECODER),
    "qwen3": ("Qwen3", "ForCausalLM", {**DECODER, "head_dim": 8}),
    "mixtral": ("Mixtral", "ForCausalLM", {**DECODER, "num_local_experts": 4}),
    "mamba": ("Mamba", "ForCausalLM", {"vocab_size": 64, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2}),
    "bert": ("Bert", "ForMaskedLM", {**ENCODER, "vocab_size": 64, "max_position_embeddings": 32}),
    "t5": (
        "T5",
        "ForConditionalGeneration",
        {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    ),
    "vit": ("ViT", "ForImageClassification", {**ENCODER, **IMAGE}),
    "swin": (
        "Swin",
        "ForImageClassification",
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    ),
    "convnext": ("ConvNext", "ForImageClassification", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}),
    "wav2vec2": (
        "Wav2Vec2",
        "ForCTC",
        {
            **ENCODER, "vocab_size": 32, "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3),
            "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
        },
    ),
    "whisper": (
        "Whisper",
        "ForConditionalGeneration",
        {
            "vocab_size": 64, "num_mel_bins": 8, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
            "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
            "max_source_positions": 32, "max_target_positions": 32, "decoder_start_token_id": 1, **TOKENS,
        },
    ),
    "clip": (
        "CLIP",
        "Model",
        {"text_config": {**ENCODER, "vocab_size": 64, **TOKENS}, "vision_config": {**ENCODER, **IMAGE}},
    ),
    "deberta": (
        "DebertaV2",
        "ForMaskedLM",
        {**ENCODER, "vocab_size": 64, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    ),
    "deepseek": (
        "DeepseekV3",
        "ForCausalLM",
        {
            **DECODER, "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 4, "n_group": 2,
            "topk_group": 1, "num_experts_per_tok": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
            "v_head_dim": 8, "qk_nope_head_dim": 8, "first_k_dense_replace": 1,
        },
    ),
    "mamba2": (
        "Mamba2",
        "ForCausalLM",
        {
            "vocab_size": 64, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8,
            "n_groups": 1,
        },
    ),
    "rwkv": ("Rwkv", "ForCausalLM", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}),
    "gpt-oss": ("GptOss", "ForCausalLM", {**DECODER, "head_dim": 8, "num_local_experts": 4}),
}  # fmt: skip


def _transformer(family: str, head: str, settings: Mapping[str, Any]) -> nn.Module:
    config = getattr(transformers, f"{family}Config")(**settings)
    model: nn.Module = getattr(transformers, family + head)(config)
    return model


def _timm(name: str, **settings: Any) -> nn.Module:
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=10, **settings)
    return model


TIMM: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"embed_dim": 48, "depth": 2, "num_heads": 4},
    "convnext_atto": {"dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1)},
    "mnasnet_small": {},
    "mobilenetv3_small_050": {},
    "nf_regnet_b0": {},
    "regnetx_002": {},
    "resnet18": {},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)},
    "vit_tiny_patch16_224": {"embed_dim": 48, "depth": 2, "num_heads": 4},
}

MODELS: dict[str, Make] = {
    **{name: partial(_transformer, *settings) for name, settings in SETTINGS.items()},
    **{f"timm/{name}": partial(_timm, name, **settings) for name, settings in TIMM.items()},
}
"""How each model is made; its class draws its own weights from torch's generator."""
