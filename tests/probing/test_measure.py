"""Measure: the numbers of a pass, against closed forms and against autograd."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.probing.nets import Answer, Checkpointed, Wired, mlp
from torchinit import probe
from torchinit.probing import Measurement


def one(model: nn.Module, batch: object = None, **options: object) -> Measurement:
    return probe(model, batch, **options).measurement  # type: ignore[arg-type]


def test_a_layer_makes_what_its_weights_promise() -> None:
    # A weight of N(0, s²) with n inputs of N(0, 1) gives N(0, n s²); a ReLU leaves half of the second moment, whose
    # signal is that without the square of the mean: 1/2 - 1/(2 pi).
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 512, bias=False), nn.ReLU())
    nn.init.normal_(model[0].weight, std=0.1)  # type: ignore[arg-type]
    layer, relu, _ = one(model, torch.randn(256, 512)).outputs
    size = 0.1 * math.sqrt(512)
    assert layer.forward.rms == pytest.approx(size, rel=0.02)
    assert layer.forward.signal == pytest.approx(size, rel=0.02)
    assert layer.forward.spread == pytest.approx(1, abs=0.02)
    assert relu.forward.rms == pytest.approx(size / math.sqrt(2), rel=0.03)
    # Two samples at a right angle have a cosine of 1/pi behind a ReLU (the arc-cosine kernel).
    assert relu.forward.spread == pytest.approx(1 - 1 / math.pi, abs=0.02)
    assert layer.then == "relu"


def test_gradients_are_those_of_autograd() -> None:
    model, x, y = mlp(0, depth=3), torch.randn(32, 64), torch.arange(32) % 10
    measured = one(model, (x, y))
    hidden = [x]
    for layer in model:
        hidden.append(layer(hidden[-1]))
        hidden[-1].retain_grad()
    loss = F.cross_entropy(hidden[-1], y)
    loss.backward()
    assert measured.objective.loss == pytest.approx(float(loss.detach()))
    assert measured.objective.best == pytest.approx(math.log(10))
    assert measured.objective.logits == pytest.approx(float(hidden[-1].detach().square().mean().sqrt()))
    for output, tensor in zip(measured.outputs[:-1], hidden[1:], strict=True):
        assert tensor.grad is not None
        assert output.gradient is not None
        assert output.gradient.rms == pytest.approx(float(tensor.grad.square().mean().sqrt()), rel=1e-4)
    for record, parameter in zip(measured.parameters, model.parameters(), strict=True):
        assert parameter.grad is not None
        assert record.gradient == pytest.approx(float(parameter.grad.square().mean().sqrt()), rel=1e-4)


def test_an_activation_in_place_does_not_change_what_was_measured() -> None:
    plain, in_place = mlp(0, depth=3), mlp(0, depth=3)
    for at in (1, 3, 5):
        in_place[at] = nn.ReLU(inplace=True)
    one_way, other = one(plain), one(in_place)
    for here, there in zip(one_way.outputs, other.outputs, strict=True):
        assert here.forward == pytest.approx(there.forward, nan_ok=True)
        assert here.gradient == pytest.approx(there.gradient, nan_ok=True)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpointing_changes_nothing(reentrant: bool) -> None:
    torch.manual_seed(0)
    model = Checkpointed(reentrant)
    x = torch.randn(16, 16)
    measured = one(model, x)
    plain = Wired(lambda self, x: self.head(self.blocks(self.stem(x))), stem=model.stem, head=model.head)
    plain.blocks = nn.Sequential(*model.blocks)
    without = one(plain, x)
    assert [each.outputs[-1].name for each in measured.chains] == ["blocks.3.0"]
    assert measured.chains[0].signal == pytest.approx(without.chains[0].signal)
    assert measured.chains[0].gradient == pytest.approx(without.chains[0].gradient)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_attention_is_seen_however_it_is_computed() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 9, 16) for _ in range(3))
    logits = q @ k.transpose(-2, -1) / 4
    hidden = torch.ones(9, 9, dtype=torch.bool).triu(1)
    expected = logits.masked_fill(hidden, torch.nan)
    rows = torch.stack([expected[..., at, : at + 1].var(-1, correction=0) for at in range(1, 9)])
    std = float(rows.mean().sqrt())
    layer = nn.Linear(16, 16, bias=False)
    nn.init.eye_(layer.weight)
    ways = {
        "causal": lambda self, x: F.scaled_dot_product_attention(self.layer(q), k, v, is_causal=True),
        "mask": lambda self, x: F.scaled_dot_product_attention(self.layer(q), k, v, attn_mask=~hidden),
        "softmax": lambda self, x: (self.layer(q) @ k.mT / 4).masked_fill(hidden, -1e9).softmax(-1) @ v,
    }
    for name, way in ways.items():
        (attention,) = one(Wired(way, layer=layer), q).attentions
        assert attention.std == pytest.approx(std, rel=1e-3), name
        assert 0 < attention.entropy < 1
    mha = nn.MultiheadAttention(16, 4, batch_first=True)
    assert len(one(Wired(lambda self, x: self.mha(x, x, x, need_weights=False)[0], mha=mha), v[0]).attentions) == 1


def test_dead_and_saturated_units_are_counted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        model.get_parameter("0.bias")[:2] = -100
        model.get_parameter("2.bias")[:6] = 100
    relu, tanh = one(model, torch.randn(64, 8)).units
    assert relu.function == "relu"
    assert relu.dead >= 2 / 8
    assert tanh.saturated == pytest.approx(6 / 8, abs=0.02)


def test_zero_gradients_that_wake_are_told_from_those_that_stay() -> None:
    model = mlp(0, depth=3)
    nn.init.zeros_(model[-1].weight)  # type: ignore[arg-type]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    woken = one(model)
    assert woken.asleep == 6
    assert not any(each.stays_zero for each in woken.parameters)
    assert not math.isnan(woken.chains[0].gradient)
    assert all(map(torch.equal, before, model.parameters()))
    nn.init.constant_(model[2].bias, -100)  # type: ignore[arg-type]
    nn.init.constant_(model[4].bias, 1)  # type: ignore[arg-type]
    stuck = {each.name for each in one(model).parameters if each.stays_zero}
    assert {"0.weight", "2.weight"} <= stuck
    assert "6.weight" not in stuck


def test_an_optimizer_is_tried_and_undone() -> None:
    model = mlp(0, depth=2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    measured = one(model, optimizer=torch.optim.SGD, lr=0.5, steps=3)
    assert len(measured.losses) == 4
    assert measured.losses[-1] < measured.losses[0]
    for each in measured.parameters:
        if len(each.shape) > 1:
            assert each.gradient is not None
            assert each.update == pytest.approx(0.5 * each.gradient / each.rms, rel=1e-3)
    assert all(map(torch.equal, before, model.parameters()))
    assert one(model, steps=1).losses  # Adam


def test_time_steps_of_a_recurrent_layer() -> None:
    torch.manual_seed(0)
    rnn, head = nn.RNN(4, 16, batch_first=True), nn.Linear(16, 3)
    last = Wired(lambda self, x: self.head(self.rnn(x)[0][:, -1]), rnn=rnn, head=head)
    x = torch.randn(16, 30, 4)
    labels = torch.randint(3, (16,), generator=torch.Generator().manual_seed(0))
    (steps,) = one(last, (x, labels)).time_steps
    inputs = x.clone().requires_grad_()
    F.cross_entropy(head(rnn(inputs)[0][:, -1]), labels).backward()
    assert inputs.grad is not None
    assert steps.gradients == pytest.approx(inputs.grad.square().mean((0, 2)).sqrt().tolist(), rel=1e-3)
    every = Wired(lambda self, x: self.head(self.rnn(x)[0]), rnn=rnn, head=head)
    assert one(every, x).time_steps == ()


def test_outputs_of_all_kinds() -> None:
    layer = nn.Linear(4, 4)
    x = torch.randn(8, 4)
    for wrap in (tuple, list, lambda pair: {"a": pair[0]}, lambda pair: Answer(1, pair[0])):
        measured = one(Wired(lambda self, x, wrap=wrap: wrap([self.layer(x), None]), layer=layer), x)
        assert [each.module for each in measured.outputs] == ["layer", ""]


def test_frozen_parts_are_left_out_backwards() -> None:
    model = mlp(0, depth=6)
    for layer in [*model][:6]:
        layer.requires_grad_(requires_grad=False)
    measured = one(model)
    assert [each.name for each in measured.parameters][:1] == ["6.weight"]
    assert [bool(each.gradient) for each in measured.chains[0].outputs] == [False] * 3 + [True] * 3
    assert abs(measured.chains[0].gradient) < 2


def test_a_part_that_runs_in_inference_mode_is_measured() -> None:
    frozen, head = nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 4)

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.head = nn.Sequential(frozen), head

        def forward(self, x: torch.Tensor) -> Any:
            with torch.inference_mode():
                features = self.frozen(x)
            return self.head(features.clone())

    batch = torch.randn(16, 8)
    names = {output.name: output.forward.rms for output in one(Backbone(), batch).outputs}
    assert names["frozen.0"] == names["frozen"] == pytest.approx(float(frozen(batch).detach().square().mean().sqrt()))
    assert names["head"] == pytest.approx(float(head(frozen(batch)).detach().square().mean().sqrt()))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_autocast_and_compiled_modules() -> None:
    model, x = mlp(0, depth=3), torch.randn(16, 64)
    plain = one(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        half = one(model, x)
    assert half.chains[0].signal == pytest.approx(plain.chains[0].signal, abs=0.05)
    compiled: Any = torch.compile(model)
    assert [each.name for each in one(compiled, x).outputs][:6] == [each.name for each in plain.outputs][:6]
    assert one(compiled, x).chains[0].signal == plain.chains[0].signal


def test_shared_modules_are_told_apart_by_their_calls() -> None:
    model = Wired(lambda self, x: self.layer(self.layer(x)), layer=nn.Linear(4, 4))
    assert [each.name for each in one(model, torch.randn(8, 4)).outputs] == ["layer", "layer call 2", "(model)"]
