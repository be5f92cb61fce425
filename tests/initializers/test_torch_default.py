"""What torch's layers start with, beside the layers themselves: the same bits from the same seed, biases included."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import torchinit
from tests.stats import assert_distribution
from torchinit import FanError, PlanError, initialize, plan, sites
from torchinit.initializers import Blocks, Scaled, TorchDefault, Uniform
from torchinit.model import Site

LAYERS: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(7, 5),
    lambda: nn.Linear(7, 5, dtype=torch.float64),
    lambda: nn.Linear(7, 5, bias=False),
    lambda: nn.Linear(0, 5),
    lambda: nn.Conv1d(4, 6, 3, groups=2),
    lambda: nn.Conv2d(3, 8, (3, 5), stride=2),
    lambda: nn.Conv3d(2, 3, 2),
    lambda: nn.ConvTranspose1d(4, 6, 3),
    lambda: nn.ConvTranspose2d(4, 8, 3, groups=4),
    lambda: nn.Bilinear(3, 4, 5),
    lambda: nn.LSTM(5, 4, num_layers=2, bidirectional=True),
    lambda: nn.LSTM(5, 4, proj_size=2),
    lambda: nn.GRU(5, 4, bias=False),
    lambda: nn.RNN(5, 4),
    lambda: nn.LSTMCell(5, 4),
    lambda: nn.GRUCell(5, 4),
    lambda: nn.RNNCell(5, 4),
]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("make", LAYERS)
def test_the_bits_of_reset_parameters(make: Callable[[], nn.Module]) -> None:
    layer = make()
    expected = copy.deepcopy(layer)
    torch.manual_seed(7)
    expected.reset_parameters()  # type: ignore[operator]
    after = torch.rand(1)
    torch.manual_seed(7)
    initialize(layer, {"type": "TorchDefault", "name": "**"}).assert_ok()
    for (name, ours), theirs in zip(layer.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert torch.equal(torch.rand(1), after)


def test_a_whole_model_is_drawn_layer_by_layer() -> None:
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.GRU(4, 2), nn.Linear(2, 1)
        )

    torch.manual_seed(3)
    expected = make()
    model = make()
    torch.manual_seed(3)
    initialize(model, {"type": "TorchDefault", "name": "**"}).assert_ok(complete=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def test_a_bias_alone() -> None:
    model = nn.Sequential(nn.Linear(16, 4), nn.Conv2d(4, 2, 2))
    made = plan(model, {"type": "Xavier", "layer": ["Linear", "Conv2d"], "bias": {"type": "TorchDefault"}})
    assert [made[f"{n}.bias"].fill for n in (0, 1)] == [Uniform(-0.25, 0.25)] * 2
    text = {"type": "Uniform", "a": "-1 / sqrt(fan_in)", "b": "1 / sqrt(fan_in)"}
    assert plan(model, {**text, "param": "bias"})["1.bias"].fill == Uniform(-0.25, 0.25)
    assert plan(model, {**text, "param": "weight"})["1.weight"].fill == Uniform(-0.25, 0.25)


def test_of_a_grouped_transposed_convolution_the_true_fan() -> None:
    layer = nn.ConvTranspose2d(4, 8, 3, groups=2)
    bias = next(site for site in sites(layer) if site.leaf == "bias")
    assert bias.weight is not None
    text = {"type": "Normal", "std": "fan_in", "fans": "true", "param": "bias"}
    assert plan(layer, text)["bias"].fill == torchinit.Normal(std=bias.weight.fans("true")[0])
    assert bias.weight.fans("true") != bias.weight.fans()


def test_within_other_initializers() -> None:
    rule = torchinit.Rule("bias", Scaled(Blocks(TorchDefault(), 2), 2.0))
    assert {step.fill for step in plan(nn.Linear(16, 4), rule)} == {Uniform(-0.5, 0.5)}


def test_parametrized_and_tied_weights() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(16, 4))
    assert plan(layer, torchinit.Rule("bias", TorchDefault()))["bias"].fill == Uniform(-0.25, 0.25)
    pair = nn.ModuleDict({"embed": nn.Embedding(4, 16), "head": nn.Linear(16, 4)})
    pair["head"].weight = pair["embed"].weight
    assert plan(pair, torchinit.Rule("head.bias", TorchDefault()))["head.bias"].fill == Uniform(-0.25, 0.25)


def test_with_a_seed_as_in_distribution() -> None:
    layer = nn.Linear(4, 20_000)
    initialize(layer, {"type": "TorchDefault", "name": "**"}, seed=0).assert_ok()
    for values in (layer.weight, layer.bias):
        assert_distribution(values.detach(), lambda x: x + 0.5)


def test_in_an_init_cfg() -> None:
    layer = nn.Linear(16, 4)
    bias = {"type": "TorchDefault"}
    torchinit.mmengine.initialize(layer, {"type": "Constant", "val": 1, "layer": "Linear", "bias": bias}, seed=0)
    assert 0 < float(layer.bias.detach().abs().max()) < 0.25


def test_plans_keep_the_weights() -> None:
    made = plan(nn.Linear(4, 4), {"type": "TorchDefault", "name": "**"})
    assert torchinit.Plan.from_json(made.to_json()) == made
    plain = plan(nn.Linear(4, 4), torchinit.Rule("**", torchinit.Zeros()))
    assert {step.site.weight for step in plain} == {None}


def test_what_has_no_weight() -> None:
    model = nn.ParameterDict({"bias": nn.Parameter(torch.zeros(3)), "scale": nn.Parameter(torch.zeros(3))})
    with pytest.raises(PlanError, match=r"'scale' has shape \(3,\): fans need at least 2 dimensions"):
        plan(model, torchinit.Rule("scale", TorchDefault()))
    with pytest.raises(ValueError, match=r"'a\.bias' has no weight beside it that tells its bound"):
        TorchDefault().resolve(Site("a.bias", (3,), parameter_kind="bias"))
    with pytest.raises(FanError, match="fans need at least 2 dimensions"):
        TorchDefault().resolve(Site("norm.weight", (3,), parameter_kind="weight"))
