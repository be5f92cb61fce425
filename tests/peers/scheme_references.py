"""What each scheme is measured against: a model as its library starts it, or a paper's formulas written by hand.

    .venv-peers/bin/python -m tests.peers.scheme_references

writes the table of docs/reference/schemes.md anew.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import transformers
from torch import Tensor, nn
from torch.nn import init

import torchinit
from tests.peers.families import small
from tests.peers.foreign import DECODER, MODELS
from torchinit.initializers import Constant, Padded
from torchinit.model.names import glob_matches

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "schemes.md"

Make = Callable[[], nn.Module]
Start = Callable[[Tensor], object]


@dataclass(frozen=True)
class Case:
    """A scheme on a model that starts as its reference says; ``other`` names what the reference does not say."""

    scheme: str
    reference: str
    make: Make
    arguments: Mapping[str, Any] = field(default_factory=dict)
    other: Sequence[str] = ()

    def __str__(self) -> str:
        return f"{self.scheme}({', '.join(f'{key}={value}' for key, value in self.arguments.items())})"


def by_hand(make: Make, starts: Mapping[str, Start]) -> Make:
    """A model in which each parameter is started by the last glob of names that it fits."""

    def started() -> nn.Module:
        model = make()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                fitting = [start for glob, start in starts.items() if glob_matches(glob, name)]
                if fitting and not parameter.is_meta:
                    fitting[-1](parameter)
        return model

    return started


def normal(std: float) -> Start:
    return partial(init.normal_, std=std)


def cut(std: float, sigmas: float) -> Start:
    return partial(init.trunc_normal_, std=std, a=-sigmas * std, b=sigmas * std)


def uniform(bound: float) -> Start:
    return partial(init.uniform_, a=-bound, b=bound)


# --- models ------------------------------------------------------------------------------------------------------

WIDTH, LAYERS = 32, 2  # of the decoders of foreign.py
OUT = 0.02 / math.sqrt(2 * LAYERS)


def decoder(family: str, **settings: Any) -> nn.Module:
    """A decoder of transformers with an untied head."""
    config = getattr(transformers, f"{family}Config")(**{**DECODER, "tie_word_embeddings": False, **settings})
    model: nn.Module = getattr(transformers, f"{family}ForCausalLM")(config)
    return model


def vit(weight_init: str) -> nn.Module:
    settings = {"embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 10, "weight_init": weight_init}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", pretrained=False, **settings)
    return model


def mamba(rescale: bool) -> nn.Module:
    config = transformers.MambaConfig(
        vocab_size=64, hidden_size=64, state_size=4, num_hidden_layers=4, rescale_prenorm_residual=rescale
    )
    model: nn.Module = transformers.MambaForCausalLM(config)
    return model


class Attention(nn.Module):
    """As nanochat's, without biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("c_q", "c_k", "c_v", "c_proj"):
            setattr(self, name, nn.Linear(width, width, bias=False))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width, bias=False)
        self.c_proj = nn.Linear(4 * width, width, bias=False)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(width), MLP(width)


class NanoChat(nn.Module):
    def __init__(self, width: int = 48) -> None:
        super().__init__()
        blocks = nn.ModuleList([Block(width) for _ in range(3)])
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(64, width), "h": blocks})
        self.lm_head = nn.Linear(width, 64, bias=False)
        self.resid_lambdas, self.x0_lambdas = nn.Parameter(torch.empty(3)), nn.Parameter(torch.empty(3))


class SineLayer(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)


def siren() -> nn.Module:
    """As in the notebook of the paper: layers of sines, and a last linear one."""
    return nn.Sequential(SineLayer(2, 96), SineLayer(96, 96), SineLayer(96, 96), nn.Linear(96, 48))


