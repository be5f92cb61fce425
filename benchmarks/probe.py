"""The probe on networks with known starts and on libraries' models: `-m benchmarks.probe [--write] [NAME ...]`.

``--write`` puts the table into docs/guides/probe.md. Needs transformers and timm: run it in the peers' environment.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.probe_nets import Net, hand_made
from torchinit.probing import Probe, probe

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "probe.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

TEXT: dict[str, Any] = {
    "vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128,
}  # fmt: skip
GROUPED: dict[str, Any] = {**TEXT, "num_key_value_heads": 2}
IMAGES: dict[str, Any] = {**TEXT, "image_size": 32, "patch_size": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {"vocab_size": 500, "n_embd": 64, "n_layer": 6, "n_head": 4},
    "BertForMaskedLM": TEXT,
    "LlamaForCausalLM": GROUPED,
    "Qwen3ForCausalLM": {**GROUPED, "head_dim": 16},
    "MixtralForCausalLM": {**GROUPED, "num_local_experts": 4},
    "Gemma3ForCausalLM": {**GROUPED, "head_dim": 16},
    "T5ForConditionalGeneration": {
        "vocab_size": 500, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 4, "num_heads": 4,
    },
    "WhisperForConditionalGeneration": {
        "vocab_size": 500, "d_model": 64, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_source_positions": 50,
        "num_mel_bins": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    },
    "ViTForImageClassification": IMAGES,
    "Dinov2Model": IMAGES,
    "CLIPModel": {"text_config": TEXT, "vision_config": IMAGES},
    "Wav2Vec2ForCTC": {
        **TEXT, "vocab_size": 32, "conv_dim": (32,) * 7, "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    },
    "DebertaV2ForMaskedLM": {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "OPTForCausalLM": {
        "vocab_size": 500, "hidden_size": 64, "word_embed_proj_dim": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "ffn_dim": 128,
    },
    "BloomForCausalLM": {"vocab_size": 500, "hidden_size": 64, "n_layer": 4, "n_head": 4},
    "MambaForCausalLM": {"vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 4, "state_size": 8},
    "SwinForImageClassification": {
        "image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8],
        "window_size": 2,
    },
    "ConvNextForImageClassification": {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 2, 1], "image_size": 64},
}  # fmt: skip
TIMM: dict[str, dict[str, Any]] = {
    "resnet18": {}, "nf_resnet26": {}, "convnext_atto": {}, "mobilenetv3_small_050": {}, "regnetx_002": {},
    "densenet121": {}, "vit_tiny_patch16_224": {"img_size": 64}, "xcit_nano_12_p16_224": {"img_size": 64},
    "cait_xxs24_224": {"img_size": 64}, "ghostnet_050": {},
}  # fmt: skip


def of_transformers(name: str, settings: dict[str, Any]) -> torch.nn.Module:
    """A model of transformers, small, as it starts."""
    import transformers

    cls = getattr(transformers, name)
    model: torch.nn.Module = cls(cls.config_class(**settings))
    return model


def of_timm(name: str, settings: dict[str, Any]) -> torch.nn.Module:
    """A model of timm, as it starts."""
    import timm

    model: torch.nn.Module = timm.create_model(name, **settings)
    return model


def from_libraries() -> Iterator[Net]:
    """Models as their libraries start them, all good."""
    for name, settings in CONFIGS.items():
        yield Net(f"transformers {name}", partial(of_transformers, name, settings))
    for name, settings in TIMM.items():
        yield Net(f"timm {name}", partial(of_timm, name, settings))


def loud(name: str, std: float) -> torch.nn.Module:
    """A model of transformers whose matrices are drawn anew with a std that is too large."""
    model = of_transformers(name, CONFIGS[name])
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std)
    return model


def spoiled() -> Iterator[Net]:
    """Models of transformers with another std than theirs."""
    yield Net("transformers LlamaForCausalLM, N(0, 0.5)", partial(loud, "LlamaForCausalLM", 0.5), "TI808 TI810", "")
    yield Net("transformers GPT2LMHeadModel, N(0, 0.5)", partial(loud, "GPT2LMHeadModel", 0.5), "TI808 TI810", "")


def row(net: Net) -> tuple[str, bool]:
    """The row of a net in the table, and whether it is as expected."""
    torch.manual_seed(0)
    model, start = net.make(), time.monotonic()
    result = probe(model, torch.randn(16, 3, 64, 64) if net.name.startswith("timm") else None, limit=600)
    seconds = time.monotonic() - start
    severe = result.findings.at_least("warning")
    found = {each.code for each in severe if each.site.startswith(net.at)}
    right = bool(found & set(net.codes.split())) if net.codes else not result.findings.errors
    shown = dict.fromkeys(f"{each.code} {each.severity} {each.site}".rstrip() for each in severe[:3])
    numbers = " | ".join(numbers_of(result))
    kind = "bad" if net.codes else "good"
    cells = f"{net.name} | {kind} | {'' if right else '**missed** '}{', '.join(shown)} | {numbers}"
    print(f"| {cells} |  {seconds:.1f} s", flush=True)
    return f"| {cells} |", right


def numbers_of(result: Probe) -> list[str]:
    """The logarithms of signal and gradient along the longest chain, and the RMS of the logits."""
    measured = result.measurement
    chain = max(measured.chains, key=lambda each: len(each.outputs), default=None)
    logits = f"{measured.objective.logits:.2g}" if measured.objective.classes else ""
    return [*((f"{chain.signal:.1f}", f"{chain.gradient:.1f}") if chain else ("", "")), logits]


def main(words: list[str]) -> int:
    """Print the table; write it where that is asked for. Return the number of nets that are not as expected."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    makers: list[Callable[[], Iterator[Net]]] = [hand_made, from_libraries, spoiled]
    wanted = [word for word in words if not word.startswith("--")]
    nets = [net for make in makers for net in make() if not wanted or any(word in net.name for word in wanted)]
    rows = [row(net) for net in nets]
    wrong = sum(not right for _, right in rows)
    head = ["| start | is | found | ln signal | ln gradient | logits |", "|---|---|---|---|---|---|"]
    good = sum(not net.codes for net in nets)
    tail = f"\n{len(nets)} starts, {good} good and {len(nets) - good} bad; {wrong} not as expected."
    table = "\n".join([*head, *(text for text, _ in rows), tail])
    print(tail)
    if "--write" in words:
        before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", "utf-8")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
