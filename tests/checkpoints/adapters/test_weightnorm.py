"""Weight norm: layers compute what they did under either of torch's weight norms."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import weight_norm as older
from torch.nn.utils.parametrizations import weight_norm as newer

from torchinit import CheckpointError, Name, Pretrained, Rule, initialize
from torchinit.checkpoints.adapters import WeightNorm


def normed(norm: Callable[..., nn.Module], layer: nn.Module, dim: int | None) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older one is told to be old
        made = norm(layer, dim=dim)
    for parameter in made.parameters():
        parameter.detach().uniform_(0.5, 2)
    return made


@pytest.mark.parametrize("norm", [older, newer])
@pytest.mark.parametrize("dim", [0, 1, 2, None])
@pytest.mark.parametrize("into", [None, older, newer])
def test_a_layer_computes_the_same(
    norm: Callable[..., nn.Module], dim: int | None, into: Callable[..., nn.Module] | None, tmp_path: Path
) -> None:
    trained = normed(norm, nn.Conv1d(4, 6, 3), dim)
    model = normed(into, nn.Conv1d(4, 6, 3), 2) if into else nn.Conv1d(4, 6, 3)
    torch.save({f"ups.{name}": tensor for name, tensor in trained.state_dict().items()}, tmp_path / "a.pth")
    adapter = WeightNorm(parametrized=norm is newer)
    rule = Pretrained(str(tmp_path / "a.pth"), prefix="ups", adapt={"weight": adapter})
    initialize(model, Rule(Name("**"), rule))
    sounds = torch.randn(2, 4, 9)
    torch.testing.assert_close(model(sounds), trained(sounds))


def test_lengths_that_do_not_fit() -> None:
    held = {"weight_g": torch.ones(5, 1, 1), "weight_v": torch.ones(6, 4, 3), "bias": torch.ones(6)}
    for length in (torch.ones(5, 1, 1), torch.ones(6), torch.ones(6, 4, 1)):
        rule = Pretrained({**held, "weight_g": length}, adapt={"weight": WeightNorm()})
        with pytest.raises(CheckpointError, match=r"needs one length, or one for each channel, of \[6, 4, 3\]"):
            initialize(nn.Conv1d(4, 6, 3), Rule(Name("**"), rule))
