"""GPT-2 of transformers, initialized by a recipe and by hand with torch.nn.init: the same bits, the same generator."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import init
from transformers.pytorch_utils import Conv1D

from tests.peers.foreign import MODELS
from torchinit import Kaiming, Layer, Leaf, Normal, Orthogonal, Rule, TruncNormal, Uniform, Xavier, initialize
from torchinit.initializers import Initializer
from torchinit.model.sites import sites


def test_gpt2_recipe_is_what_one_would_write_by_hand() -> None:
    ours, theirs = MODELS["gpt2"](), MODELS["gpt2"]()
    torch.manual_seed(7)
    initialize(ours, "gpt2")
    generator = torch.get_rng_state()
    torch.manual_seed(7)
    by_hand(theirs)
    assert torch.equal(torch.get_rng_state(), generator)
    expected = theirs.state_dict()
    assert [name for name, tensor in ours.state_dict().items() if not torch.equal(tensor, expected[name])] == []


def by_hand(model: nn.Module) -> None:
    """The lines that a user of torch.nn.init would write for GPT-2, rule after rule."""

    def weights(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, Conv1D, nn.Embedding)):
            init.normal_(module.weight, std=0.02)

    def constants(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, Conv1D, nn.LayerNorm)) and module.bias is not None:
            init.zeros_(module.bias)
        if isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)

    model.apply(weights)
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.weight"):
            init.normal_(parameter, std=0.02 / math.sqrt(2 * 2))
    model.apply(constants)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Normal(0.1, 0.3), lambda w: init.normal_(w, 0.1, 0.3)),
        (Uniform(-0.2, 0.5), lambda w: init.uniform_(w, -0.2, 0.5)),
        (TruncNormal(std=0.02), lambda w: init.trunc_normal_(w, std=0.02)),
        (Xavier(gain=2.0), lambda w: init.xavier_normal_(w, 2.0)),
        (Kaiming(mode="fan_in", distribution="uniform"), lambda w: init.kaiming_uniform_(w, nonlinearity="relu")),
        (Orthogonal(gain=1.5), lambda w: init.orthogonal_(w, 1.5)),
    ],
    ids=lambda value: str(value) if isinstance(value, Initializer) else "",
)
def test_conv1d_has_the_bits_of_torch(ours: Initializer, theirs: Callable[[Tensor], Tensor]) -> None:
    layer, other = Conv1D(48, 32), Conv1D(48, 32)
    torch.manual_seed(3)
    initialize(layer, Rule(Layer("Conv1D") & Leaf("weight"), ours))
    torch.manual_seed(3)
    theirs(other.weight)
    assert torch.equal(layer.weight, other.weight)


def test_true_fans_of_conv1d_run_along_its_own_axes() -> None:
    site = next(site for site in sites(Conv1D(48, 32)) if site.leaf == "weight")
    assert (site.fans("torch"), site.fans("true")) == ((48.0, 32.0), (32.0, 48.0))
    assert Kaiming(mode="fan_in", fans="true").resolve(site) == Normal(0.0, math.sqrt(2) / math.sqrt(32))
