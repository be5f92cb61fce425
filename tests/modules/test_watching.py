"""Other people's code is watched at a cost that grows with the model alone; parameters are followed as they move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from torchinit.core.reports import Report
from torchinit.modules import BaseModule, Sequential
from torchinit.tracing import Watch


class Own(BaseModule):
    """A layer that initializes itself, and another one if it is told to."""

    def __init__(self, other: nn.Module | None = None) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.others = (other,)

    def init_weights(self, **_: Any) -> Any:
        nn.init.constant_(self.fc.weight, 3.0)
        for other in self.others:
            for parameter in other.parameters() if other is not None else ():
                parameter.data.fill_(5.0)


def test_each_parameter_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[int] = []
    add = Watch.add

    def counted(self: Watch, key: int, tensor: torch.Tensor) -> None:
        added.append(key)
        add(self, key, tensor)

    monkeypatch.setattr(Watch, "add", counted)
    model = Sequential(*(Own() for _ in range(20)))
    report = model.init_weights()
    assert report is not None
    assert len(report) == 20
    assert len(added) == len(list(model.parameters()))


def test_a_parameter_that_an_init_cfg_gave_other_memory_is_followed() -> None:
    computed = Sequential(weight_norm(nn.Linear(2, 2)), init_cfg={"type": "Orthogonal", "layer": "Linear"})
    last = Own(computed)
    model = Sequential(Own(), computed, last)
    homes = {name: parameter.data_ptr() for name, parameter in computed.named_parameters()}
    report = model.init_weights()
    assert report is not None
    assert any(parameter.data_ptr() != homes[name] for name, parameter in computed.named_parameters())
    for name, parameter in computed.named_parameters(prefix="1"):
        assert torch.equal(parameter, torch.full_like(parameter, 5.0))
        assert report[name].rule == "Initialized by user-defined `init_weights` in Own"


def test_the_report_names_the_line_and_the_operation() -> None:
    model = Sequential(Own(), nn.Linear(2, 2), init_cfg={"type": "Constant", "val": 1, "layer": "Linear"})
    report = model.init_weights()
    assert report is not None
    record = report["0.fc.weight"]
    lines = Path(__file__).read_text("utf-8").splitlines()
    file, _, number = record.line.partition(":")
    assert file == "tests/modules/test_watching.py"
    assert lines[int(number) - 1].strip() == "nn.init.constant_(self.fc.weight, 3.0)"
    assert record.operation == "fill_(value=3)"
    assert f"`init_weights` in Own at {record.line}: fill_(value=3)" in str(report)
    assert (report["1.weight"].line, report["1.weight"].operation) == ("", "")
    assert Report.from_json(report.to_json()) == report
