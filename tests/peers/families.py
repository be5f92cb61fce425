"""Families: a small model of any family of transformers, made from its default settings with smaller numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import CONFIG_MAPPING, AutoModel
from transformers.models.auto import modeling_auto as auto

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "global_head_dim": 8, "vocab_size": 128, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "lru_width": 32, "sliding_window": 8,
    "shared_expert_intermediate_size": 16, "q_lora_rank": 16, "kv_lora_rank": 16, "max_position_embeddings": 64,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "image_size": 32, "patch_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "depth": 2,
    "out_hidden_size": 32, "attention_window_size": 8, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2,
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
}  # fmt: skip

# What a family works out from the others, or keeps for itself.
_DERIVED = {
    "layer_types", "mlp_layer_types", "block_types", "layers_block_type", "mlp_only_layers", "no_rope_layers",
    "sliding_window_pattern", "architectures", "dtype", "model_type", "transformers_version", "_name_or_path",
}  # fmt: skip


def small(family: str, **settings: Any) -> nn.Module:
    """A model of this family (a ``model_type``) with its weights as its own code starts them."""
    config = CONFIG_MAPPING[family]
    return model_of(config(**{**_smaller(config().to_dict()), **settings}))


def model_of(config: Any) -> nn.Module:
    """A model of this configuration: that of AutoModel, or, where it has none, that of another of the Auto classes."""
    makers = [
        AutoModel._model_mapping,
        *(mapping for name, mapping in sorted(vars(auto).items()) if name[-8:] == "_MAPPING"),
    ]
    cls = next((mapping[type(config)] for mapping in makers if type(config) in mapping), None)
    if cls is None or isinstance(cls, tuple):
        made: nn.Module = AutoModel.from_config(config)
        return made
    whole: nn.Module = cls(config)
    return whole


def _smaller(settings: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in settings.items():
        if key in _DERIVED:
            continue
        if isinstance(value, dict) and "model_type" in value:  # of a part of the model
            made[key] = {**_smaller(value), "model_type": value["model_type"]}
        else:
            made[key] = SIZES.get(key, value) if value is not None else None
    limit = SIZES["vocab_size"]
    tokens = {key for key, value in made.items() if key.endswith("token_id") and isinstance(value, int)}
    return {**made, **{key: 1 for key in tokens if made[key] >= limit}}
