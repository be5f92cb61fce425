"""Prediction: second moments forward and back, against closed forms and against what is measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import probe_nets as nets
from tests.probing.nets import Wired, mlp
from torchinit import ProbeError, probe
from torchinit.probing import predict
from torchinit.probing.measurement import Output
from torchinit.probing.moments import BatchMoments

NORMAL = {"type": "Normal", "std": 0.1, "param": "weight"}
ZERO = {"type": "Constant", "val": 0.0, "param": "bias"}


def on_meta(make: Callable[[], nn.Module], *entries: object) -> dict[str, Output]:
    """What is predicted for a model that has no values, by the modules' names."""
    with torch.device("meta"):
        model = make()
    return {output.name: output for output in predict(model, [*entries] or [NORMAL, ZERO])}


def test_a_chain_is_the_product_of_its_factors() -> None:
    # fan_in · std² a layer; ReLU halves; back fan_out · std² and a half again.
    found = on_meta(lambda: nn.Sequential(*(f() for _ in range(5) for f in (lambda: nn.Linear(64, 64), nn.ReLU))))
    for depth in range(5):
        assert found[f"{2 * depth}"].predicted == pytest.approx(math.sqrt(0.64 * 0.32**depth), rel=1e-3)
        assert found[f"{2 * depth + 1}"].predicted == pytest.approx(math.sqrt(0.32 ** (depth + 1)), rel=1e-3)
        assert found[f"{2 * depth}"].predicted_gradient == pytest.approx(math.sqrt(0.5 * 0.32 ** (4 - depth)), rel=1e-3)


def test_a_residual_stream_adds_its_branches() -> None:
    # q times 1 + fan² · std⁴ / 2 a block, and the gradient by the same.
    found = on_meta(lambda: nets.Residual(depth=6, width=64))
    factor = 1 + 0.64 * 0.64 / 2
    assert found["stem"].predicted == pytest.approx(math.sqrt(0.32), rel=1e-3)
    for depth in range(6):
        assert found[f"blocks.{depth}"].predicted == pytest.approx(math.sqrt(0.32 * factor ** (depth + 1)), rel=1e-3)
        back = math.sqrt(0.1 * factor ** (5 - depth))
        assert found[f"blocks.{depth}"].predicted_gradient == pytest.approx(back, rel=1e-3)


