"""A model's own start on one process: what it takes, whom it asks, and what it says of what is left."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import torchinit
from tests.peers.trees import Node, build, trees
from torchinit import (
    BaseModule,
    ConfigError,
    Name,
    Normal,
    PlanError,
    Rule,
    RunError,
    fingerprint,
    initialize,
    materialize,
    mmengine,
    seeded,
    trace,
)
from torchinit.distributed.own_code import light_parameters
from torchinit.mmengine import Sequential

ENTRY = {"type": "Normal", "std": 0.5, "layer": "Linear"}


def meta(make: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return make()


class Net(BaseModule):
    """A layer that the entry is for, and one that it is not for."""

    fc: Any
    conv: Any

    def __init__(self, init_cfg: Any = ENTRY) -> None:
        super().__init__(init_cfg)
        self.fc = nn.Linear(4, 5)
        self.conv = nn.Conv1d(2, 3, 2)


@pytest.mark.slow("hypothesis draws whole module trees")
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(trees(), st.integers(0, 2**31))
def test_a_tree_starts_as_init_weights_starts_it(node: Node, seed: int) -> None:
    one: Any = build(node, torchinit.mmengine)
    with light_parameters():  # losses keep buffers that only their callers could make
        model: Any = build(node, torchinit.mmengine)
    with trace(one) as seen:
        try:
            one.init_weights(seed=seed)
            error = ""
        except Exception as raised:  # noqa: BLE001  # whatever it is, it has to be the other's, too
            error = type(raised).__name__
    try:
        materialize(model, seed=seed)
        found = ""
    except Exception as raised:  # noqa: BLE001
        assume("left unwritten" not in str(raised))  # by a class of the trees' own
        found = type(raised).__name__
        assert all(parameter.is_meta for parameter in model.parameters())
    assert found == error
    ours, theirs = model.state_dict(), one.state_dict()
    for name in {write.site for write in seen.writes} & theirs.keys() if not error else ():
        assert torch.equal(ours[name], theirs[name]), name


def test_what_nothing_is_said_of_has_its_layers_default() -> None:
    one = Net()
    with seeded(one, 3):
        one.conv.reset_parameters()
    model = meta(Net)
    report = materialize(model, seed=3).assert_ok(complete=True)
    assert torch.equal(model.conv.weight, one.conv.weight)
    assert torch.equal(model.conv.bias, one.conv.bias)
    assert (report["conv.bias"].fill, report["conv.bias"].rule) == ("Conv1d.reset_parameters()", "own code")
    assert (report["fc.bias"].fill, report["fc.bias"].rule) == ("Constant(0)", "NormalInit: mean=0, std=0.5, bias=0")


def test_code_that_changes_what_is_there_finds_the_layers_default() -> None:
    class Scaled(Net):
        def init_weights(self) -> None:  # type: ignore[override]
            self.conv.weight.data.mul_(10)
            self.conv.bias.data[0] = 7.0

    model, one = meta(Scaled), Net()
    with seeded(one, 0):
        one.conv.reset_parameters()
    materialize(model, seed=0)
    assert torch.equal(model.conv.weight, one.conv.weight * 10)
    assert model.conv.bias.tolist() == [7.0, *one.conv.bias[1:].tolist()]


def test_it_takes_what_materialize_takes(caplog: pytest.LogCaptureFixture) -> None:
    steps: list[str] = []
    model = meta(Net)
    report = materialize(
        model, seed=0, stats=False, fingerprint=True, progress=lambda step: steps.append(step.site.name)
    )
    assert steps == ["fc.weight", "fc.bias"]
    assert {record.measured for record in report} == {None}
    assert report.fingerprint == fingerprint(model)
    assert str(report.noise) == "Keyed(seed=0)"
    assert model.is_init
    with caplog.at_level(logging.INFO, "torchinit"):
        materialize(meta(Net), seed=0)
    assert "\nfc.weight - torch.Size([5, 4]): \nNormalInit: mean=0, std=0.5, bias=0 \n " in caplog.messages


def test_an_entry_that_matches_nothing_is_a_warning_unless_strict() -> None:
    model = meta(lambda: Net([ENTRY, {**ENTRY, "layer": "Linaer"}]))
    with pytest.raises(PlanError, match=r"did you mean 'Linear' \(1 module\)"):
        materialize(model, seed=0, strict=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not model.is_init
    assert "did you mean 'Linear' (1 module)" in materialize(model, seed=0).unused[0]


def test_an_init_cfg_for_a_plain_model() -> None:
    plain = meta(lambda: nn.Sequential(nn.Linear(3, 4), nn.Conv1d(2, 2, 1)))
    one: Any = nn.Sequential(nn.Linear(3, 4))
    report = mmengine.materialize(plain, [ENTRY], seed=1).assert_ok(complete=True)
    mmengine.initialize(one, ENTRY, seed=1)
    assert torch.equal(plain[0].weight, one[0].weight)
    assert report["1.weight"].fill == "Conv1d.reset_parameters()"
    with pytest.raises(PlanError, match="matches none of"):
        mmengine.materialize(
            meta(lambda: nn.Sequential(nn.Linear(3, 4))), {**ENTRY, "layer": "Conv3d"}, seed=1, strict=True
        )
    with pytest.raises(RunError, match=r"has memory already: call torchinit\.mmengine\.initialize"):
        mmengine.materialize(nn.Linear(2, 2), ENTRY, seed=1)
    with pytest.raises(ConfigError, match="the recipe is empty"):  # which is not none
        materialize(meta(lambda: nn.Sequential(nn.Linear(3, 4))), [], seed=1)


class Waiting(nn.Module):
    """Plain modules with an init_weights: one that can be called, and one that wants to know of what."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def init_weights(self) -> None:
        nn.init.uniform_(self.weight, 2, 3)


