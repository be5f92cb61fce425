"""What is not finite: said wherever the model, its inputs, a pass or a step shows it, and as the first thing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.probing.nets import Wired, mlp
from torchinit import probe
from torchinit.probing import Probe

X = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


def first(result: Probe) -> str:
    found = result.findings[0]
    return f"{found.code} {found.severity} {found.site}: {found.message}"


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["1.running_mean", "1.running_var"])
def test_running_statistics_that_only_evaluation_reads(name: str, value: float) -> None:
    """The pass is in training, where they are not read: it is the same with them and without."""
    model = normed()
    clean = probe(model, X)
    assert clean.healthy
    model.get_buffer(name)[2] = value
    result = probe(model, X)
    kind = "NaN" if math.isnan(value) else "infinite"
    assert first(result) == f"TI819 error {name}: 1 of 8 values are {kind}"
    assert result.verdict == f"✗ Not finite values: 1 of 8 values are {kind} ({name})."
    assert result.measurement.outputs == clean.measurement.outputs or "nan" in repr(clean.measurement.outputs)
    assert not bool(model.eval()(X).isfinite().all()) or math.isinf(value)  # which makes the unit a constant


def with_parameter(trained: bool) -> nn.Module:
    model = normed()
    model.register_parameter("extra", nn.Parameter(torch.tensor([1.0, math.inf]), requires_grad=trained))
    return model


def with_unseen_row() -> nn.Module:
    model = nn.Sequential(nn.Embedding(100, 8), nn.Flatten(), nn.Linear(24, 4))
    with torch.no_grad():
        model.get_parameter("0.weight")[99, 3] = math.nan
    return model


def with_buffer(values: Tensor) -> nn.Module:
    model = normed()
    model.register_buffer("table", values, persistent=False)
    return model


IDS = torch.arange(48).reshape(16, 3)


@pytest.mark.parametrize(
    ("model", "batch", "expected"),
    [
        (with_parameter(True), X, "extra: 1 of 2 values are infinite"),
        (with_parameter(False), X, "extra: 1 of 2 values are infinite"),
        (with_unseen_row(), IDS, "0.weight: 1 of 800 values are NaN"),
        (with_buffer(torch.full((1,), math.nan)), X, "table: all 1 value is NaN"),
        (with_buffer(torch.tensor([complex(0, math.nan), 1])), X, "table: 1 of 2 values are NaN"),
        (with_buffer(torch.tensor([1.0, math.nan]).to(torch.float8_e4m3fn)), X, "table: 1 of 2 values are NaN"),
        (with_buffer(torch.tensor([[0.0, math.nan], [0.0, 1.0]]).to_sparse()), X, "table: 1 of 4 values are NaN"),
        (with_buffer(torch.tensor([math.nan, math.inf])), X, "table: 1 of 2 values are NaN"),
    ],
)
def test_what_no_pass_meets(model: nn.Module, batch: Tensor, expected: str) -> None:
    assert first(probe(model, batch)) == f"TI819 error {expected}"


def test_infinities_of_a_mask_are_noted_and_numbers_that_add_up_to_more_than_there_is_are_none() -> None:
    result = probe(with_buffer(torch.tensor([0.0, -math.inf])), X)
    assert result.healthy
    assert "infinite, as masks are: table" in str(result)
    assert "infinite, as masks are: table" in result.notes
    assert probe(with_buffer(torch.full((9,), 3e38)), X).measurement.not_finite == ()
    meta = probe(with_buffer(torch.empty(3, device="meta")), X)
    assert meta.measurement.not_finite == ()


def test_several_tensors_are_one_finding_that_comes_before_what_they_lead_to() -> None:
    model = mlp(0, depth=6)
    with torch.no_grad():
        for at in (4, 8):
            model.get_parameter(f"{at}.weight")[3, 3] = math.nan
    found = probe(model, X).findings
    assert [each.code for each in found] == ["TI819", "TI815"]
    assert (found[0].site, found[1].site) == ("4.weight", "4")
    assert found[0].message.endswith("the first of 2 such tensors")


def test_the_batch_is_named_where_it_is_the_cause_and_not_where_the_model_copes() -> None:
    bad = X.clone()
    bad[3, 3] = math.nan
    assert first(probe(mlp(0, depth=4), bad)) == "TI819 error input[0]: 1 of 1024 values are NaN"
    copes = Wired(lambda self, x: self.net(x.nan_to_num()), net=mlp(0, depth=4))
    assert "TI819" not in probe(copes, bad).findings.codes


class Spoils(torch.autograd.Function):
    """The identity, whose gradient is not a number for one sample."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        gradient[0] = math.nan
        return gradient