@pytest.mark.parametrize("function", [F.relu, F.gelu, F.silu, torch.tanh, torch.sigmoid, torch.sin, F.softplus])
def test_activations_by_sampling(function: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    z = (torch.randn(400_000, dtype=torch.float64) * 0.8).requires_grad_()
    value = function(z)
    value.sum().backward()
    assert z.grad is not None
    model = Wired(lambda self, x: self.end(function(self.layer(x))), layer=nn.Linear(64, 64), end=nn.Identity())
    batch = torch.randn(16, 64)
    layer, end, _ = predict(model.to("meta"), [NORMAL, ZERO], batch / batch.square().mean().sqrt())
    assert end.predicted == pytest.approx(float(value.detach().square().mean().sqrt()), rel=0.02)
    assert layer.predicted_gradient == pytest.approx(float(z.grad.square().mean().sqrt()), rel=0.02)


@pytest.mark.parametrize(
    "norm",
    [
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda x: torch.rsqrt((x * x).mean(-1, keepdim=True).clamp(min=1e-6)) * x,
        lambda x: x / (x**2).mean(-1, keepdim=True).add(1e-6).sqrt(),
        lambda x: (x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-6).pow(-0.5)).float(),
        lambda x: F.rms_norm(x, (64,)),
    ],
)
def test_a_norm_that_is_written_out_starts_anew(norm: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    model = Wired(
        lambda self, x: self.end(self.normed(norm(self.layer(x)))),
        layer=nn.Linear(64, 64), normed=nn.Identity(), end=nn.Linear(64, 64),
    )  # fmt: skip
    layer, normed, end, _ = probe(model, torch.randn(64, 64) * 30).measurement.outputs
    assert normed.predicted == pytest.approx(1, rel=1e-4)
    assert normed.forward.rms == pytest.approx(1, rel=0.01)
    assert end.agrees
    # The norm takes out the part along x, which is one of 64.
    assert layer.gradient is not None
    assert layer.predicted_gradient == pytest.approx(layer.gradient.rms, rel=0.1)


def test_what_is_no_norm_is_not_taken_for_one() -> None:
    for scale in (lambda x: x.relu().pow(2), lambda x: x.pow(2) + x, lambda x: x.pow(3), lambda x: (2 * x).pow(2)):
        model = Wired(
            lambda self, x, scale=scale: self.end(
                (y := self.layer(x)) * torch.rsqrt(scale(y).mean(-1, keepdim=True))
            ),
            layer=nn.Linear(64, 64), end=nn.Identity(),
        )  # fmt: skip
        assert predict(model, batch=torch.randn(16, 64))[1].predicted is None


@pytest.mark.parametrize(
    "call",
    [
        lambda self, x: F.pad(self.layer(x), (8, 8), value=3.0),
        lambda self, x: self.layer(x).div(2.0, rounding_mode="floor"),
        lambda self, x: torch.addmm(self.layer.bias, x, self.layer.weight.mT, alpha=3.0),
        lambda self, x: torch.addmm(self.layer.bias, x, self.layer.weight.mT, beta=0.5),
    ],
)
def test_variants_of_operations_that_no_rule_is_for(call: Callable[..., torch.Tensor]) -> None:
    model = Wired(lambda self, x: self.end(call(self, x)), layer=nn.Linear(64, 64), end=nn.Identity())
    assert [output.predicted for output in predict(model, batch=torch.randn(16, 64)) if output.name == "end"] == [None]


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1, groups=4), nn.Tanh(), nn.MaxPool2d(2),
        nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 8, 3, dilation=2), nn.ELU(),
        nn.Flatten(), nn.LazyLinear(10),
    )  # fmt: skip


def made_of_convolutions() -> nn.Module:
    model = convolutions()
    model(torch.zeros(1, 3, 32, 32))
    return model


NETS: dict[str, Callable[[], nn.Module]] = {
    "torch's MLP": lambda: nets.mlp(12),
    "tanh": lambda: nets.filled(nets.mlp(12, nn.Tanh), nets.normal(0.3)),
    "leaky": lambda: nets.filled(nets.mlp(12, nn.LeakyReLU), nets.kaiming),
    "selu": lambda: nets.filled(nets.mlp(12, nn.SELU), nets.xavier),
    "hardswish": lambda: nets.filled(nets.mlp(6, nn.Hardswish), nets.kaiming),
    "convolutions": made_of_convolutions,
    "residual": lambda: nets.residual(1.0),
    "decoder": nets.decoder,
    "siren": nets.Sine,
}


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("name", NETS)
def test_what_is_claimed_is_measured(name: str) -> None:
    agree, far, noise = [], [], []
    for seed in range(3):
        torch.manual_seed(seed)
        for output in probe(NETS[name](), seed=seed).measurement.outputs:
            agree += [each for each in (output.agrees, output.gradient_agrees) if each is not None]
            if output.predicted and output.forward.rms > 0:
                far.append(math.log(output.forward.rms / output.predicted))
                noise.append(output.noise)
    assert len(agree) >= 24
    assert agree.count(True) >= 0.95 * len(agree)
    assert abs(statistics.median(far)) < 0.2 + statistics.median(noise)


