"""TI2: checkpoints that do not fit, and what is undone after it was written or loaded."""

from __future__ import annotations

import torch
from torch import nn

from tests.linting.models import Branched, Net, apply, draw, only, traced, zero
from torchinit import lint, trace
from torchinit.linting import ConstructionRecorder


def test_checkpoint_that_matches_nothing() -> None:
    model = Net()
    state = {f"backbone.{name}": value for name, value in Net().state_dict().items()}
    model.load_state_dict(state, strict=False)
    found = only(lint(model, loaded=state), "TI201")
    assert found.severity == "error"
    assert "none of 19 keys is in the model" in found.message
    assert "with prefix='backbone.' 19 of 19 match" in found.message


def test_checkpoint_with_a_layer_renamed() -> None:
    model = Net()
    state = Net().state_dict()
    state["classifier.weight"] = state.pop("head.weight")
    model.load_state_dict(state, strict=False)
    findings = lint(model, loaded=state)
    assert [(one.code, one.severity) for one in findings] == [("TI201", "warning"), ("TI202", "warning")]
    assert "1 of 19 keys are not in the model: classifier.weight" in findings[0].message
    assert "1 parameter: head.weight" in findings[1].message


def test_init_after_loading() -> None:
    model = Net()
    state = Net().state_dict()
    model.load_state_dict(state)
    nn.init.xavier_uniform_(model.head.weight)
    found = only(lint(model, loaded=state), "TI203")
    assert found.site == "head.weight"
    assert found.message == "1,600 of 1600 values are not those that were loaded"


def test_a_state_of_another_shape_or_with_a_prefix_too_few() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)))
    findings = lint(model, loaded={"0.weight": torch.zeros(4, 4)})
    assert "with rename=[['^', '0.']] 1 of 2 match" in findings[0].message
    findings = lint(model, loaded={"0.0.weight": torch.zeros(4, 5), "0.0.bias": model.get_parameter("0.0.bias")})
    assert [(one.site, one.message) for one in findings] == [
        ("0.0.weight", "has shape 4x4, and was loaded as 4x5")
    ]  # fmt: skip


def test_loaded_and_then_drawn() -> None:
    model, state = Branched(), Branched().state_dict()

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
    assert found.line.rpartition(":")[0].endswith("test_ti2_checkpoint.py")
    assert tuple(traced(model, head, load, ignore=["TI204"])) == ()


def test_general_case_after_the_special_one() -> None:
    findings = traced(Branched(), apply(zero), apply(draw))
    (found,) = findings
    assert (found.code, found.severity, found.site) == ("TI204", "warning", "branches.0.down.weight")
    assert found.message.startswith("normal_(mean=0, std=0.02) undoes zero_ of ")
    assert found.message.endswith("as in 2 others: branches.1.down.weight, branches.2.down.weight")
    assert "models.py:" in found.line
    assert found.line != found.message.split()[5].removesuffix(",")


def test_the_right_order_is_no_finding() -> None:
    findings = traced(Branched(), apply(draw), apply(zero))
    assert [(one.code, one.severity) for one in findings] == [("TI401", "note")] * 3
    assert all("models.py:" in one.line for one in findings)


def test_initialized_twice_by_two_functions() -> None:
    def again(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)

    (found,) = traced(Branched(), apply(draw), apply(again))
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

    (found,) = traced(Branched(), apply(both))
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

    assert tuple(traced(Branched(), apply(reset), apply(draw))) == ()
    recorder = ConstructionRecorder()
    with recorder:
        model = Branched()
        model.apply(draw)
    assert tuple(lint(model, trace=recorder.of(model))) == ()


def test_undone_within_a_constructor() -> None:
    class Whole(Branched):
        def __init__(self) -> None:
            super().__init__()
            self.apply(zero)
            self.apply(draw)

    recorder = ConstructionRecorder()
    with recorder:
        model = Whole()
        Branched()
    (found,) = lint(model, trace=recorder.of(model))
    assert (found.code, found.site) == ("TI204", "branches.0.down.weight")
