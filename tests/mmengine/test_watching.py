"""Other people's code is watched at a cost that grows with the model alone; parameters are followed as they move."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import torchinit
from tests.stats import assert_std
from torchinit import Name, Normal, Rule, Uniform
from torchinit.mmengine import WEIGHT_INITIALIZERS, BaseModule, ModuleDict, Sequential, initialize
from torchinit.plans.report import Report
from torchinit.tracing import MemoryIndex


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
    add = MemoryIndex.add

    def counted(self: MemoryIndex, key: int, tensor: torch.Tensor) -> None:
        added.append(key)
        add(self, key, tensor)

    monkeypatch.setattr(MemoryIndex, "add", counted)
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
    assert file == "tests/mmengine/test_watching.py"
    assert lines[int(number) - 1].strip() == "nn.init.constant_(self.fc.weight, 3.0)"
    assert record.operation == "fill_(value=3)"
    assert f"`init_weights` in Own at {record.line}: fill_(value=3)" in report.table(full=True)
    assert (report["1.weight"].line, report["1.weight"].operation) == ("", "")
    assert Report.from_json(report.to_json()) == report


class Drawing(BaseModule):
    """Code that draws in place, makes tensors, picks at random, and seeds torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 6)

    def init_weights(self, **_: Any) -> None:
        torch.manual_seed(7)
        nn.init.normal_(self.fc.weight, std=0.02)
        with torch.no_grad():
            self.fc.bias.copy_(torch.rand(6)).add_(torch.randn_like(self.fc.bias))
            self.fc.bias[torch.randperm(6)[:2]] = 0


def test_with_a_seed_what_code_draws_belongs_to_names() -> None:
    models: list[Any] = [ModuleDict({name: Drawing() for name in order}) for order in ("ab", "bca")]
    before = torch.get_rng_state()
    for model in models:
        model.init_weights(seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    for name in "ab":
        assert torch.equal(models[0][name].fc.weight, models[1][name].fc.weight)
        assert torch.equal(models[0][name].fc.bias, models[1][name].fc.bias)
    assert not torch.equal(models[0]["a"].fc.bias, models[0]["b"].fc.bias)
    by_a_rule = ModuleDict({"a": Drawing()})
    torchinit.initialize(by_a_rule, Rule(Name("a.fc.weight"), Normal(std=0.02)), seed=3)
    assert torch.equal(by_a_rule.get_parameter("a.fc.weight"), models[0]["a"].fc.weight)


class Adding(BaseModule):
    """A parent whose code adds noise to what its child's code has made of noise."""

    def __init__(self) -> None:
        super().__init__()
        self.child = Noisy()

    def init_weights(self, **_: Any) -> None:
        super().init_weights()
        self.child.fc.weight.data.add_(torch.randn(self.child.fc.weight.shape))


class Noisy(BaseModule):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 64)

    def init_weights(self, **_: Any) -> None:
        weight = self.fc.weight.data
        weight.copy_(torch.randn(weight.shape))


def test_code_that_draws_after_other_code_gets_other_numbers() -> None:
    """Equal noise twice would have a standard deviation of 2."""
    model = Adding()
    model.init_weights(seed=0)
    assert_std(model.child.fc.weight, 2**0.5)


@WEIGHT_INITIALIZERS.register_module(name="TestNoise")
class Noise:
    """A registered initializer that draws."""

    def __call__(self, module: nn.Module) -> None:
        for part in module.modules():
            if isinstance(part, nn.Linear):
                nn.init.uniform_(part.weight, -3, 3)


@pytest.mark.parametrize("extra", [False, True])
def test_what_a_registered_initializer_draws_belongs_to_names(extra: bool) -> None:
    model: Any = nn.ModuleDict({**({"before": nn.Linear(2, 2)} if extra else {}), "fc": nn.Linear(4, 6)})
    initialize(model, {"type": "TestNoise"}, seed=5)
    expected: Any = nn.ModuleDict({"fc": nn.Linear(4, 6)})
    torchinit.initialize(expected, Rule(Name("fc.weight"), Uniform(-3, 3)), seed=5)
    assert torch.equal(model["fc"].weight, expected["fc"].weight)


def test_without_a_seed_code_draws_from_torchs_generator() -> None:
    model = Sequential(Noisy())
    torch.manual_seed(1)
    model.init_weights()
    found = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(model.get_parameter("0.fc.weight"), torch.randn(64, 64))
    assert torch.equal(found, torch.rand(3))


class Reciting(BaseModule):
    """Code that carries out a recipe."""

    def __init__(self) -> None:
        super().__init__({"type": "Constant", "val": 3, "layer": "Linear"})
        self.fc = nn.Linear(4, 6)

    def init_weights(self, **_: Any) -> Any:
        super().init_weights()
        torchinit.initialize(self.fc, Rule(Name("weight"), Normal(std=0.02), "mine"), seed=7)


@pytest.mark.parametrize("seed", [None, 1])
def test_what_a_recipe_writes_that_code_runs_is_recorded(seed: int | None) -> None:
    report: Any = ModuleDict({"a": Reciting()}).init_weights(seed=seed)
    assert (report["a.fc.weight"].rule, report["a.fc.weight"].fill) == ("mine", "Normal(std=0.02)")
    assert report["a.fc.weight"].over == ("ConstantInit: val=3, bias=0",)
    assert report["a.fc.bias"].rule == "ConstantInit: val=3, bias=0"
    assert report.untouched == ()


def test_the_collector_is_on_while_other_peoples_code_runs() -> None:
    """And off around it, where many objects are made that all stay."""
    seen: dict[str, bool] = {}

    class Inner(BaseModule):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def init_weights(self, **_: Any) -> Any:
            seen[self.name] = gc.isenabled()

    class Foreign(nn.Module):
        def init_weights(self) -> None:
            seen["foreign"] = gc.isenabled()

    assert gc.isenabled()
    Sequential(Inner("first"), Foreign(), Sequential(Inner("nested"))).init_weights()
    assert seen == {"first": True, "foreign": True, "nested": True}
    assert gc.isenabled()
    gc.disable()
    try:
        Sequential(Inner("first"), Foreign()).init_weights()
        assert seen == {"first": False, "foreign": False, "nested": True}
        assert not gc.isenabled()
    finally:
        gc.enable()
