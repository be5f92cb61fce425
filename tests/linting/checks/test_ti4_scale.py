"""TI4: constants, outliers and scales that are out of proportion; norms have a file of their own."""

from __future__ import annotations

import math

import torch
from torch import nn

import torchinit
from tests.linting.models import Net, found, only
from torchinit import Name, Normal, Rule, lint


def test_fill_for_all_weights_reaches_the_norms() -> None:
    model = Net()
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            nn.init.normal_(parameter, std=0.02)
    with torch.no_grad():
        model.embed.weight[0] = 0
    findings = lint(model)
    assert [(one.code, one.site) for one in findings] == [
        ("TI402", site) for site in ("blocks.0.0.weight", "blocks.1.0.weight", "norm.weight")
    ]


def test_constant_in_place_of_randomness() -> None:
    model = Net()
    nn.init.constant_(model.head.weight, 0.01)
    found = only(lint(model), "TI401")
    assert (found.site, found.message) == ("head.weight", "all 1,600 values are 0.01")


def test_std_that_float16_rounds_to_zero() -> None:
    model = Net().half()
    rule = Rule(Name("head.weight"), Normal(std=1e-9))
    torchinit.initialize(model, rule, seed=0)
    found = only(lint(model, ignore=["TI505"]), "TI401")
    assert (found.severity, found.site) == ("note", "head.weight")


def test_std_that_was_forgotten() -> None:
    model = nn.Sequential(nn.Linear(256, 256))
    nn.init.normal_(model.get_parameter("0.weight"))
    found = only(lint(model), "TI404")
    assert "with 256 inputs makes what passes 16.1 times as large" in found.message


def test_truncated_normal_by_inversion() -> None:
    weight = torch.empty(512, 512)
    uniform = torch.empty_like(weight).uniform_(-1, 1)
    uniform[3, 4] = -1  # what rounding makes of some values in float32
    model = nn.Linear(512, 512)
    model.weight.data = (uniform.erfinv() * math.sqrt(2) * 0.02).clamp(-2, 2)
    found = only(lint(model), "TI403")
    assert "98 standard deviations out" in found.message


def test_padding_row_wiped_out() -> None:
    model = Net()
    nn.init.normal_(model.embed.weight, std=0.02)
    found = only(lint(model), "TI405")
    assert (found.site, found.severity) == ("embed.weight", "warning")


def test_what_starts_at_zero_is_a_note() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    nn.init.zeros_(model.get_parameter("1.weight"))
    assert [(one.code, one.severity) for one in lint(model)] == [("TI401", "note")]
    nn.init.zeros_(model.get_parameter("0.weight"))
    assert [(one.code, one.severity) for one in lint(model)] == [("TI401", "error")] * 2


def test_constants_that_are_no_mistake() -> None:
    blur = nn.Conv2d(8, 8, 3, groups=8)
    nn.init.constant_(blur.weight, 1 / 9)
    assert found(blur, "TI401") == []
    fixed = nn.Linear(8, 8)
    nn.init.constant_(fixed.weight, 1 / 8)
    assert [severity for severity, *_ in found(fixed, "TI401")] == ["error"]
    fixed.weight.requires_grad_(False)
    assert [severity for severity, *_ in found(fixed, "TI401")] == ["note"]


def test_what_is_a_norm_by_name() -> None:
    class NormalHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(64))

    class RMSNormalization(NormalHead):
        pass

    assert found(NormalHead(), "TI402") == []
    assert [severity for severity, *_ in found(RMSNormalization(), "TI402")] == ["warning"]
