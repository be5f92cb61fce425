"""Models from models of transformers: the same function where it is promised, and where it cannot be, a reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from tests.peers.test_checkpoints import CONFIG, MINILM, SENTENCES
from torchinit import CheckpointError, Name, Pretrained, Rule, initialize, load_recipe, materialize, plan, preserves
from torchinit.checkpoints.adapters import HyperClone, Net2Wider

VOCABULARY = 97
BATCH = {"input_ids": torch.arange(5, 32).view(3, 9)}


def made(
    config: type[Any], model: type[Any], names: Mapping[str, str], *, as_wide: str = "", **fixed: Any
) -> Callable[..., Any]:
    """A factory of tiny models by the factor of their width, their number of layers, and that of their inner width.

    ``as_wide`` is a setting that is the width once more.
    """

    def make(width: int = 1, layers: int = 2, inner: float = 1) -> Any:
        sizes = {"hidden": 32 * width, "inner": int(64 * width * inner), "heads": 4 * width, "layers": layers}
        grouped = {"num_key_value_heads": 2 * width} if fixed.get("num_key_value_heads") else {}
        grouped |= {as_wide: 32 * width} if as_wide else {}
        settings = {names.get(name, _USUAL[name]): size for name, size in sizes.items()}
        return model(config(**{"vocab_size": VOCABULARY, **fixed, **settings, **grouped})).eval()

    return make


_USUAL = {
    "hidden": "hidden_size", "inner": "intermediate_size", "heads": "num_attention_heads",
    "layers": "num_hidden_layers",
}  # fmt: skip
GPT2 = {"hidden": "n_embd", "inner": "n_inner", "heads": "n_head", "layers": "n_layer"}
GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
IDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

FAMILIES: dict[str, Callable[..., Any]] = {
    "gpt2": made(hf.GPT2Config, hf.GPT2LMHeadModel, GPT2, n_positions=32, **IDS),
    "llama": made(hf.LlamaConfig, hf.LlamaForCausalLM, {}, **GROUPED, **IDS),
    "mixtral": made(hf.MixtralConfig, hf.MixtralForCausalLM, {}, num_local_experts=4, **GROUPED, **IDS),
    "qwen3, tied": made(hf.Qwen3Config, hf.Qwen3ForCausalLM, {}, tie_word_embeddings=True, **GROUPED, **IDS),
    "phi3": made(hf.Phi3Config, hf.Phi3ForCausalLM, {}, num_key_value_heads=2, **IDS),
    "opt": made(
        hf.OPTConfig,
        hf.OPTForCausalLM,
        {"inner": "ffn_dim"},
        as_wide="word_embed_proj_dim",
        max_position_embeddings=32,
        **IDS,
    ),
    "gpt-oss": made(
        hf.GptOssConfig, hf.GptOssForCausalLM, {}, num_local_experts=4, num_experts_per_tok=2, **GROUPED, **IDS
    ),
    "qwen2 moe": made(
        hf.Qwen2MoeConfig,
        hf.Qwen2MoeForCausalLM,
        {},
        num_experts=4,
        num_experts_per_tok=2,
        num_key_value_heads=2,
        **IDS,
    ),
    "olmo2": made(hf.Olmo2Config, hf.Olmo2ForCausalLM, {}, num_key_value_heads=2, **IDS),
    "bert": made(hf.BertConfig, hf.BertForMaskedLM, {}),
}


def trained(model: nn.Module) -> nn.Module:
    """A model whose every tensor has values of its own, norms too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(drawn if parameter.dim() > 1 else parameter + drawn)
    return model


def grown(family: str, how: dict[str, Any], **sizes: Any) -> tuple[nn.Module, nn.Module, Any]:
    make = FAMILIES[family]
    old, new = trained(make()), make(**sizes)
    return old, new, initialize(new, Rule(Name("**"), Pretrained(old, **how)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("how", "sizes"),
    [
        ({"adapt": {"**": HyperClone()}}, {"width": 2}),
        ({"adapt": {"**": HyperClone(snr=10.0)}}, {"width": 3}),
        ({"adapt": {"**": Net2Wider(seed=1)}}, {"inner": 1.5}),
    ],
    ids=["hyperclone", "hyperclone with noise", "net2wider"],
)
def test_a_wider_model_computes_the_same(family: str, how: dict[str, Any], sizes: dict[str, Any]) -> None:
    old, new, report = grown(family, how, **sizes)
    assert report.loads[0].promise == "function"
    proof = preserves(old, new, BATCH, atol=1e-5)
    assert proof, str(proof)


@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"bert"}))
def test_a_deeper_model_computes_the_same(family: str) -> None:
    old, new, report = grown(family, {"layers": "identity"}, layers=5)
    assert report.loads[0].promise == "function"
    assert preserves(old, new, BATCH, atol=1e-5)