class Applied(nn.Linear):
    def init_weights(self, module: nn.Module) -> None:
        raise AssertionError("it is for model.apply")


def test_a_model_that_holds_base_modules() -> None:
    def make() -> nn.Module:
        parts: dict[str, Any] = {"base": Net(), "plain": Waiting(), "applied": Applied(2, 2), "done": Net()}
        parts["done"].is_init = True
        return nn.Sequential(nn.ModuleDict(parts), nn.Sequential(nn.BatchNorm1d(2)))

    model = meta(make)
    report = materialize(model, seed=0).assert_ok(complete=True)
    assert report["0.base.fc.weight"].rule == "NormalInit: mean=0, std=0.5, bias=0"
    assert report["0.plain.weight"].rule == "Initialized by user-defined `init_weights` in Waiting"
    assert report["0.applied.weight"].fill == "Applied.reset_parameters()"
    assert report["0.done.fc.weight"].fill == "Linear.reset_parameters()"
    assert report["1.0.running_var"].fill == "BatchNorm1d.reset_running_stats()"
    one: Any = nn.ModuleDict({"0": nn.ModuleDict({"base": nn.ModuleDict({"fc": nn.Linear(4, 5)})})})
    initialize(one, Rule(Name("**.weight"), Normal(std=0.5)), seed=0)
    assert torch.equal(model[0]["base"].fc.weight, one.get_parameter("0.base.fc.weight"))


class Broken(nn.Linear):
    """A layer whose own code does not run."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            raise KeyError("no such luck")


def test_why_a_layer_did_not_reset() -> None:
    model = meta(lambda: Sequential(Broken(2, 2)))
    with pytest.raises(
        RunError, match=r"0\.weight: .* \(Broken\.reset_parameters\(\) raised KeyError: 'no such luck'\)"
    ):
        materialize(model, seed=0)
    model.init_cfg = {**ENTRY, "layer": "Broken"}
    materialize(model, seed=0).assert_ok(complete=True)


def test_a_weight_that_is_computed_wants_an_entry_of_its_own() -> None:
    model = meta(lambda: Sequential(weight_norm(nn.Linear(3, 3)), init_cfg=ENTRY))
    with pytest.raises(RunError, match=r"param='weight'"):
        materialize(model, seed=0)
    model.init_cfg = [ENTRY, {"type": "Constant", "val": 1, "param": "weight"}]
    materialize(model, seed=0)
    torch.testing.assert_close(model[0].weight, torch.ones(3, 3))


def test_tied_weights_stay_tied() -> None:
    class Tied(BaseModule):
        def __init__(self) -> None:
            super().__init__({**ENTRY, "layer": "Embedding"})
            self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.table.weight

    model, one = meta(Tied), Tied()
    materialize(model, seed=0)
    one.init_weights(seed=0)
    assert model.head.weight is model.table.weight
    assert torch.equal(model.head.weight, one.head.weight)


def test_an_error_in_the_midst_leaves_nothing_behind(tmp_path: Path) -> None:
    model = meta(lambda: Sequential(Net(), init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "none.pth")}))
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        materialize(model, seed=0)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not (model.is_init or model[0].is_init)
    assert [name for name, module in model.named_modules() if "_params_init_info" in vars(module)] == []
