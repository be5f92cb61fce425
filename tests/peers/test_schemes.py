"""The named schemes against what they are named for: the start of a library, or a paper's formulas written by hand."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.peers.foreign import MODELS
from tests.peers.scheme_references import CASES, PAGE, Case, Row, adapted, measure, table
from torchinit import Normal, PlanError, initialize, load_recipe, plan
from torchinit.recipes import schemes

ALONE = {"general"}
"""The scheme that is measured elsewhere: by signals."""


def test_every_scheme_has_a_reference() -> None:
    assert set(schemes()) - ALONE == {case.scheme for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_reference_starts_so(case: Case) -> None:
    """Standard deviations per role, of the reference and of what is written, within three standard errors of the plan.

    Of some five hundred one or two are off by more, by chance alone: one that is off is drawn again.
    """
    rows = {(row.role, row.planned): row for row in measure(case)}
    assert rows
    if off := [key for key, row in rows.items() if not row.is_ok]:
        again = {(row.role, row.planned): row for row in measure(case, seed=1)}
        assert all(again[key].is_ok for key in off), [(rows[key], again[key]) for key in off]


def test_a_row_that_is_off() -> None:
    assert Row("attn.q", 0.02, 0.0201, 0.0199, 10_000, 0.0005).is_ok
    assert not Row("attn.q", 0.02, 0.0201, 0.0206, 10_000, 0.0005).is_ok


def test_the_page_has_the_table() -> None:
    lines = table().splitlines()
    text = PAGE.read_text("utf-8")
    missing = [line for line in lines if line not in text]
    assert not missing, f"run python -m tests.peers.scheme_references:\n{missing}"


@pytest.mark.parametrize("scheme", sorted(set(schemes()) - {"general", "torch", "siren"}))
def test_on_another_model_all_missing_roles_are_named(scheme: str) -> None:
    model = nn.Sequential(nn.Bilinear(4, 4, 4), nn.Embedding(4, 4))
    if scheme == "lstm":
        assert plan(model, scheme).unused
        return
    with pytest.raises(PlanError, match=rf"the scheme '{scheme}' needs parameters of .*, and this model has none such"):
        plan(model, scheme)


def test_what_is_frozen_and_what_is_adapted_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    model: Any = MODELS["llama"]()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.lm_head = nn.Linear(32, 10, bias=False)
    model.model.layers[0].self_attn.q_proj = adapted().get_submodule("q_proj")  # as peft puts it in
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with caplog.at_level(logging.WARNING, "torchinit"):
        report = initialize(model, "llama", seed=0)
    assert [record.name for record in report] == ["lm_head.weight"]
    assert dict(report.skipped)["model.layers.0.self_attn.q_proj.base_layer.weight"] == "frozen: requires_grad is false"
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name != "lm_head.weight")
    told = initialize(model, "llama", seed=0, trainable=False)
    assert "model.layers.0.self_attn.q_proj.base_layer.weight" in {record.name for record in told}
    assert {name for name in after if "lora" in name}.isdisjoint(record.name for record in told)
    assert {record.name for record in initialize(model, "lora", seed=0)} == {name for name in after if "lora" in name}


def test_two_schemes_for_two_towers() -> None:
    """A vision tower and a language model in one."""
    with torch.device("meta"):
        model = MODELS["clip"]()
    recipe = [
        {"type": "scheme", "name": "vit", "variant": "jax", "within": "vision_model", "optional": True},
        {"type": "scheme", "name": "gpt2", "within": "text_model", "optional": True},
    ]
    made = plan(model, {"rules": recipe})
    assert made["vision_model.encoder.layers.0.mlp.fc1.weight"].rule.scheme == "vit within vision_model"
    assert made["text_model.encoder.layers.0.mlp.fc2.weight"].fill == Normal(std=0.02 / math.sqrt(2 * 2))


def test_every_rule_of_every_scheme_says_what_for() -> None:
    for name in schemes():
        assert all(rule.label for rule in load_recipe(name)), name