GROWTH: dict[str, dict[str, int]] = {
    "width and more heads": {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4},
    "width alone": {"hidden_size": 64},
    "more heads": {"num_attention_heads": 8, "num_key_value_heads": 4},
    "larger heads": {"head_dim": 16},
    "fewer and larger heads": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
    "more queries for each key": {"num_attention_heads": 8},
    "more keys": {"num_key_value_heads": 4},
    "inner width": {"intermediate_size": 96},
    "blocks": {"num_hidden_layers": 4},
}
GROUPED_FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, {}),
    "llama, tied": (hf.LlamaConfig, hf.LlamaForCausalLM, {"tie_word_embeddings": True}),
    "mixtral": (hf.MixtralConfig, hf.MixtralForCausalLM, {"num_local_experts": 4}),
    "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM, {}),
    "granite": (hf.GraniteConfig, hf.GraniteForCausalLM, {}),
    "olmo, norms without weights": (hf.OlmoConfig, hf.OlmoForCausalLM, {}),
    "olmo2, norms behind": (hf.Olmo2Config, hf.Olmo2ForCausalLM, {}),
    "gemma": (hf.GemmaConfig, hf.GemmaForCausalLM, {}),
}


@pytest.mark.parametrize("family", GROUPED_FAMILIES)
@pytest.mark.parametrize("growth", GROWTH)
def test_every_promise_is_true(family: str, growth: str) -> None:
    """Whatever grows: where the same function is promised it is, and where it is, it is promised, or refused."""
    config, model, more = GROUPED_FAMILIES[family]
    start = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
             "vocab_size": VOCABULARY, **GROUPED, **IDS, **more}  # fmt: skip
    old, new = (model(config(**{**start, **sizes})).eval() for sizes in ({}, GROWTH[growth]))
    how: dict[str, Any] = {"layers": "identity"} if growth == "blocks" else {"adapt": {"**": Net2Wider()}}
    rule = Rule(Name("**"), Pretrained(trained(old), **how))
    if family == "gemma" and growth.startswith("width"):
        with pytest.raises(CheckpointError, match="grows with the width"):
            plan(new, rule)
        return
    report = initialize(new, rule)
    assert (report.loads[0].promise == "function") == bool(preserves(old, new, BATCH, atol=1e-5))


@pytest.mark.parametrize(
    ("config", "model", "sizes", "more"),
    [
        (hf.GPT2Config, hf.GPT2LMHeadModel, {"n_embd": 32, "n_head": 4}, {"n_layer": 1, **IDS}),
        (hf.MptConfig, hf.MptForCausalLM, {"d_model": 32, "n_heads": 4}, {"n_layers": 1, "max_seq_len": 64}),
        (hf.BertConfig, hf.BertForMaskedLM, {"hidden_size": 32, "num_attention_heads": 4}, {"num_hidden_layers": 1}),
    ],
)
@pytest.mark.parametrize("factors", [(2, 2), (2, 1), (1, 2)])
def test_heads_that_no_shape_tells(
    config: Any, model: Any, sizes: dict[str, int], more: dict[str, Any], factors: tuple[int, int]
) -> None:
    larger = {key: size * factor for (key, size), factor in zip(sizes.items(), factors, strict=True)}
    old, new = (model(config(vocab_size=VOCABULARY, **more, **each)).eval() for each in (sizes, larger))
    report = initialize(new, Rule(Name("**"), Pretrained(trained(old), adapt={"**": HyperClone()})))
    assert (report.loads[0].promise == "function") == bool(preserves(old, new, BATCH, atol=1e-5))


