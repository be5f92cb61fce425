"""Tables and mapped draws beside the code of the libraries whose models start so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers import (
    Mamba2Config,
    Mamba2Model,
    MambaConfig,
    MambaModel,
    RwkvConfig,
    RwkvModel,
    WhisperConfig,
    WhisperModel,
)
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

import torchinit
from tests.initializers.state_space import RECIPES
from tests.peers.families import small
from torchinit import Uniform
from torchinit.initializers import AlibiSlopes, Fill, Initializer, Mapped, SinCos
from torchinit.model import Shard, Site
from torchinit.noise import Keyed


def drawn(init: Initializer, like: Tensor, block: tuple[int, int] | None = None) -> Tensor:
    fill = init.resolve(Site("w", tuple(like.shape), block=block))
    assert isinstance(fill, Fill)
    tensor = torch.full_like(like, torch.nan)
    fill.write(Shard.whole("w", tensor), Keyed(0))
    return tensor


ALPHA = 1e-6
"""The chance with which the two-sample test of Kolmogorov and Smirnov may call two samples of one law different."""

MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mamba": (
        lambda: MambaModel(MambaConfig(vocab_size=50, hidden_size=64, num_hidden_layers=8, state_size=8)),
        {"dt_proj.weight": lambda x: x, "dt_proj.bias": np.exp},
    ),
    "mamba2_transformers": (
        lambda: Mamba2Model(
            Mamba2Config(vocab_size=50, hidden_size=512, num_heads=256, head_dim=4, num_hidden_layers=4, state_size=8)
        ),
        {"dt_bias": np.exp},
    ),
    "qwen3_next": (
        lambda: small(
            "qwen3_next", linear_num_value_heads=256, linear_num_key_heads=2, linear_value_head_dim=2,
            layer_types=["linear_attention"] * 4,
        ),
        {"A_log": np.exp},
    ),
    "rwkv": (
        lambda: RwkvModel(
            RwkvConfig(vocab_size=50, hidden_size=32, attention_hidden_size=48, num_hidden_layers=4)
        ),
        {},
    ),
}  # fmt: skip
"""A model of each family, and its own parameters that are drawn element by element, with a map that spreads them."""

RUNGS = ("A_log", "D", "dt", "time_")


@pytest.mark.parametrize("family", MODELS)
def test_state_space_models_start_as_transformers_starts_them(family: str) -> None:
    """What is drawn has the same law, what is not the same numbers, whatever rule of the recipe reaches it."""
    torch.manual_seed(0)
    build, drawn_names = MODELS[family]
    ours, theirs = build(), build()
    torchinit.initialize(ours, {"rules": RECIPES[family]}, seed=0).assert_ok()
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, mine in ours.named_parameters():
        reference = theirs.get_parameter(name).detach()
        pattern = next((key for key in drawn_names if name.endswith(key)), "")
        if pattern:
            seen.setdefault(pattern, []).append((mine.detach(), reference))
        elif any(rung in name for rung in RUNGS):
            torch.testing.assert_close(mine.detach(), reference, rtol=1e-5, atol=1e-6, msg=name)
        elif family == "rwkv" and mine.dim() == 2:  # orthogonal: another draw of the same size
            for values in (mine, reference):
                tall = values if values.shape[0] >= values.shape[1] else values.T
                gram = (tall.T @ tall).detach()
                square = float((reference.detach() ** 2).sum()) / tall.shape[1]
                torch.testing.assert_close(gram, square * torch.eye(len(gram)), rtol=1e-3, atol=1e-4 * square, msg=name)
    assert seen.keys() == drawn_names.keys()
    for pattern, pairs in seen.items():
        one, other = (drawn_names[pattern](torch.cat([pair[at].flatten() for pair in pairs]).double().numpy())
                      for at in (0, 1))  # fmt: skip
        assert len(one) >= 1000
        assert stats.ks_2samp(one, other).pvalue > ALPHA, pattern


def test_mamba2_draws_a_in_its_own_code() -> None:
    """A ~ U(1, 16), as NVIDIA's and Kimi's models have it; transformers numbers the heads."""
    theirs = np.random.default_rng(0).uniform(1, 16, 2000)
    ours = drawn(Mapped(Uniform(1, 16), "log"), torch.empty(2000)).double().exp().numpy()
    assert stats.ks_2samp(ours, theirs).pvalue > ALPHA


def test_whisper() -> None:
    config = WhisperConfig(
        vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, max_source_positions=30, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    positions = WhisperModel(config).encoder.embed_positions.weight.detach()
    torch.testing.assert_close(drawn(SinCos(order="halves", endpoint=True), positions), positions)


@pytest.mark.parametrize("heads", [4, 6, 8, 12])
def test_bloom(heads: int) -> None:
    bias = build_alibi_tensor(torch.ones(1, 3), heads, torch.float32).view(heads, 3)
    torch.testing.assert_close(drawn(AlibiSlopes(), torch.empty(heads)), bias[:, 1])


def test_positions_of_an_image() -> None:
    """As transformers has them; MAE's own code begins with the columns (tests/initializers)."""
    rows = build_2d_sinusoidal_position_embedding(3, 5, 16, cls_token=True)
    fill = SinCos(order="halves", grid=(3, 5), first="row", prefix=1)
    torch.testing.assert_close(drawn(fill, rows), rows, atol=1e-6, rtol=0)
