"""TI809: what a recurrent start does to the gradient over time, beside the theory, and what of it can be learned."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torchinit import probe

WIDTH, STEPS = 128, 33


class Last(nn.Module):
    """A recurrent layer of which the last step is read."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(layer.hidden_size, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.layer(x)[0][:, -1])
        return y


def layer_of(kind: str, gate: float = 0.0, orthogonal: bool = False, width: int = WIDTH) -> nn.RNNBase:
    """A layer without biases, but for that of the forget gate."""
    layer: nn.RNNBase = getattr(nn, kind)(8, width, batch_first=True)
    with torch.no_grad():
        for name, each in layer.named_parameters():
            if "bias" in name:
                each.zero_()
            if orthogonal and name == "weight_hh_l0":
                for part in each.split(width):
                    nn.init.orthogonal_(part)
        if gate:
            layer.get_parameter("bias_ih_l0")[width : 2 * width] = gate
    return layer


def expected(layer: nn.RNNBase, kept: float, passed: float) -> float:
    """The logarithm of the gradient's RMS at the first of the steps in parts of the last, for small activations.

    A step back multiplies by ``kept`` · 1 + ``passed`` · W, where W is the candidate's matrix: the gates are constants.
    Powers of a random matrix, W^j v, are orthogonal to each other, and as long as σ^j for σ² = width · E[W²].
    """
    candidate = (
        layer.get_parameter("weight_hh_l0").detach().double().split(WIDTH)[{"LSTM": 2, "GRU": 2}.get(layer.mode, 0)]
    )
    sigma, number = math.sqrt(WIDTH * float(candidate.square().mean())), STEPS - 1
    parts = (
        math.comb(number, j) ** 2 * kept ** (2 * (number - j)) * (passed * sigma) ** (2 * j) for j in range(number + 1)
    )
    return math.log(sum(parts)) / 2


@pytest.mark.parametrize(
    ("make", "kept", "passed"),
    [
        (lambda: layer_of("RNN"), 0.0, 1.0),
        (lambda: layer_of("RNN", orthogonal=True), 0.0, 1.0),
        (lambda: layer_of("LSTM"), 0.5, 0.25),  # f = 1 / 2; i = o = 1 / 2, between the state and its candidate
        (lambda: layer_of("LSTM", gate=1.0), 1 / (1 + math.exp(-1)), 0.25),
        (lambda: layer_of("LSTM", orthogonal=True), 0.5, 0.25),
        (lambda: layer_of("GRU"), 0.5, 0.25),  # z = 1 / 2; (1 - z) r
    ],
)
def test_the_gradient_over_time_is_as_theory_says(make: Callable[[], nn.RNNBase], kept: float, passed: float) -> None:
    """Over five seeds: the mean within four standard errors, and the share of a step that the finding tells."""
    differences = []
    for seed in range(5):
        torch.manual_seed(seed)
        layer = make()
        (steps,) = probe(Last(layer), 0.01 * torch.randn(16, STEPS, 8), seed=seed).measurement.time_steps
        found = math.log(steps.gradients[0] / steps.gradients[-1])
        differences.append(found - expected(layer, kept, passed))
    mean = sum(differences) / 5
    error = math.sqrt(sum((each - mean) ** 2 for each in differences) / 4 / 5)
    assert abs(mean) <= 4 * error + 0.1  # whose parts in 1 / width are left out


@pytest.mark.parametrize(("steps", "severity"), [(12, None), (24, "warning"), (60, "error")])
def test_an_lstm_as_torch_starts_it_forgets_by_the_length(steps: int, severity: str | None) -> None:
    torch.manual_seed(0)
    model = Last(nn.LSTM(8, 64, batch_first=True))
    found = [each for each in probe(model, torch.randn(16, steps, 8)).findings if each.code == "TI809"]
    assert [each.severity for each in found] == ([severity] if severity else [])
    shares = [float(each.message.split(", ")[1].removesuffix(" a step")) for each in found]
    assert all(0.55 < each < 0.65 for each in shares)


@pytest.mark.slow("trains two nets")
def test_what_reaches_the_first_step_decides_whether_it_is_learned() -> None:
    """The label stands in the first of 24 steps. 25,600 sequences show what is above 1 / sqrt(25,600), and no less."""

    def batch(number: int) -> tuple[Tensor, Tensor]:
        x, y = torch.randn(number, 24, 8), torch.randint(4, (number,))
        x[:, 0] = 3.0 * nn.functional.one_hot(y, 8)
        return x, y

    ends = {}
    for kind, layer in (
        ("RNN", layer_of("RNN", orthogonal=True, width=32)),
        ("LSTM", nn.LSTM(8, 32, batch_first=True)),
    ):
        torch.manual_seed(0)
        model = Last(layer)
        (steps,) = probe(model, batch(64)).measurement.time_steps
        ratio = steps.gradients[0] / steps.gradients[-1]
        optimizer = torch.optim.Adam(model.parameters(), 1e-3 if kind == "RNN" else 3e-3)
        losses = []
        for _ in range(800):
            x, y = batch(32)
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
        ends[kind] = ratio * math.sqrt(25_600), sum(losses[-20:]) / 20
    (above, learned), (below, not_learned) = ends["RNN"], ends["LSTM"]
    assert above > 1 > below
    assert learned < 0.5
    assert not_learned > 1.3  # of ln 4
