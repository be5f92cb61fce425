"""Tables and mapped draws beside the code of the libraries whose models start so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import MambaConfig, MambaModel, RwkvConfig, RwkvModel, WhisperConfig, WhisperModel
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from torchinit.initializers import AlibiSlopes, Fill, Initializer, LogUniform, Mapped, Ramp, SinCos
from torchinit.model import Shard, Site
from torchinit.noise import Keyed


def drawn(init: Initializer, like: Tensor, block: tuple[int, int] | None = None) -> Tensor:
    fill = init.resolve(Site("w", tuple(like.shape), block=block))
    assert isinstance(fill, Fill)
    tensor = torch.full_like(like, torch.nan)
    fill.write(Shard.whole("w", tensor), Keyed(0))
    return tensor


def test_mamba() -> None:
    config = MambaConfig(vocab_size=50, hidden_size=64, num_hidden_layers=2, state_size=8, time_step_rank=4)
    mixer = MambaModel(config).layers[0].mixer
    a_log, bias = mixer.A_log.detach(), mixer.dt_proj.bias.detach()
    torch.testing.assert_close(drawn(Mapped(Ramp(1.0, 8.0), "log"), a_log), a_log)
    ours = drawn(Mapped(LogUniform(0.001, 0.1), "inverse_softplus", low=1e-4), bias.repeat(400))
    theirs = torch.cat([MambaModel(config).layers[0].mixer.dt_proj.bias.detach() for _ in range(40)])
    for values in (ours, theirs):
        dt = torch.nn.functional.softplus(values.double())
        share = torch.log(dt / 0.001) / np.log(100)
        bound = np.sqrt(np.log(2e9) / (2 * share.numel()))  # Dvoretzky, Kiefer, Wolfowitz and Massart, at 1e-9
        ranks = torch.arange(share.numel()) / share.numel()
        assert float((share.sort().values - ranks).abs().max()) < bound + 1 / share.numel()


def test_rwkv() -> None:
    config = RwkvConfig(vocab_size=50, hidden_size=32, attention_hidden_size=32, num_hidden_layers=4)
    for index, block in enumerate(RwkvModel(config).blocks):
        decay = block.attention.time_decay.detach()
        torch.testing.assert_close(drawn(Ramp(-5.0, 3.0, power=0.7 + 1.3 * index / 3), decay), decay)


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