def test_the_noise_is_that_of_other_draws() -> None:
    ends, slopes, promised = [], [], []
    for seed in range(24):
        torch.manual_seed(seed)
        outputs = probe(nets.filled(nets.mlp(10), nets.kaiming), seed=seed).measurement.outputs
        last, first = outputs[-2], outputs[0]
        assert first.gradient
        assert last.predicted
        assert first.predicted_gradient
        ends.append(math.log(last.forward.rms / last.predicted))
        slopes.append(math.log(first.gradient.rms / first.predicted_gradient))
        promised.append((last.noise, first.gradient_noise))
    for found, noise in zip((ends, slopes), zip(*promised, strict=True), strict=True):
        # The sd of 24 draws is right to 15 %; where samples have not collapsed, the draws of a layer average out.
        assert noise[0] / 4 < statistics.stdev(found) < noise[0] * 1.5


def test_what_is_not_known_is_not_claimed() -> None:
    attention = Wired(lambda self, x: self.layer(x).softmax(-1), layer=nn.Linear(8, 8))
    layer, whole = probe(attention, torch.randn(16, 8)).measurement.outputs
    assert layer.predicted
    assert (whole.predicted, layer.predicted_gradient) == (None, None)
    rnn = probe(nets.Recurrent(nn.LSTM)).measurement.outputs
    assert [output.predicted for output in rnn] == [None] * 3
    constant = probe(nets.filled(nets.mlp(3), lambda weight: nn.init.constant_(weight, 0.1))).measurement.outputs
    assert {output.predicted for output in constant} == {None}
    twice = Wired(lambda self, x: torch.add(y := self.layer(x), y.relu()), layer=nn.Linear(8, 8))  # not independent
    assert probe(twice, torch.randn(16, 8)).measurement.outputs[-1].predicted is None


def test_what_the_plan_does_not_say_is_not_known() -> None:
    found = on_meta(lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), {**NORMAL, "name": "0.*"})
    assert [output.predicted for output in found.values()] == [None] * 4


def test_weights_that_depend_on_each_other_are_told() -> None:
    model = mlp(0, depth=12)
    with torch.no_grad():
        for at in range(2, 24, 2):
            model.get_parameter(f"{at}.weight").abs_()
    outputs = probe(model).measurement.outputs
    assert [output.agrees for output in outputs if output.module == "0"] == [True]
    assert outputs[-1].predicted is None


def test_scalars_are_followed() -> None:
    model = Wired(lambda self, x: self.layer(x) * self.scale / 4 + 0.0, layer=nn.Linear(64, 64, bias=False))
    model.scale = nn.Parameter(torch.tensor(3.0))
    layer, whole = probe(model, torch.randn(16, 64)).measurement.outputs
    assert layer.predicted
    assert whole.predicted == pytest.approx(layer.predicted * 3 / 4)
    assert layer.gradient
    assert layer.predicted_gradient == pytest.approx(layer.gradient.rms, rel=1e-4)


def test_agreement_is_within_three_deviations_and_a_factor_of_two() -> None:
    def output(rms: float, predicted: float | None, noise: float) -> Output:
        return Output("a", "Linear", 0, (4, 4), BatchMoments(rms, 1, 1, 1, 1), predicted=predicted, noise=noise)

    assert output(2.0, 1.0, 0.0).agrees
    assert not output(2.1, 1.0, 0.0).agrees
    assert output(2.1, 1.0, 0.02).agrees
    assert output(0.0, 0.0, 0.0).agrees
    assert not output(1.0, 0.0, 9.0).agrees
    assert output(1.0, None, 0.1).agrees is None
    assert output(math.inf, 1.0, 0.1).agrees is None
    assert output(1.0, 1.0, 0.1).gradient_agrees is None


def test_a_model_without_values_needs_a_recipe() -> None:
    model = nn.Linear(4, 4, device="meta")
    with pytest.raises(ProbeError, match=r"Linear is on the meta device, so nothing is known of it; give recipe="):
        predict(model)
    reads = Wired(lambda self, x: self.layer(x) * x.max().item(), layer=nn.Linear(4, 4))
    with pytest.raises(ProbeError, match="the forward of Wired raised"):
        predict(reads, NORMAL, torch.randn(4, 4))