def test_of_gradients_the_first_on_the_way_back_is_named() -> None:
    layers: dict[str, nn.Module] = {name: nn.Linear(64, 64) for name in "abc"}
    spoil: Any = Spoils.apply
    model = Wired(lambda self, x: self.c(spoil(self.b(self.a(x)))), **layers)
    result = probe(model, X)
    text = "the gradient of its output is not finite, the first of 2 on the way back, nor is that of 4 parameters"
    assert first(result) == f"TI815 error b: {text}"


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (lambda y: (y, (y * 0).log()), None),
        (lambda y: (y, y / 0 * 0), "item [1]"),
        (lambda y: {"logits": y, "aux": {"balance": (y / 0 * 0).mean()}}, "aux.balance"),
    ],
)
def test_all_parts_of_the_answer_are_looked_at(answer: Callable[[Tensor], object], name: str | None) -> None:
    """Of scores that are masked -inf is right; NaN and infinity are not."""
    model = Wired(lambda self, x: answer(self.net(x)), net=mlp(0, depth=4))
    result = probe(model, X)
    found = [each.message for each in result.findings if each.code == "TI815"]
    assert found == ([f"{name} of the model's output is not finite"] if name else [])


def test_a_loss_that_is_lost_after_some_steps_is_an_error() -> None:
    result = probe(mlp(0, depth=4), X, optimizer=torch.optim.SGD, lr=1e30, steps=3)
    assert math.isfinite(result.measurement.losses[0])
    step = next(at for at, loss in enumerate(result.measurement.losses) if not math.isfinite(loss))
    assert f"after step {step} of the optimizer" in first(result)
    assert first(result).startswith("TI815 error : the loss is ")


# --- the cause is the first thing that is read ------------------------------------------------------------------------


def test_growth_comes_before_where_it_ends() -> None:
    """In float16 the activations grow 60 times and are infinite then: the growth is the cause, and an error."""
    found = probe(mlp(1.0, depth=60).half(), X.half()).findings
    assert [(each.code, each.severity) for each in found][:2] == [("TI802", "error"), ("TI815", "error")]
    assert "times, then beyond all numbers, along 60 layers" in found[0].message


def test_what_is_not_finite_at_once_is_no_growth() -> None:
    logs = Wired(lambda self, x: self.b((self.a(x) * 0).log()), a=mlp(0, depth=4), b=nn.Linear(10, 3))
    found = probe(logs, X).findings
    assert [each.code for each in found] == ["TI815"]


def test_a_dead_layer_comes_before_the_signal_that_is_lost_behind_it() -> None:
    model = mlp(0, depth=6)
    with torch.no_grad():
        model.get_parameter("4.bias").fill_(-50)
    found = probe(model, torch.randn(64, 64)).findings
    assert [each.code for each in found] == ["TI806", "TI801", "TI805", "TI811"]
    assert probe(model, torch.randn(64, 64)).verdict.startswith("✗ Silent units: 100% of the units are dead")


def test_units_that_die_of_a_signal_that_is_gone_come_behind_it() -> None:
    found = probe(mlp(0.02, depth=60).bfloat16(), torch.randn(64, 64).bfloat16()).findings
    codes = [each.code for each in found]
    assert codes.index("TI801") < codes.index("TI806")


def test_equal_weights_come_before_the_samples_that_look_alike() -> None:
    model = mlp(0, depth=6)
    for at in range(0, 13, 2):
        nn.init.constant_(model.get_parameter(f"{at}.weight"), 0.02)
    assert probe(model, X).findings[0].code == "TI812"
