"""Writing: mistakes of order that only a trace shows, with the lines that made them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from torchinit import Findings, lint, trace
from torchinit.linting import Building

Loop = Callable[[nn.Module], Any]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Branch() for _ in range(3))
        self.head = nn.Linear(16, 20)
        self.register_buffer("freqs", torch.arange(8.0) + 1, persistent=False)


def draw(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def zero(module: nn.Module) -> None:
    if isinstance(module, Branch):
        nn.init.zeros_(module.down.weight)


def traced(model: nn.Module, *steps: Callable[[nn.Module], Any], **known: Any) -> Findings:
    """What is found in a model after these have been done to it."""
    with trace(model) as seen:
        for step in steps:
            step(model)
    return lint(model, trace=seen, **known)


def apply(function: Loop) -> Loop:
    return lambda model: model.apply(function)


def test_general_case_after_the_special_one() -> None:
    findings = traced(Net(), apply(zero), apply(draw))
    (found,) = findings
    assert (found.code, found.severity, found.site) == ("TI204", "warning", "branches.0.down.weight")
    assert found.message.startswith("normal_(mean=0, std=0.02) undoes zero_ of ")
    assert found.message.endswith("as in 2 others: branches.1.down.weight, branches.2.down.weight")
    assert "test_writing.py:" in found.line
    assert found.line != found.message.split()[5].removesuffix(",")


def test_the_right_order_is_no_finding() -> None:
    findings = traced(Net(), apply(draw), apply(zero))
    assert [(one.code, one.severity) for one in findings] == [("TI401", "note")] * 3
    assert all("test_writing.py:" in one.line for one in findings)


def test_initialized_twice_by_two_functions() -> None:
    def again(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)

    (found,) = traced(Net(), apply(draw), apply(again))
    assert (found.code, found.severity) == ("TI204", "note")
    assert "as in 6 others" in found.message


def test_general_and_special_case_module_by_module() -> None:
    def both(module: nn.Module) -> None:
        draw(module)
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)  # as draw does: no finding
        elif isinstance(module, nn.LayerNorm):
            nn.init.zeros_(module.bias)

    (found,) = traced(Net(), apply(both))
    assert (found.code, found.severity) == ("TI204", "note")


def test_a_part_that_is_undone() -> None:
    def forget(model: nn.Module) -> None:
        model.get_parameter("bias_ih_l0").data[4:8].fill_(1)

    def all_zero(model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if "bias" in name:
                nn.init.zeros_(parameter)

    findings = traced(nn.LSTM(4, 4), forget, all_zero, ignore=["TI107"])
    assert [(one.code, one.severity, one.site) for one in findings] == [("TI204", "warning", "bias_ih_l0")]
    assert tuple(traced(nn.LSTM(4, 4), all_zero, forget, ignore=["TI107"])) == ()


def test_what_a_layer_does_by_itself_may_be_replaced() -> None:
    def reset(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.reset_parameters()

    assert tuple(traced(Net(), apply(reset), apply(draw))) == ()
    building = Building()
    with building:
        model = Net()
        model.apply(draw)
    assert tuple(lint(model, trace=building.of(model))) == ()


def test_undone_within_a_constructor() -> None:
    class Whole(Net):
        def __init__(self) -> None:
            super().__init__()
            self.apply(zero)
            self.apply(draw)

    building = Building()
    with building:
        model = Whole()
        Net()
    (found,) = lint(model, trace=building.of(model))
    assert (found.code, found.site) == ("TI204", "branches.0.down.weight")


def test_buffer_that_to_empty_left_behind() -> None:
    with torch.device("meta"):
        model = Net()
    findings = traced(model, lambda one: one.to_empty(device="cpu"), apply(draw), ignore=["TI104", "TI107"])
    (found,) = findings
    assert (found.code, found.severity, found.site) == ("TI101", "error", "freqs")
    assert found.message == "8 values of memory that was never filled"


def test_layer_that_was_forgotten() -> None:
    def but_the_head(model: nn.Module) -> None:
        model.get_submodule("branches").apply(draw)

    findings = traced(Net(), but_the_head)
    assert [(one.code, one.severity, one.site) for one in findings] == [
        ("TI107", "warning", "head.weight"), ("TI107", "warning", "head.bias")
    ]  # fmt: skip
    assert findings[0].message == "nothing wrote to it, unlike the weight of other Linear layers"
    model = Net()
    kept = {name: value for name, value in model.state_dict().items() if name.startswith("head")}
    assert tuple(traced(model, but_the_head, loaded=kept, ignore=["TI202"])) == ()


def test_kinds_that_nothing_wrote_to_are_one_note() -> None:
    model = nn.Sequential(Net(), nn.LayerNorm(16))
    (found,) = traced(model, apply(draw))
    assert (found.code, found.severity) == ("TI107", "note")
    assert found.message == "nothing wrote to 2 parameters: 1.weight, 1.bias"
    assert tuple(traced(model)) == ()


def test_parametrized_weight_that_was_not_written() -> None:
    model = nn.Sequential(nn.Linear(8, 8), parametrizations.weight_norm(nn.Linear(8, 8)))
    findings = traced(model, apply(draw))
    assert [(one.code, one.severity, one.site) for one in findings] == [("TI107", "warning", "1.weight")]
    assert "a parametrization computes it from" in findings[0].message


def test_loaded_and_then_drawn() -> None:
    model, state = Net(), Net().state_dict()

    def load(one: nn.Module) -> None:
        one.load_state_dict(state)

    def head(one: nn.Module) -> None:
        nn.init.xavier_uniform_(one.get_parameter("head.weight"))

    findings = traced(model, load, head)
    assert [(one.code, one.severity, one.site) for one in findings] == [("TI203", "error", "head.weight")]
    assert findings[0].message.startswith("was loaded, and then written by uniform_(")
    with trace(model) as seen:
        load(model)
        head(model)
    (found,) = [one for one in lint(model, trace=seen, loaded=state) if one.code == "TI203"]
    assert found.message == "320 of 320 values are not those that were loaded"
    assert found.line.rpartition(":")[0].endswith("test_writing.py")
    assert tuple(traced(model, head, load, ignore=["TI204"])) == ()


def test_tied_weight_drawn_through_both_layers() -> None:
    def tied() -> nn.Module:
        model = nn.ModuleDict({"embed": nn.Embedding(20, 16), "head": nn.Linear(16, 20, bias=False)})
        model["head"].weight = model["embed"].weight
        return model

    def table(module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)

    def alike(module: nn.Module) -> None:
        if isinstance(module, (nn.Embedding, nn.Linear)):
            nn.init.normal_(module.weight)

    found = [one for one in traced(tied(), apply(table)) if one.code == "TI604"]
    assert [one.severity for one in found] == ["warning"]
    assert "and was drawn 2 times: normal_(mean=0, std=1), normal_(mean=0, std=0.02)" in found[0].message
    assert [one.severity for one in traced(tied(), apply(alike)) if one.code == "TI604"] == ["note"]