class Modulated(nn.Module):
    """A block of DiT."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))


class PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(4, width, 4, 4)


class DiT(nn.Module):
    """In the shape of Peebles & Xie's."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.x_embedder = PatchEmbed(width)
        self.t_embedder = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))}
        )
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(100, width)})
        self.pos_embed = nn.Parameter(torch.zeros(1, 16, width), requires_grad=False)
        self.blocks = nn.ModuleList([Modulated(width) for _ in range(2)])
        final = {
            "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width)),
            "linear": nn.Linear(width, 8),
        }
        self.final_layer = nn.ModuleDict(final)


class Adapted(nn.Module):
    """A layer as peft wraps it."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.base_layer = nn.Linear(width, width).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(width, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, width, bias=False)})


class AdaptedTable(nn.Module):
    def __init__(self, rows: int, width: int, rank: int) -> None:
        super().__init__()
        self.base_layer = nn.Embedding(rows, width).requires_grad_(False)
        self.lora_embedding_A = nn.ParameterDict({"default": torch.empty(rank, rows)})
        self.lora_embedding_B = nn.ParameterDict({"default": torch.empty(width, rank)})


def adapted() -> nn.Module:
    return nn.ModuleDict({"q_proj": Adapted(256, 8), "embed_tokens": AdaptedTable(100, 256, 8)})


def layers() -> nn.Module:
    """Layers of torch, which start themselves."""
    return nn.Sequential(
        nn.Linear(64, 64), nn.Conv2d(32, 32, 3, groups=2), nn.ConvTranspose1d(32, 16, 5), nn.Bilinear(16, 16, 24),
        nn.LSTM(32, 48, 2), nn.GRUCell(32, 40), nn.Embedding(90, 32, padding_idx=1), nn.LayerNorm(4), nn.BatchNorm2d(3),
        nn.PReLU(), nn.MultiheadAttention(64, 2, add_bias_kv=True), nn.MultiheadAttention(64, 2, kdim=32, vdim=48),
    )  # fmt: skip


# --- starts by hand ----------------------------------------------------------------------------------------------

TITAN: dict[str, Start] = {  # torchtitan, models/llama3; of block i
    "model.embed_tokens.*": normal(1.0),
    "**.*_proj.weight": cut(0.02, 100),
    **{
        f"model.layers.{i}.**.{leaf}.weight": cut(0.02 / math.sqrt(2 * (i + 1)), 2 / 0.02)
        for i in range(LAYERS)
        for leaf in ("o_proj", "up_proj", "down_proj")
    },
    "**.*norm.weight": init.ones_,
    "lm_head.weight": cut(WIDTH**-0.5, 3),
}

OLMO: dict[str, dict[str, Start]] = {  # OLMo-core, nn/transformer/init.py
    "normal": {"**.weight": cut(0.02, 3), "**.*norm.weight": init.ones_},
    "llama": {
        "**.weight": cut(0.02, 3),
        "model.embed_tokens.*": normal(1.0),
        "lm_head.*": cut(WIDTH**-0.5, 3),
        **{f"**.{leaf}.weight": cut(OUT, 3) for leaf in ("o_proj", "up_proj", "down_proj")},
        "**.*norm.weight": init.ones_,
    },
    "llama_depth": {
        "**.weight": cut(0.02, 3),
        "model.embed_tokens.*": normal(1.0),
        "lm_head.*": cut(WIDTH**-0.5, 3),
        **{
            f"model.layers.{i}.**.{leaf}.weight": cut(0.02 / (2 * (i + 1)) ** 0.5, 3)
            for i in range(LAYERS)
            for leaf in ("o_proj", "up_proj", "down_proj")
        },
        "**.*norm.weight": init.ones_,
    },
}

MEGATRON: dict[str, Start] = {
    "**.weight": normal(0.02),
    **{f"**.{leaf}.weight": normal(OUT) for leaf in ("o_proj", "down_proj")},
    "**.*norm.weight": init.ones_,
}


def xavier(gain: float) -> Start:
    return partial(init.xavier_normal_, gain=gain)


def deepnorm(beta: float, where: str = "") -> dict[str, Start]:
    """Figure 2 of the paper; BERT's and BART's names."""
    leaves = ("value", "output.dense", "intermediate.dense", "v_proj", "out_proj", "fc1", "fc2")
    others = ("query", "key", "q_proj", "k_proj")
    return {
        **{f"{where}**.{leaf}.weight": xavier(1.0) for leaf in others},
        **{f"{where}**.{leaf}.weight": xavier(beta) for leaf in leaves},
    }


TABLES: dict[str, Start] = {"**.*embeddings.weight": normal(WIDTH**-0.5), "shared.weight": normal(WIDTH**-0.5)}
PLAIN: dict[str, Start] = {"**": init.zeros_, "**.*[Nn]orm*.weight": init.ones_}
NORMS: dict[str, Start] = {
    f"**.{name}.weight": init.ones_ for name in ("LayerNorm", "*layer_norm", "layernorm_embedding")
}


def with_xavier(gain: float) -> Start:
    return partial(init.xavier_uniform_, gain=gain)


def t_fixup(encoder: int, decoder: int) -> dict[str, Start]:
    """Section 4 of the paper, and the gain of fairseq's q, k and v."""
    inner, outer = 0.67 * encoder**-0.25, (9 * decoder) ** -0.25
    leaves = ("v_proj", "out_proj", "fc1", "fc2")
    return {
        "**": init.zeros_,
        **NORMS,
        "shared.weight": normal(outer * WIDTH**-0.5),
        **{f"**.{leaf}.weight": with_xavier(0.5**0.5) for leaf in ("q_proj", "k_proj")},
        **{f"encoder.**.{leaf}.weight": with_xavier(inner) for leaf in leaves},
        **{f"decoder.**.{leaf}.weight": with_xavier(outer) for leaf in leaves},
    }


