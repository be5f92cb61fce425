"""Advice: a text that names a way out is followed here, with the input that it was said of, and has to lead there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn

from torchinit import (
    BaseModule,
    Constant,
    Kaiming,
    Leaf,
    Name,
    Normal,
    Pretrained,
    Rule,
    initialize,
    lint,
    materialize,
    mmengine,
    plan,
    verify_replicas,
)
from torchinit.mmengine import ModuleList, PretrainedInit, Sequential, load_checkpoint, load_state_dict

ALL = [Rule(Name("**"), Normal(std=0.5))]
PART = Rule(Leaf("weight"), Normal(std=0.5))
ENTRY: dict[str, Any] = {"type": "Normal", "std": 0.5, "layer": "Linear"}

Step = Callable[[Any], object]


def meta(make: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return make()


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def own() -> Sequential:
    return Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), init_cfg=ENTRY)


def holder() -> nn.Module:
    return nn.ModuleDict({"backbone": own(), "head": nn.Linear(2, 2)})


def half(make: Callable[[], Any]) -> Any:
    model = meta(make)
    (model["head"] if isinstance(model, nn.ModuleDict) else model[0]).to_empty(device="cpu")
    return model


def emptied(model: Any) -> Any:
    """The model with memory, and values that are none."""
    for tensor in (*model.to_empty(device="cpu").parameters(), *model.buffers()):
        tensor.detach().fill_(7)
    return model


def moved(model: Any) -> Any:
    model.init_weights()
    return model.to("meta")


def fresh(model: Any) -> Any:
    for module in model.modules():
        if hasattr(module, "is_init"):
            module.is_init = False
    return model


class Token(BaseModule):
    """A parameter and a buffer that nothing but the constructor makes."""

    def __init__(self, scale: int = 2, init_cfg: Any = None) -> None:
        super().__init__(init_cfg)
        self.token = nn.Parameter(torch.zeros(scale))
        self.register_buffer("steps", torch.arange(scale + 1))


class Written(Token):
    """The same with an init_weights that writes them."""

    def init_weights(self) -> None:  # type: ignore[override]
        nn.init.ones_(self.token)
        self.steps.copy_(torch.arange(len(self.steps)))  # type: ignore[operator, arg-type]


class Reset(Token):
    """The same with a reset_parameters that does."""

    def reset_parameters(self) -> None:
        nn.init.ones_(self.token)
        self.steps.copy_(torch.arange(len(self.steps)))  # type: ignore[operator, arg-type]


def with_memory_for_steps() -> Any:
    model = meta(lambda: Token(init_cfg={"type": "Constant", "val": 1, "param": "token"}))
    model.steps = torch.arange(3)
    return model


CASES: list[tuple[str, Callable[[], Any], Step, str, Step]] = [
    # what it is of, the input, the call that is refused, its text, and the way out
    (
        "initialize on meta",
        lambda: meta(plain),
        lambda model: initialize(model, ALL, seed=0),
        r"call torchinit\.materialize, or",
        lambda model: materialize(model, ALL, seed=0),
    ),
    (
        "initialize on meta, with part of a recipe",
        lambda: meta(plain),
        lambda model: initialize(model, PART, seed=0),
        r"or model\.to_empty\(device=\.\.\.\) first",
        lambda model: initialize(emptied(model), PART, seed=0),
    ),
    (
        "initialize on meta, with an entry",
        lambda: meta(plain),
        lambda model: mmengine.initialize(model, ENTRY, seed=0),
        r"call torchinit\.mmengine\.materialize\(module, init_cfg, device=\.\.\., seed=\.\.\.\), which carries it out$",
        lambda model: mmengine.materialize(model, ENTRY, device="cpu", seed=0).assert_ok(complete=True),
    ),
    (
        "init_weights on meta",
        lambda: meta(own),
        lambda model: model.init_weights(seed=0),
        r"nothing to write to; call torchinit\.materialize\(model, device=\.\.\., seed=\.\.\.\), which carries it out$",
        lambda model: materialize(model, device="cpu", seed=0).assert_ok(complete=True),
    ),
    (
        "init_weights on half a model",
        lambda: half(own),
        lambda model: model.init_weights(),
        r"move all of it there, model\.to\('meta'\), and call torchinit\.materialize\(model",
        lambda model: materialize(model.to("meta"), seed=0),
    ),
    (
        "materialize on half a model",
        lambda: half(holder),
        lambda model: materialize(model, seed=0),
        r"or move it there: model\.to\('meta'\)",
        lambda model: materialize(model.to("meta"), seed=0),
    ),
    (
        "materialize with memory",
        plain,
        lambda model: materialize(model, ALL, seed=0),
        r"it has memory already: call torchinit\.initialize$",
        lambda model: initialize(model, ALL, seed=0),
    ),
    (
        "materialize with memory, entries",
        plain,
        lambda model: mmengine.materialize(model, [ENTRY], seed=0),
        r"it has memory already: call torchinit\.mmengine\.initialize$",
        lambda model: mmengine.initialize(model, [ENTRY], seed=0),
    ),
    (
        "materialize with memory, a base module",
        own,
        lambda model: materialize(model, seed=0),
        r"it has memory already: call its init_weights\(seed=\.\.\.\)$",
        lambda model: model.init_weights(seed=0),
    ),
    (
        "materialize with memory, what holds a base module",
        holder,
        lambda model: materialize(model, seed=0),
        r"it has memory already: call init_weights\(seed=\.\.\.\) of backbone$",
        lambda model: model["backbone"].init_weights(seed=0),
    ),
    (
        "materialize with memory, nothing said",
        plain,
        lambda model: materialize(model, seed=0),
        r"it has memory already: call torchinit\.initialize with a recipe$",
        lambda model: initialize(model, ALL, seed=0),
    ),
    (
        "materialize without a recipe, nothing said",
        lambda: meta(plain),
        lambda model: materialize(model, seed=0),
        r"no BaseModule, so give a recipe, rules such as Rule\(Name\('\*\*'\), Normal\(std=0\.02\)\) or the name of",
        lambda model: materialize(model, Rule(Name("**"), Normal(std=0.02)), seed=0),
    ),
    (
        "materialize what was initialized before it was moved",
        lambda: moved(own()),
        lambda model: materialize(model, seed=0),
        "counts as initialized, though it has no memory: set is_init = False on its modules",
        lambda model: materialize(fresh(model), seed=0)["0.weight"].expected,
    ),
    (
        "materialize without a rule for a parameter",
        lambda: meta(plain),
        lambda model: materialize(model, [PART], seed=0, complete=True),
        r"no rule for 0\.bias",
        lambda model: materialize(model, [PART, Rule(Leaf("bias"), Constant(0.0))], seed=0),
    ),
    (
        "a parameter that only a constructor makes: an entry",
        lambda: meta(lambda: nn.ModuleList([Token(), Written()])),
        lambda model: materialize(model, seed=0),
        r"0\.token: .* in an entry of an init_cfg, for example dict\(type='Constant', val=1, param='token'\), or let",
        lambda _: materialize(with_memory_for_steps(), seed=0).assert_ok(complete=True),
    ),
    (
        "a parameter and a buffer that only a constructor makes: init_weights",
        lambda: meta(Token),
        lambda model: materialize(model, seed=0),
        r"steps: a buffer .* Let an init_weights\(\) or a reset_parameters\(\) write it",
        lambda _: materialize(meta(Written), seed=0).assert_ok(complete=True),
    ),
    (
        "a parameter and a buffer that only a constructor makes: reset_parameters",
        lambda: meta(Token),
        lambda model: materialize(model, seed=0),
        r"or let an init_weights\(\) or a reset_parameters\(\) write it",
        lambda _: materialize(meta(Reset), seed=0).assert_ok(complete=True),
    ),
    (
        "a buffer that no rule writes",
        lambda: meta(Token),
        lambda model: materialize(model, ALL, seed=0),
        r"Give it a rule with buffers = true, or a reset_parameters\(\)",
        lambda _: materialize(meta(Reset), ALL, seed=0),
    ),
    (
        "a rule that matches only buffers",
        plain,
        lambda model: initialize(model, Rule(Name("1.running_mean"), Constant(1.0)), strict=True),
        "matches only buffers; set buffers = true to write them",
        lambda model: initialize(model, Rule(Name("1.running_mean"), Constant(1.0), buffers=True), strict=True),
    ),
    (
        "an entry that matches only buffers",
        plain,
        lambda model: initialize(model, {"type": "Constant", "val": 1, "name": "1.running_mean"}, strict=True),
        "matches only buffers; set buffers = true to write them",
        lambda model: initialize(
            model, {"type": "Constant", "val": 1, "name": "1.running_mean", "buffers": True}, strict=True
        ),
    ),
    (
        "an entry that matches nothing",
        plain,
        lambda model: initialize(model, {**ENTRY, "layer": "Conv2d"}, strict=True),
        r"If that is intended, set optional = true\.",
        lambda model: initialize(model, {**ENTRY, "layer": "Conv2d", "optional": True}, strict=True),
    ),
    (
        "the name of an initializer",
        plain,
        lambda model: plan(model, "Kaiming"),
        r"write Kaiming\(\) in Python, or \{'type': 'Kaiming', 'name': '\*\*\.weight'\} as data",
        lambda model: (plan(model, Kaiming()), plan(model, {"type": "Kaiming", "name": "0.weight"})),
    ),
    (
        "a state dict as a recipe",
        plain,
        lambda model: plan(model, model.state_dict()),
        r"write Rule\('\*\*', Pretrained\(state_dict\)\)",
        lambda model: plan(model, Rule("**", Pretrained(model.state_dict()))),
    ),
    (
        "fans of a vector",
        plain,
        lambda model: initialize(model, Rule(Name("0.bias"), Kaiming())),
        "Give it an initializer that does not depend on fans, for example Constant or Normal",
        lambda model: [initialize(model, Rule(Name("0.bias"), init)) for init in (Constant(1.0), Normal())],
    ),
    (
        "verify_replicas alone",
        plain,
        verify_replicas,
        r"there is no process group: call torch\.distributed\.init_process_group first",
        lambda model: _in_a_group(lambda: verify_replicas(model)),
    ),
]


def _in_a_group(work: Callable[[], object]) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]  # as torch leaves it
    try:
        work()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("make", "refused", "text", "way"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_the_way_out_works(make: Callable[[], Any], refused: Step, text: str, way: Step) -> None:
    model = make()
    with pytest.raises(Exception, match=text):
        refused(model)
    way(model)


@pytest.mark.parametrize("load", [load_checkpoint, load_state_dict, lambda model, path: PretrainedInit(path)(model)])
def test_loading_into_a_model_on_meta(load: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "weights.pth")
    state = plain().state_dict()
    torch.save(state, path)
    source = state if load is load_state_dict else path
    model = meta(plain)
    with pytest.raises(
        RuntimeError, match=r"rule that loads it, Rule\(Name\('\*\*'\), Pretrained\(\.\.\.\)\), or model\.to_empty"
    ):
        load(model, source)
    materialize(model, Rule(Name("**"), Pretrained(source)), seed=0)
    assert torch.equal(model[0].weight, state["0.weight"])
    other = emptied(meta(plain))
    load(other, source)
    assert torch.equal(other[0].weight, state["0.weight"])


def test_the_lint_of_a_model_on_meta() -> None:
    model = meta(plain)
    (finding,) = [one for one in lint(model) if one.code == "TI102"]
    assert "give the model memory (model.to_empty(device=...)) and initialize it" in str(finding)
    initialize(emptied(model), ALL, seed=0)
    assert not [one for one in lint(model) if one.code == "TI102"]


def test_what_a_warning_says_of_layers_that_have_no_weight(caplog: pytest.LogCaptureFixture) -> None:
    for layer in (nn.LSTM(2, 3), nn.MultiheadAttention(4, 2)):
        mmengine.initialize(nn.Sequential(layer), {"type": "Constant", "val": 2, "layer": type(layer).__name__})
        (text,) = [text for text in caplog.messages if type(layer).__name__ in text and "instead: name=" in text]
        name = text.rpartition("instead: name=")[2].strip("'")
        report = mmengine.initialize(nn.Sequential(layer), {"type": "Constant", "val": 2, "name": name}, strict=True)
        assert report.records


def test_modules_below_plain_containers() -> None:
    class Tower(BaseModule):
        def __init__(self, container: Any) -> None:
            super().__init__()
            self.box = container([own()])

    report = Tower(nn.ModuleList).init_weights()
    assert report is not None
    assert report.unused[0].endswith("below a plain container; init_weights(containers=True) does")
    again = Tower(nn.ModuleList).init_weights(containers=True)
    assert again is not None
    assert again["box.0.0.weight"].rule.startswith("NormalInit")
    report = materialize(meta(lambda: Tower(nn.ModuleList)), seed=0)
    assert report.unused[0].endswith("through a torchinit.mmengine.Sequential, ModuleList or ModuleDict")
    assert materialize(meta(lambda: Tower(ModuleList)), seed=0)["box.0.0.weight"].rule.startswith("NormalInit")


def test_a_call_on_meta_that_failed_leaves_nothing_that_keeps_the_way_out_from_working() -> None:
    class Code(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def init_weights(self) -> None:  # type: ignore[override]
            super().init_weights()
            nn.init.constant_(self.fc.weight, 3.0)

    class Model(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.code, self.leaf = Code(), own()

    model = meta(Model)
    with pytest.raises(RuntimeError, match="materialize"):
        model.init_weights()
    assert not any(module.is_init for module in model.modules() if isinstance(module, BaseModule))
    materialize(model, seed=0)
    assert model.code.fc.weight.unique().tolist() == [3.0]


def test_a_layer_that_is_not_a_bare_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "torchinit"):
        mmengine.initialize(plain(), {**ENTRY, "layer": "torch.nn.Linear"})
    bare = caplog.messages[0].rpartition("give the bare name of a class, ")[2].strip("'")
    assert mmengine.initialize(plain(), {**ENTRY, "layer": bare}, strict=True)["0.weight"].fill == "Normal(std=0.5)"
