"""What nobody has filled or can fill is in the report of ``init_weights``, and fails it."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchinit
from torchinit import PlanError, Report, ReportError, Rule, Zeros, lint, materialize
from torchinit.mmengine import BaseModule, Sequential, initialize
from torchinit.tracing.ends import STAMPS, ends_of

CFG = {"type": "Normal", "layer": "Linear", "std": 0.02}
UNFILLED = ("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked")


class Net(BaseModule):
    """A linear layer that is initialized, and a norm that is not."""

    def __init__(self) -> None:
        super().__init__(CFG)
        self.fc = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(2)


def emptied() -> Any:
    with torch.device("meta"):
        net = Net()
    return net.to_empty(device="cpu")


def linted(net: Any) -> set[str]:
    """What the linter finds unfilled; memory that happens to hold NaN shows in the values instead."""
    return {finding.site for finding in lint(net, select=["TI101", "TI103", "TI105"])}


def with_memory_of_nan(make: Callable[[], Any]) -> Any:
    torch.use_deterministic_algorithms(True)  # torch then hands out memory full of NaN
    try:
        return make()
    finally:
        torch.use_deterministic_algorithms(False)


def test_memory_that_happens_to_hold_nan() -> None:
    net = with_memory_of_nan(emptied)
    assert net.init_weights().unfilled == UNFILLED
    assert net.norm.weight.isnan().all()
    assert linted(net) == {*UNFILLED}


def test_after_to_empty(caplog: pytest.LogCaptureFixture) -> None:
    net = emptied()
    with caplog.at_level(logging.WARNING, "torchinit"):
        report = net.init_weights()
    assert report.unfilled == UNFILLED
    assert f"nobody has written {', '.join(UNFILLED)}: they hold whatever their memory held before" in caplog.messages
    assert f"5 tensors never filled: {', '.join(UNFILLED)}" in report.summary().splitlines()
    with pytest.raises(
        ReportError, match=r"5 findings: .*\n  norm\.weight: never filled, .*: cover it with a rule"
    ) as e:
        report.assert_ok()
    assert [text.split(":")[0] for text in e.value.problems] == [*UNFILLED]
    with pytest.raises(ReportError) as complete:
        report.assert_ok(complete=True)
    assert complete.value.problems == e.value.problems  # told once
    assert Report.from_json(report.to_json()) == report
    assert linted(net) == {*UNFILLED}


NOTHING = Rule("nothing", Zeros(), optional=True)

WAYS: dict[str, Callable[[Any], Any]] = {
    "reset_parameters": lambda net: net.norm.reset_parameters(),
    "load_state_dict": lambda net: net.load_state_dict(Net().state_dict()),
    "a rule for buffers": lambda net: torchinit.initialize(
        net, {"rules": [{"type": "Ones", "name": "norm.**", "buffers": True}, {"type": "Zeros", "name": "fc.**"}]}
    ),
    "by hand, unseen": lambda net: [tensor.data.zero_() for tensor in net.state_dict().values()],
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_ways_out(way: Callable[[Any], Any]) -> None:
    net = emptied()
    way(net)
    net.norm.num_batches_tracked.zero_()  # which no rule writes
    assert net.init_weights().assert_ok().unfilled == ()
    assert initialize(net, CFG).assert_ok().unfilled == ()


def test_it_is_in_the_reports_of_a_recipe_too() -> None:
    net = nn.Sequential(emptied())
    rules = {"rules": [{"type": "Normal", "std": 0.02, "layer": "Linear"}]}
    report = torchinit.initialize(net, rules, seed=0)
    assert report.unfilled == tuple(f"0.{name}" for name in UNFILLED)
    with pytest.raises(ReportError, match=r"0\.norm\.running_var: never filled"):
        report.assert_ok()


def test_code_of_the_users_own_is_watched() -> None:
    """What is registered or given other memory while ``init_weights`` runs."""

    class Own(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.zeros(3))
            self.second = nn.Parameter(torch.empty(3))

        def init_weights(self, **_: Any) -> Any:
            self.first.data = torch.empty(3)
            self.late = nn.Parameter(torch.empty(2, 2))
            self.register_buffer("table", torch.empty(2))
            self.filled = nn.Parameter(torch.empty(2, 2).normal_())
            self.second.data.zero_()

    report: Any = Own().init_weights()
    assert report.unfilled == ("first", "late", "table")


def test_what_nobody_writes_holds_in_the_end_what_it_would_have_held() -> None:
    """As below MMEngine, where models with forgotten weights start with whatever the memory held."""

    class Forgetful(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(5, 5))
            self.small = nn.Parameter(torch.empty(3, dtype=torch.bfloat16))

    def ends(tensor: torch.Tensor) -> tuple[int, int]:
        found = ends_of(tensor)
        assert found is not None
        return found.values

    model = with_memory_of_nan(Forgetful)
    tensors = model.weight, model.small
    assert [ends(tensor) for tensor in tensors] == [STAMPS[8], STAMPS[2]]
    report: Any = model.init_weights()
    assert all(tensor.isnan().all() for tensor in tensors)
    assert report.unfilled == ("weight", "small")
    assert torchinit.initialize(model, NOTHING).unfilled == ("weight", "small")  # it is known all the same


def test_what_writes_nothing_is_not_complete() -> None:
    report = torchinit.initialize(nn.Linear(2, 2), NOTHING)
    assert report.untouched == ("weight", "bias")
    with pytest.raises(ReportError, match="2 findings"):
        report.assert_ok(complete=True)


def test_values_tell_of_plain_modules() -> None:
    """Nobody watches those; what they hold may show it all the same."""
    model: Any = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    rules = {"rules": [{"type": "Normal", "std": 0.02, "name": "0.weight"}]}
    assert torchinit.initialize(model, rules, seed=0).assert_ok().unfilled == ()
    model[0].weight.data.fill_(torch.nan)
    model[0].bias.data.copy_(
        torch.tensor([0x7F3A_0000_1234, 0x7F3A_0000_5678], dtype=torch.int64).view(torch.float32)[:3]
    )
    model[1].running_mean.fill_(torch.nan)
    assert torchinit.initialize(model, rules, seed=0).unfilled == ("0.bias", "1.running_mean")


def test_what_materialize_left_as_it_was() -> None:
    """Buffers may have memory before."""
    with torch.device("meta"):
        model: Any = nn.Sequential(nn.Linear(2, 2))
    model.register_buffer("table", torch.full((3,), torch.nan))
    report = materialize(model, {"rules": [{"type": "Ones", "name": "**"}]}, seed=0)
    assert report.unfilled == ("table",)
    model.table.fill_(1.0)
    assert torchinit.initialize(model, {"rules": [{"type": "Ones", "name": "**"}]}, seed=0).assert_ok(complete=True)


# -- what cannot be filled -------------------------------------------------------------------------------------------


class Odd(BaseModule):
    """Parameters that no init_cfg can write."""

    def __init__(self) -> None:
        super().__init__({"type": "Normal", "layer": "Linear"})
        self.fc = nn.Linear(4, 3)
        self.codes = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of what has no elements
            self.none = nn.Linear(0, 3)


def test_complete_means_complete() -> None:
    model = Odd()
    report: Any = model.init_weights()
    with pytest.raises(ReportError, match=r"1 finding: .*\n  codes: holds whole numbers: load it \(Pretrained\), or m"):
        report.assert_ok(complete=True)
    assert "none.weight" not in report.untouched
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize("entry", [{"type": "Normal", "layer": "Linear"}, {"rules": [{"type": "Ones", "name": "**"}]}])
def test_partitioned(entry: Any) -> None:
    model = Sequential(nn.Linear(4, 3), nn.Linear(2, 2), init_cfg=entry if "type" in entry else None)
    for parameter in model[0].parameters():
        parameter.data = torch.empty(0)
    setattr(model[0].weight, "ds_shape", torch.Size([3, 4]))  # noqa: B010  # DeepSpeed's mark
    texts = [
        "0.weight: has no elements, but its Linear(4, 3) has 12: it is partitioned (ds_shape (3, 4)). Write it",
        "0.bias: has no elements, but its Linear(4, 3) has 3: is it partitioned? gather it first",
    ]
    if "type" in entry:
        reports = [initialize(model, entry, seed=0), model.init_weights()]
    else:
        with pytest.raises(PlanError, match=re.escape(texts[0].replace(": has", " has", 1))):
            torchinit.initialize(model, entry, seed=0)
        reports = []
    for report in reports:
        assert report is not None
        report.assert_ok()
        with pytest.raises(ReportError, match=f"{re.escape(texts[0])}.*\n  {re.escape(texts[1])}"):
            report.assert_ok(complete=True)