def he(factor: float) -> Start:
    """sqrt(2 / (outputs x kernel)) times a factor, as hongyi-zhang/Fixup has it."""
    return lambda w: init.normal_(w, std=factor * math.sqrt(2 / (w.shape[0] * math.prod(w.shape[2:]))))


FIXUP: dict[str, Start] = {
    "**": init.zeros_,
    "**.bn*.weight": init.ones_,
    "**.downsample.1.weight": init.ones_,
    "conv1.weight": he(1.0),
    "**.downsample.0.weight": he(1.0),
    "layer*.*.conv1.weight": he(8**-0.5),
    "layer*.*.conv2.weight": init.zeros_,
}

SIREN: dict[str, Start] = {
    "**.weight": lambda w: init.uniform_(w, -math.sqrt(6 / w.shape[1]) / 30, math.sqrt(6 / w.shape[1]) / 30),
    "0.linear.weight": uniform(1 / 2),
}


def keras_lstm() -> nn.Module:
    model = nn.LSTM(24, 48, num_layers=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("weight_ih"):
                parameter.copy_(init.uniform_(parameter, -1, 1) * math.sqrt(6 / sum(parameter.shape)))
            elif name.startswith("weight_hh"):
                init.orthogonal_(parameter)
            else:
                parameter.zero_()
                if name.startswith("bias_ih"):
                    parameter[48:96] = 1  # torch's order is i, f, g, o
    return model


def nanochat(spectral: bool) -> dict[str, Start]:
    def ways_in(w: Tensor) -> Tensor:
        if spectral:
            return init.normal_(w, std=min(1.0, math.sqrt(w.shape[0] / w.shape[1])) / math.sqrt(w.shape[1]))
        return init.uniform_(w, -math.sqrt(3 / w.shape[1]), math.sqrt(3 / w.shape[1]))

    return {
        "transformer.wte.weight": normal(1.0),
        "lm_head.weight": init.zeros_ if spectral else normal(0.001),
        "transformer.h.**": ways_in,
        "**.c_proj.weight": init.zeros_,
        "resid_lambdas": init.ones_,
        "x0_lambdas": partial(init.constant_, val=0.1),
    }


DIT: dict[str, Start] = {
    "**.weight": init.xavier_uniform_,
    "**.bias": init.zeros_,
    "x_embedder.proj.weight": uniform(math.sqrt(6 / (32 + 4 * 4 * 4))),
    "y_embedder.**": normal(0.02),
    "t_embedder.**.weight": normal(0.02),
    "**.adaLN_modulation.**": init.zeros_,
    "final_layer.linear.*": init.zeros_,
    "pos_embed": init.zeros_,
}


def lora(gaussian: bool) -> dict[str, Start]:
    return {
        "**": init.zeros_,
        "**.lora_A.**": normal(1 / 8) if gaussian else partial(init.kaiming_uniform_, a=math.sqrt(5)),
        "**.lora_embedding_B.*": init.normal_,
    }


TORCH, HF, TIMM, HAND = "torch", "transformers", "timm", "by hand"
llama, bert, bart = partial(decoder, "Llama"), MODELS["bert"], partial(small, "bart")

CASES: list[Case] = [
    Case("torch", TORCH, layers),
    Case("bert", HF, bert),
    Case("gpt2", HF, MODELS["gpt2"]),
    Case("llama", HF, MODELS["llama"]),
    Case("qwen", HF, partial(decoder, "Qwen2")),
    Case("qwen", HF, MODELS["qwen3"]),
    Case("gemma", HF, partial(small, "gemma2")),
    Case("mixture", HF, MODELS["mixtral"]),
    Case("t5", HF, MODELS["t5"], {"d_kv": 8}),
    Case("vit", TIMM, partial(vit, "")),
    Case("vit", TIMM, partial(vit, "jax"), {"variant": "jax"}),
    Case("vit", TIMM, partial(vit, "jax_nlhb"), {"variant": "jax", "head_bias": -math.log(10)}),
    Case("vit", TIMM, partial(vit, "moco"), {"variant": "moco"}),
    Case("vit", HF, MODELS["vit"], {"variant": "transformers"}),
    Case("swin", TIMM, MODELS["timm/swin_tiny_patch4_window7_224"]),
    Case("swin", HF, MODELS["swin"], {"variant": "transformers"}),
    Case("convnext", TIMM, MODELS["timm/convnext_atto"]),
    Case("convnext", HF, MODELS["convnext"]),
    Case("resnet", TIMM, MODELS["timm/resnet18"], {"zero_gamma": "basic"}, ["fc.*"]),
    Case("mamba", HF, partial(mamba, rescale=False)),
    Case("mamba", HF, partial(mamba, rescale=True), {"rescale": True}),
    Case("mamba2", HF, MODELS["mamba2"]),
    Case("megatron", HAND, by_hand(llama, MEGATRON)),
    Case("llama_depth", HAND, by_hand(llama, TITAN)),
    *(Case("olmo", HAND, by_hand(llama, starts), {"method": method}) for method, starts in OLMO.items()),
    Case("deepnorm", HAND, by_hand(bert, {**PLAIN, **NORMS, **TABLES, **deepnorm((8 * 2) ** -0.25)}), {}, ["cls.**"]),
    Case(
        "deepnorm",
        HAND,
        by_hand(
            bart,
            {
                "**": init.zeros_,
                **NORMS,
                **TABLES,
                "**.embed_positions.weight": normal(WIDTH**-0.5),
                **deepnorm(0.87 * (2**4 * 2) ** -0.0625, "encoder."),
                **deepnorm((12 * 2) ** -0.25, "decoder."),
            },
        ),
        {"architecture": "encoder-decoder"},
    ),
    Case("t_fixup", HAND, by_hand(bart, t_fixup(2, 2)), {"decoder_layers": 2}, ["**.embed_positions.*"]),
    Case("fixup", HAND, by_hand(MODELS["timm/resnet18"], FIXUP)),
    Case("siren", HAND, by_hand(siren, SIREN)),
    Case("lstm", HAND, keras_lstm),
    Case("nanochat", HAND, by_hand(NanoChat, nanochat(spectral=False))),
    Case("nanochat", HAND, by_hand(NanoChat, nanochat(spectral=True)), {"variant": "spectral"}),
    Case("dit", HAND, by_hand(DiT, DIT)),
    Case("lora", HAND, by_hand(adapted, lora(gaussian=False))),
    Case("lora", HAND, by_hand(adapted, lora(gaussian=True)), {"variant": "gaussian"}),
]


# --- the measurement -----------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """The parameters of one role and one planned standard deviation, all of a case together."""

    role: str
    planned: float
    reference: float
    written: float
    numel: int
    tolerance: float

    @property
    def is_ok(self) -> bool:
        """Whether the reference, and what was written, are within three standard errors of the plan."""
        return max(abs(self.reference - self.planned), abs(self.written - self.planned)) <= self.tolerance


def measure(case: Case, seed: int = 0) -> Iterator[Row]:
    """The rows of a case; raises AssertionError where constants differ, or the reference starts what nobody plans."""
    torch.manual_seed(seed)
    started = case.make()
    torch.manual_seed(seed)
    with torch.device("meta"):
        sketch = case.make()
    plan = torchinit.plan(sketch, case.scheme, arguments=case.arguments, strict=True)
    filled = case.make()
    torchinit.initialize(filled, case.scheme, seed=seed, arguments=case.arguments).assert_ok()
    left, right = (dict(model.named_parameters(remove_duplicate=False)) for model in (started, filled))
    roles = torchinit.roles(sketch)
    groups: dict[tuple[str, float], list[tuple[Tensor, Tensor, float]]] = defaultdict(list)
    for step in plan:
        name, fill = step.site.name, step.fill
        if any(glob_matches(glob, name) for glob in case.other):
            continue
        expected = fill.moments(step.site.shape)
        assert expected is not None, name
        assert expected.mean is not None and expected.std is not None, name
        if expected.std == 0 or isinstance(fill, Padded):
            assert isinstance(fill, (Constant, Padded)), name
        if not expected.std:
            assert torch.equal(left[name], right[name]), (
                f"{name}: {fill}, but the reference has {left[name].flatten()[:3]}"
            )
            continue
        kurtosis = 3.0 if expected.kurtosis is None else expected.kurtosis
        mean = expected.mean
        groups[roles[name].name, float(f"{expected.std:.4g}")].append((left[name] - mean, right[name] - mean, kurtosis))
    planned = {view.name for step in plan for view in step.site.views}
    frozen = {name for name, parameter in sketch.named_parameters() if not parameter.requires_grad}
    uncovered = left.keys() - planned - frozen
    assert all(any(glob_matches(glob, name) for glob in case.other) for name in uncovered), sorted(uncovered)
    for (role, std), tensors in groups.items():
        numel = sum(values.numel() for values, _, _ in tensors)
        kurtosis = max(kurtosis for _, _, kurtosis in tensors)
        reference = math.sqrt(sum(float((theirs.detach().double() ** 2).sum()) for theirs, _, _ in tensors) / numel)
        written = math.sqrt(sum(float((ours.detach().double() ** 2).sum()) for _, ours, _ in tensors) / numel)
        # A twentieth of a percent for what the planned value was rounded to.
        tolerance = 3 * std * math.sqrt((kurtosis - 1) / (4 * numel)) + 5e-4 * std
        yield Row(role, std, reference, written, numel, tolerance)


def table() -> str:
    """The table of all cases, as the page has it."""
    lines = ["| scheme | against | role | planned | reference | written | values |", "|---|---|---|---|---|---|---|"]
    for case in CASES:
        for row in sorted(measure(case)):
            values = f"{row.planned:.4g} | {row.reference:.4g} | {row.written:.4g} | {row.numel:,}"
            lines.append(f"| `{case}` | {case.reference} | `{row.role}` | {values} |".replace("()`", "`"))
    return "\n".join(lines)


if __name__ == "__main__":
    before, _, rest = PAGE.read_text("utf-8").partition("<!-- table -->\n")
    PAGE.write_text(f"{before}<!-- table -->\n{table()}\n<!-- end -->{rest.partition('<!-- end -->')[2]}", "utf-8")
