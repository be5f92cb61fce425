"""Neutral in recipes: what plans write to norms, what they note, and what they leave alone and say so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.knowledge.norms import WIDTH, Gemma
from tests.knowledge.not_norms import LayerScale, Raises
from torchinit import Constant, Plan, PlanError, initialize, plan

LLAMA: Any = {"type": "scheme", "name": "llama", "optional": True}


def test_the_initializer_takes_what_the_site_knows() -> None:
    model = nn.ModuleDict({"a": Gemma(), "b": nn.LayerNorm(8), "fc": nn.Linear(8, 8), "scale": LayerScale()})
    made = plan(model, {"rules": [{"type": "Neutral", "name": "**"}]})
    assert {step.site.name: step.fill for step in made} == {
        "a.weight": Constant(0.0), "b.weight": Constant(1.0), "b.bias": Constant(0.0),
    }  # fmt: skip
    assert [site.name for site in made.untouched] == ["fc.weight", "fc.bias", "scale.weight"]
    assert made.declined == ()
    doubled = plan(model, {"rules": [{"type": "Scaled", "init": {"type": "Neutral"}, "factor": 0.5, "layer": "Gemma"}]})
    assert doubled["a.weight"].fill == Constant(0.0)


def test_a_constant_off_neutral_is_noted() -> None:
    model = nn.ModuleDict({"norm": Gemma(), "ln": nn.LayerNorm(8)})
    made = plan(model, {"rules": [{"type": "Constant", "val": 1, "layer": ["Gemma", "LayerNorm"], "bias": 0.5}]})
    assert {step.site.name: step.notes for step in made} == {
        "norm.weight": ("this norm computes 1 + weight: it is neutral at 0",),
        "ln.weight": (),
        "ln.bias": ("this norm adds bias: it is neutral at 0",),
    }
    assert "it is neutral at 0" in str(made)
    half = plan(model, {"rules": [{"type": "Constant", "val": 0.5, "layer": "LayerNorm"}]})
    assert half["ln.weight"].notes == ("this norm multiplies by weight: it is neutral at 1",)
    zero = plan(model, {"rules": [{"type": "Constant", "val": 0, "name": "**.weight"}]})
    assert [step.notes for step in zero] == [(), ()]  # at the end of a residual branch that is meant


def test_what_looks_like_a_norm_and_cannot_be_asked_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.ModuleDict({"input_layernorm": Raises(), "fc": nn.Linear(8, 8)})
    for scheme in ("general", LLAMA):
        made = plan(model, scheme)
        (one,) = made.declined
        assert one.site.name == "input_layernorm.weight"
        text = "it is called a norm, and at which value it would do nothing could not be found; give it a rule"
        assert f"left alone input_layernorm.weight: {text}" in made.summary()
        assert Plan.from_json(made.to_json()) == made
        with pytest.raises(PlanError, match=f"no rule for input_layernorm.weight: {text}"):
            made.check(complete=True)
    initialize(model, "general", seed=0)
    assert "left alone input_layernorm.weight" in caplog.text
    fixed = ({"type": "Constant", "val": 1, "name": "input_layernorm.weight"},)
    rules = {"rules": [{"type": "Neutral", "name": "**"}, {"type": "Zeros", "layer": "Linear"}, *fixed]}
    assert plan(model, rules, complete=True).declined == ()


def test_a_scheme_leaves_alone_what_is_only_called_a_norm() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_scale = LayerScale()
            self.norm = parametrizations.weight_norm(nn.Linear(8, 8))
            self.act_norm = nn.PReLU()

    for scheme in (LLAMA, "general"):
        made = plan(Head(), scheme)
        assert {step.site.name for step in made} <= {"norm.weight", "norm.bias"}
        assert all(step.rule.label in ("weights", "biases") for step in made)


def test_an_init_cfg_may_say_it() -> None:
    model = nn.Sequential(Gemma(), nn.LayerNorm(WIDTH))
    report = initialize(model, [{"type": "Neutral", "layer": ["Gemma", "LayerNorm"]}], seed=0)
    assert {record.name: record.fill for record in report} == {
        "0.weight": "Constant(0)", "1.weight": "Constant(1)", "1.bias": "Constant(0)",
    }  # fmt: skip


def test_a_plan_from_before_has_no_neutral_values() -> None:
    made = plan(nn.Sequential(nn.LayerNorm(4)), {"type": "Neutral", "layer": "LayerNorm"})
    text = made.to_json(indent=None)
    assert '"neutral": 1.0' in text
    old = text.replace(', "neutral": 1.0', "").replace(', "neutral": 0.0', "").replace(', "declined": []', "")
    assert "neutral" not in old.replace("Neutral", "")
    again = Plan.from_json(old)
    assert [step.fill for step in again] == [step.fill for step in made]
    assert again["0.weight"].site.neutral is None


@pytest.mark.parametrize("scheme", [LLAMA, "general"], ids=["llama", "general"])
def test_the_signal_keeps_its_size(scheme: Any) -> None:
    model = nn.ModuleDict({"norm": Gemma(64), "fc": nn.Linear(64, 64, bias=False)})
    initialize(model, scheme, seed=0).assert_ok(complete=True)
    size = float(model["norm"](torch.randn(4, 64)).detach().square().mean().sqrt())
    assert size == pytest.approx(1, abs=1e-3)
