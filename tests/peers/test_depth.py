"""Depth of real models: blocks, stages and towers, checked by hand; and recipes by role on several families."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import nn

import torchinit
from torchinit.model.blocks import find_stacks


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def built(family: str, cls: str = "", **size: Any) -> nn.Module:
    with torch.device("meta"):
        if not cls:
            image: nn.Module = timm.create_model(family)
            return image
        config = transformers.CONFIG_MAPPING[family](**size)
        model: nn.Module = getattr(transformers, cls)(config)
        return model


def stacks(model: nn.Module) -> dict[str, str]:
    """The lists of blocks by name: ``blocks``, or ``blocks, from start of total``."""
    names = {id(module): name for name, module in model.named_modules()}
    texts = {}
    for key, stack in find_stacks(model).items():
        where = f" from {stack.start} of {stack.total}" if stack.total else ""
        texts[names[key]] = f"{len(stack.blocks)}{where}"
    return texts


def staged(name: str, *sizes: int, first: int = 0) -> dict[str, str]:
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    return {
        name.format(n + first): f"{size} from {start} of {sum(sizes)}"
        for n, (size, start) in enumerate(zip(sizes, starts, strict=True))
    }


BY_HAND: list[tuple[tuple[str, str, dict[str, Any]], dict[str, str]]] = [
    (("gpt2", "GPT2LMHeadModel", {"n_layer": 3}), {"transformer.h": "3"}),
    (("jamba", "JambaForCausalLM", {"num_hidden_layers": 8}), {"model.layers": "8"}),
    (("zamba2", "Zamba2ForCausalLM", {}), {"model.layers": "54"}),
    (("qwen3_next", "Qwen3NextForCausalLM", {"num_hidden_layers": 4}), {"model.layers": "4"}),
    (("nemotron_h", "NemotronHForCausalLM", {}), {"model.layers": "4"}),
    (("mixtral", "MixtralForCausalLM", {"num_hidden_layers": 2}), {"model.layers": "2"}),
    (("longcat_flash", "LongcatFlashForCausalLM", {"num_layers": 2}), {"model.layers": "2"}),
    (("mamba2", "Mamba2ForCausalLM", {"num_hidden_layers": 2}), {"backbone.layers": "2"}),
    (("rwkv", "RwkvForCausalLM", {"num_hidden_layers": 2}), {"rwkv.blocks": "2"}),
    (
        ("t5", "T5ForConditionalGeneration", {"num_layers": 2, "num_decoder_layers": 3}),
        {"encoder.block": "2", "decoder.block": "3"},
    ),
    (
        ("switch_transformers", "SwitchTransformersForConditionalGeneration", {}),  # its experts are listed
        {"encoder.block": "12", "decoder.block": "12"},
    ),
    (
        ("whisper", "WhisperForConditionalGeneration", {"encoder_layers": 4, "decoder_layers": 2}),
        {"model.encoder.layers": "4", "model.decoder.layers": "2"},
    ),
    (
        ("bart", "BartForConditionalGeneration", {"encoder_layers": 3, "decoder_layers": 2}),
        {"model.encoder.layers": "3", "model.decoder.layers": "2"},
    ),
    (("clip", "CLIPModel", {}), {"text_model.encoder.layers": "12", "vision_model.encoder.layers": "12"}),
    (("swin", "SwinForImageClassification", {}), staged("swin.encoder.layers.{}.blocks", 2, 2, 6, 2)),
    (("convnext", "ConvNextForImageClassification", {}), staged("convnext.encoder.stages.{}.layers", 3, 3, 9, 3)),
    (("resnet", "ResNetForImageClassification", {}), staged("resnet.encoder.stages.{}.layers", 3, 4, 6, 3)),
    (("segformer", "SegformerForImageClassification", {}), staged("segformer.stages.{}.blocks", 2, 2, 2, 2)),
    (("hiera", "HieraModel", {}), staged("encoder.stages.{}.layers", 2, 3, 16, 3)),
    (("funnel", "FunnelModel", {}), {**staged("encoder.blocks.{}", 4, 4, 4), "decoder.layers": "2"}),
    (("albert", "AlbertModel", {}), {"encoder.albert_layer_groups.0.albert_layers": "1"}),
    (("wav2vec2", "Wav2Vec2ForCTC", {}), {"wav2vec2.encoder.layers": "12"}),
    (("resnet18", "", {}), staged("layer{}", 2, 2, 2, 2, first=1)),
    (("swin_tiny_patch4_window7_224", "", {}), staged("layers.{}.blocks", 2, 2, 6, 2)),
    (("convnext_tiny", "", {}), staged("stages.{}.blocks", 3, 3, 9, 3)),
    (("efficientnet_b0", "", {}), staged("blocks.{}", 1, 2, 2, 3, 3, 4, 1)),
    (("regnety_002", "", {}), staged("s{}", 1, 1, 4, 7, first=1)),
    (("densenet121", "", {}), staged("features.denseblock{}", 6, 12, 24, 16, first=1)),
    (("nfnet_f0", "", {}), staged("stages.{}", 1, 2, 6, 3)),  # no norms
    (("vit_tiny_patch16_224", "", {}), {"blocks": "12"}),
    (("mixer_s32_224", "", {}), {"blocks": "8"}),
]
"""Read from the code of the models."""


@pytest.mark.parametrize(("model", "expected"), BY_HAND, ids=[model[0] for model, _ in BY_HAND])
def test_lists_of_blocks(model: tuple[str, str, dict[str, Any]], expected: dict[str, str]) -> None:
    family, cls, size = model
    assert stacks(built(family, cls, **size)) == expected


def test_facts_of_sites() -> None:
    sites = {site.name: site for site in torchinit.sites(built("swin", "SwinForImageClassification"))}
    inside = sites["swin.encoder.layers.2.blocks.1.mlp.fc1.weight"]
    assert (inside.block, inside.tower) == ((1, 6), (5, 12))
    for name in ("swin.encoder.layers.0.downsample.reduction.weight", "classifier.weight"):
        assert sites[name].block is None
    jamba = torchinit.sites(built("jamba", "JambaForCausalLM", num_hidden_layers=8))
    places = {site.block for site in jamba if site.name.startswith("model.layers.5.")}
    assert places == {(5, 8)}
    assert {site.block for site in jamba if "layers" not in site.name} == {None}


RECIPE = [
    {"type": "Normal", "std": 0.02, "role": ["attn.*", "mlp.*", "expert.*", "ssm.in", "ssm.out", "moe.router"]},
    {
        "type": "Normal",
        "std": "0.02 / sqrt(2 * depth)",
        "role": ["attn.out", "mlp.out", "mlp.down", "expert.down", "ssm.out"],
    },
    {"type": "Neutral", "role": "norm.*"},
]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            ("gpt2", "GPT2LMHeadModel", {"n_layer": 8}),
            {"transformer.h.5.attn.c_attn.weight": 0.02, "transformer.h.5.mlp.c_proj.weight": 0.005},
        ),
        (
            ("jamba", "JambaForCausalLM", {"num_hidden_layers": 8}),
            {
                "model.layers.0.mamba.in_proj.weight": 0.02,
                "model.layers.0.mamba.out_proj.weight": 0.005,
                "model.layers.1.feed_forward.experts.down_proj": 0.005,
                "model.layers.4.self_attn.o_proj.weight": 0.005,
            },
        ),
        (
            ("t5", "T5ForConditionalGeneration", {"num_layers": 2, "num_decoder_layers": 8}),
            {
                "encoder.block.1.layer.1.DenseReluDense.wo.weight": 0.01,
                "decoder.block.1.layer.1.EncDecAttention.o.weight": 0.005,
                "decoder.block.1.layer.1.EncDecAttention.q.weight": 0.02,
            },
        ),
        (("beit_base_patch16_224", "", {}), {"blocks.3.attn.proj.weight": 0.02 / math.sqrt(24)}),
    ],
    ids=["gpt2", "jamba", "t5", "beit"],
)
def test_a_recipe_by_roles(model: tuple[str, str, dict[str, Any]], expected: dict[str, float]) -> None:
    family, cls, size = model
    plan = torchinit.plan(built(family, cls, **size), RECIPE)
    found = {name: plan[name].fill.std for name in expected}  # type: ignore[attr-defined]  # all are Normal
    assert found == pytest.approx(expected, rel=1e-12)
