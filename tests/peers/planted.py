"""Small real models with one mistake each, for ``torchinit check``: the name of each ends in the code that finds it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.peers.foreign import MODELS


def equal_rows_ti302() -> Any:
    model: Any = MODELS["llama"]()
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data = weight.data[:1].repeat(len(weight), 1)
    return model


def transposed_ti304() -> Any:
    model: Any = MODELS["llama"]()
    attention = model.model.layers[0].self_attn
    attention.o_proj.weight.data = -attention.q_proj.weight.data.t().contiguous()
    return model


def empty_ti101() -> Any:
    model: Any = MODELS["gpt2"]()
    model.register_buffer("allowed", torch.empty(64, dtype=torch.bool))
    return model


def loud_tie_ti404() -> Any:
    model: Any = MODELS["gpt2"]()
    nn.init.normal_(model.transformer.wte.weight, std=2.0)
    return model


def loud_head_ti407() -> Any:
    model: Any = MODELS["timm/resnet18"]()
    model.fc = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)), nn.Linear(512, 10))
    for layer in model.fc:
        nn.init.normal_(layer.weight, std=0.3)
    return model


def faint_head_ti408() -> Any:
    model = loud_head_ti407()
    for layer in model.fc:
        nn.init.normal_(layer.weight, std=1e-4)
    return model


def dead_ti409() -> Any:
    model: Any = MODELS["timm/resnet18"]()
    model.fc = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))
    nn.init.constant_(model.fc[0].bias, -10)
    return model


def lora_ti410() -> Any:
    model: Any = MODELS["llama"]()
    for layer in model.model.layers:
        projection = layer.self_attn.q_proj
        projection.lora_A = nn.ModuleDict({"default": nn.Linear(32, 4, bias=False)})
        projection.lora_B = nn.ModuleDict({"default": nn.Linear(4, 32, bias=False)})
        for factor in (projection.lora_A, projection.lora_B):
            nn.init.zeros_(factor["default"].weight)
    return model


def prior_ti411() -> Any:
    model: Any = MODELS["timm/resnet18"]()
    nn.init.constant_(model.fc.bias, -690)
    return model


def over_fan_ti412() -> Any:
    model: Any = MODELS["timm/resnet18"]()
    nn.init.normal_(model.layer4[1].conv2.weight, std=1 / (512 * 9))
    return model


def rounded_ti505() -> Any:
    return MODELS["llama"]().to(torch.bfloat16)


def lost_ti603() -> Any:
    model: Any = MODELS["timm/resnet18"]()
    nn.utils.spectral_norm(model.fc)
    model(torch.randn(2, 3, 32, 32))
    nn.init.normal_(model.fc.weight, std=0.01)
    return model


def in_vain_ti603() -> Any:
    model: Any = MODELS["timm/resnet18"]()
    nn.utils.parametrizations.orthogonal(model.fc)
    nn.init.normal_(model.fc.weight, std=0.01)
    return model


def shared_ti605() -> Any:
    model: Any = MODELS["llama"]()
    model.model.layers[0].self_attn.k_proj = model.model.layers[0].self_attn.v_proj
    return model


def one_layer_ti605() -> Any:
    model: Any = MODELS["llama"]()
    model.model.layers = nn.ModuleList([model.model.layers[0]] * 4)
    return model


def in_a_list_ti606() -> Any:
    model: Any = MODELS["bert"]()
    model.extra_heads = [nn.Linear(32, 4) for _ in range(2)]
    return model
