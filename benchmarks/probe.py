"""The probe on nets with known starts and on libraries' models: `-m benchmarks.probe [--write] [--unseen] [NAME ...]`.

``--write`` puts the tables into docs/guides/probe.md. Needs transformers and timm: run it in the peers' environment.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import probe_unseen as unseen
from benchmarks.probe_further import further
from benchmarks.probe_nets import Net, hand_made
from torchinit.probing import Probe, probe

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "probe.md"

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


def of_libraries(configs: dict[str, dict[str, Any]] = CONFIGS, timm: dict[str, dict[str, Any]] = TIMM) -> Iterator[Net]:
    """Models as their libraries start them, all good."""
    for name, settings in configs.items():
        yield Net(f"transformers {name}", partial(of_transformers, name, settings))
    for name, settings in timm.items():
        yield Net(f"timm {name}", partial(of_timm, name, settings), batch=pixels)


def pixels() -> torch.Tensor:
    """A batch of small images."""
    return torch.randn(16, 3, 64, 64)


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


def unseen_nets() -> Iterator[Net]:
    """Nets that did not set the bounds: as they start, and spoilt."""
    yield from unseen.unseen()
    yield from further()
    yield from of_libraries(unseen.CONFIGS, unseen.TIMM)
    yield from unseen.of_others()
    lm, vit = (
        partial(of_transformers, name, unseen.CONFIGS[name])
        for name in ("Phi3ForCausalLM", "DeiTForImageClassification")
    )
    tree = partial(of_timm, "dla34", {})
    larger, zeros, spoil = unseen.larger, unseen.zeros, unseen.spoil
    yield Net("Phi3, attention times 20", lambda: spoil(lm(), larger(20, "qkv_proj")), "TI808", "model.layers")
    yield Net("Phi3, all times 30", lambda: spoil(lm(), larger(30)), "TI808 TI810")
    yield Net("Phi3, all gains 0", lambda: spoil(lm(), zeros("norm")), "TI811")
    yield Net("DeiT, one value", lambda: spoil(vit(), lambda _, p: p.fill_(0.02)), "TI812")
    yield Net("DeiT, head and last norm 0", lambda: spoil(vit(), zeros("classifier", "deit.layernorm")), "TI811")
    yield Net("timm dla34 without norms", lambda: unseen.without_norms(tree()), "TI801 TI802 TI803 TI804", "", pixels)
    yield Net("timm dla34, head N(0, 1)", lambda: spoil(tree(), larger(50, "fc")), "TI810", "", pixels)


def row(net: Net) -> tuple[str, bool, Counter[str]]:
    """The row of a net in the table, whether it is as expected, and how many predictions hold."""
    torch.manual_seed(0)
    model, start = net.make(), time.monotonic()
    result = probe(model, net.batch() if net.batch else None, limit=600)
    seconds = time.monotonic() - start
    severe = result.findings.at_least("warning")
    found = {each.code for each in severe if each.site.startswith(net.at)}
    right = bool(found & set(net.codes.split())) if net.codes else not result.findings.errors
    shown = dict.fromkeys(f"{each.code} {each.severity} {each.site}".rstrip() for each in severe[:3])
    numbers = " | ".join(numbers_of(result))
    kind = "bad" if net.codes else "good"
    cells = f"{net.name} | {kind} | {'' if right else '**missed** '}{', '.join(shown)} | {numbers}"
    outputs = result.measurement.outputs
    holds = Counter(f"forward {each.agrees}" for each in outputs) + Counter(
        f"back {each.gradient_agrees}" for each in outputs
    )
    print(f"| {cells} |  {seconds:.1f} s", flush=True)
    return f"| {cells} |", right, holds


def numbers_of(result: Probe) -> list[str]:
    """The logarithms of signal and gradient along the longest chain, and the RMS of the logits."""
    measured = result.measurement
    chain = max(measured.chains, key=lambda each: len(each.outputs), default=None)
    logits = f"{measured.objective.logits:.2g}" if measured.objective.classes else ""
    return [*((f"{chain.signal:.1f}", f"{chain.gradient:.1f}") if chain else ("", "")), logits]


def table_of(nets: list[Net]) -> str:
    """The table of some nets, and what it comes to."""
    rows = [row(net) for net in nets]
    wrong = [net.name for net, (_, right, _) in zip(nets, rows, strict=True) if not right]
    holds = sum((counts for *_, counts in rows), Counter[str]())
    head = ["| start | is | found | ln signal | ln gradient | logits |", "|---|---|---|---|---|---|"]
    good = sum(not net.codes for net in nets)
    claims = [
        f"{holds[f'{way} True']} of {holds[f'{way} True'] + holds[f'{way} False']} {way}" for way in ("forward", "back")
    ]
    missed = ", ".join(wrong) or "-"
    tail = f"{len(nets)} starts, {good} good and {len(nets) - good} bad; {len(wrong)} not as expected: {missed}."
    tail += f" Predictions that hold: {', '.join(claims)}, of {sum(holds.values()) // 2} outputs."
    print(tail)
    return "\n".join([*head, *(text for text, *_ in rows), "", tail])


def main(words: list[str]) -> None:
    """Print the tables; write them where that is asked for."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    wanted = [word for word in words if not word.startswith("--")]
    groups = {"measured": [hand_made, of_libraries, spoiled], "unseen": [unseen_nets]}
    for mark, makers in groups.items():
        if "--unseen" in words and mark != "unseen":
            continue
        nets = [net for make in makers for net in make() if not wanted or any(word in net.name for word in wanted)]
        table = table_of(nets) if nets else ""
        if "--write" in words:
            begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
            before, _, rest = PAGE.read_text("utf-8").partition(begin)
            PAGE.write_text(f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