def test_deberta_s_norms_come_after_its_sums() -> None:
    """Its block must be given a mask."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": VOCABULARY}
    old, new = (hf.DebertaV2Model(hf.DebertaV2Config(num_hidden_layers=depth, **small)) for depth in (1, 2))
    with pytest.raises(CheckpointError, match=r"encoder\.layer\.1\.\* cannot pass on what comes: .*post-norm"):
        plan(new, Rule(Name("**"), Pretrained(old, layers="identity")))


@pytest.mark.parametrize("layers", ["stack", "interleave"])
def test_stacks_promise_nothing_and_keep_nothing(layers: str) -> None:
    old, new, report = grown("llama", {"layers": layers}, layers=4)
    assert report.loads[0].promise == "none"
    assert not preserves(old, new, BATCH)


@pytest.mark.parametrize(
    ("config", "model", "text"),
    [
        (hf.BertConfig, hf.BertModel, r"encoder\.layer\.1\.\* cannot pass on what comes: .*post-norm"),
        (hf.DistilBertConfig, hf.DistilBertModel, r"transformer\.layer\.1\.\* cannot .*post-norm"),
        (hf.BartConfig, hf.BartModel, r"encoder\.layers\.1\.\* cannot .*post-norm"),
    ],
)
def test_post_norm_cannot_start_as_identity(config: Any, model: Any, text: str) -> None:
    names = {
        hf.BertConfig: ("num_hidden_layers",), hf.DistilBertConfig: ("n_layers",),
        hf.BartConfig: ("encoder_layers", "decoder_layers"),
    }[config]  # fmt: skip
    small = {
        hf.BertConfig: {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4},
        hf.DistilBertConfig: {"dim": 32, "hidden_dim": 64, "n_heads": 4},
        hf.BartConfig: {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 4,
                        "decoder_attention_heads": 4},
    }[config]  # fmt: skip
    old, new = (model(config(vocab_size=VOCABULARY, **small, **dict.fromkeys(names, depth))) for depth in (1, 2))
    with pytest.raises(CheckpointError, match=text):
        plan(new, Rule(Name("**"), Pretrained(old, layers="identity")))


def test_mbart_has_bart_s_names_and_norms_before_its_layers() -> None:
    small = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 4,
             "decoder_attention_heads": 4, "vocab_size": VOCABULARY, "max_position_embeddings": 32}  # fmt: skip
    old, new = (
        hf.MBartModel(hf.MBartConfig(encoder_layers=depth, decoder_layers=depth, **small, **IDS)).eval()
        for depth in (1, 2)
    )
    initialize(new, Rule(Name("**"), Pretrained(trained(old), layers="identity")))
    assert preserves(old, new, BATCH)


def test_factors_that_grow_with_the_width_are_refused() -> None:
    gemma = made(hf.Gemma2Config, hf.Gemma2ForCausalLM, {}, **GROUPED, **IDS)
    with pytest.raises(
        CheckpointError, match=r"ScaledWordEmbedding may multiply by a number that grows with the width"
    ):
        plan(gemma(2), Rule(Name("**"), Pretrained(gemma(), adapt={"**": HyperClone()})))
    t5 = made(
        hf.T5Config,
        hf.T5ForConditionalGeneration,
        {"hidden": "d_model", "inner": "d_ff", "heads": "num_heads", "layers": "num_layers"},
        d_kv=8,
        decoder_start_token_id=0,
    )
    with pytest.raises(CheckpointError, match=r"shares the table of an embedding of width 64, .*untie the two"):
        plan(t5(2), Rule(Name("**"), Pretrained(t5(), adapt={"**": HyperClone()})))


def test_fused_heads_of_neox_need_a_word() -> None:
    neox = made(hf.GPTNeoXConfig, hf.GPTNeoXForCausalLM, {}, **IDS)
    old, new = trained(neox()), neox(2)
    with pytest.raises(CheckpointError, match=r"'query_key_value' holds q, k and v, and its shape does not tell how"):
        plan(new, Rule(Name("**"), Pretrained(old, adapt={"**": HyperClone()})))
    weights, biases = HyperClone((1,), (1,)), HyperClone((), (1,))
    adapt = {"**": HyperClone(), "**.query_key_value.weight": weights, "**.query_key_value.bias": biases}
    initialize(new, Rule(Name("**"), Pretrained(old, adapt=adapt)))
    assert preserves(old, new, BATCH)


# --- a real file -----------------------------------------------------------------------------------------------------

RECIPE = """
[[rules]]
type = "Pretrained"
name = "**"
checkpoint = "{}"
layers = "even"
[rules.adapt]
"embeddings.position_embeddings.weight" = {{ type = "Repeat" }}
"embeddings.word_embeddings.weight" = {{ type = "ResizeVocabulary" }}
"""


def test_a_student_of_minilm_in_a_recipe_of_ten_lines(tmp_path: Path) -> None:
    """The file has six layers; three of them, twice the positions, and eight new tokens."""
    assert len(RECIPE.strip().splitlines()) <= 10
    path = tmp_path / "student.toml"
    path.write_text(RECIPE.format(MINILM.as_posix()), "utf-8")
    settings = CONFIG.to_dict() | {"num_hidden_layers": 3, "max_position_embeddings": 1024, "vocab_size": 30_530}
    with torch.device("meta"):
        student = hf.BertModel(hf.BertConfig(**settings))
    report = materialize(student, load_recipe(str(path)), seed=0, strict=True)
    (account,) = report.loads
    assert account.promise == "none"
    file, state = load_file(MINILM), student.state_dict()
    for ours, theirs in enumerate((0, 2, 5)):
        for leaf in ("attention.self.query.weight", "output.LayerNorm.bias"):
            assert torch.equal(state[f"encoder.layer.{ours}.{leaf}"], file[f"encoder.layer.{theirs}.{leaf}"])
    positions = state["embeddings.position_embeddings.weight"]
    assert torch.equal(positions, file["embeddings.position_embeddings.weight"].repeat(2, 1))
    assert torch.equal(state["embeddings.word_embeddings.weight"][:30_522], file["embeddings.word_embeddings.weight"])
    teacher = hf.BertModel.from_pretrained(str(MINILM.parent)).eval()
    fresh = hf.BertModel(hf.BertConfig(**settings)).eval()
    states = [one(**SENTENCES).last_hidden_state.detach() for one in (teacher, fresh, student.eval())]
    before, after = (float(F.mse_loss(other, states[0])) for other in states[1:])
    print(f"distillation loss: {before:.3f} of a fresh model, {after:.3f} of the student")
    assert after < before / 4
