"""Preserves: what is compared, in which units, and that both models are left as they were."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import nn

from torchinit import ProbeError, preserves


class Several(nn.Module):
    """A dict of outputs, of which one depends on a shift, one on a width, and one is no number."""

    def __init__(self, shift: float = 0.0, width: int = 3) -> None:
        super().__init__()
        self.layer, self.wide, self.shift = nn.Linear(4, 2), nn.Linear(4, width), shift

    def forward(self, values: torch.Tensor) -> dict[str, Any]:
        return {"logits": self.layer(values) + self.shift, "inner": (self.wide(values), None), "ids": values.argmax(-1)}


def same() -> tuple[Several, Several]:
    old = Several()
    return old, copy.deepcopy(old)


def test_the_same_model() -> None:
    old, new = same()
    found = preserves(old, new, torch.randn(5, 4))
    assert found
    assert [each.name for each in found.outputs] == ["logits", "inner[0]"]
    assert found.apart == 0.0
    assert str(found).startswith("the same function within 1e-05, on the given batch")


@pytest.mark.parametrize(("shift", "atol", "kept"), [(0.1, 1e-5, False), (0.1, 10.0, True), (1e-7, 1e-5, True)])
def test_distances_are_in_units_of_the_root_mean_square(shift: float, atol: float, kept: bool) -> None:
    old, new = same()
    new.shift = shift
    batch = torch.randn(50, 4)
    found = preserves(old, new, batch, atol=atol)
    assert bool(found) is kept
    logits = old(batch)["logits"].detach().double()
    rms = float(logits.square().mean().sqrt())
    assert found.outputs[0].rms == pytest.approx(rms, rel=1e-6)
    assert found.outputs[0].apart == pytest.approx(shift / rms, rel=1e-3, abs=1e-6)


def test_outputs_of_other_shapes_are_named_and_left_out() -> None:
    old, new = Several(), Several(width=5)
    new.layer = old.layer
    found = preserves(old, new, torch.randn(5, 4))
    assert found
    assert found.others == ("inner[0]",)
    assert "not compared, for other shapes: inner[0]" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["preserved"] is True


def test_a_batch_is_made_where_none_is_given() -> None:
    old = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert preserves(old, copy.deepcopy(old))
    changed = copy.deepcopy(old)
    nn.init.constant_(changed.get_parameter("1.bias"), 0.5)
    assert not preserves(old, changed)


def test_what_is_not_finite_is_another_function_unless_both_are() -> None:
    class Masked(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.layer, self.value = nn.Linear(2, 2), value

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layer(values)
            return torch.cat([out, torch.full_like(out[:, :1], self.value)], 1)

    old = Masked(float("-inf"))
    for value, kept in ((float("-inf"), True), (0.0, False), (float("nan"), False)):
        new = copy.deepcopy(old)
        new.value = value
        assert bool(preserves(old, new, torch.randn(3, 2))) is kept


def test_both_are_left_as_they_were() -> None:
    old = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    new = copy.deepcopy(old)
    states = [copy.deepcopy(model.state_dict()) for model in (old, new)]
    before = torch.get_rng_state()
    assert preserves(old, new)
    assert torch.equal(torch.get_rng_state(), before)
    for model, state in zip((old, new), states, strict=True):
        assert all(module.training for module in model.modules())
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("old", "new", "kind", "text"),
    [
        (
            nn.Linear(2, 2),
            nn.Linear(2, 3),
            ProbeError,
            r"returns output \[4, 2\], Linear output \[4, 3\]: nothing to compare",
        ),
        (nn.Linear(2, 2), nn.Linear(3, 2), ProbeError, r"the forward of Linear raised"),
        (nn.Linear(2, 2), nn.Linear(2, 2, device="meta"), ProbeError, r"Linear is on the meta device"),
        (nn.Linear(2, 2), {"weight": 1}, TypeError, r"preserves takes two models, but got a dict"),
    ],
)
def test_what_cannot_be_compared(old: Any, new: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        preserves(old, new, torch.randn(4, 2))


def test_what_proves_nothing() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ProbeError, match="nothing to compare"):
        preserves(model, model, torch.randn(0, 2))
    for atol, text in ((-1e-5, "atol must be at least 0"), (math.nan, "atol must not be NaN")):
        with pytest.raises(ValueError, match=text):
            preserves(model, model, torch.randn(4, 2), atol=atol)
