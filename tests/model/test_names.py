"""Names: what wrappers put into a name comes out again; a net alone, in a wrapper or as a stage has the same ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.strategies import names
from torchinit import (
    ConfigError,
    Kaiming,
    Leaf,
    Name,
    Normal,
    Ones,
    PlanError,
    Rule,
    Zeros,
    fingerprint,
    initialize,
    materialize,
    plan,
    seeded,
)
from torchinit.mmengine import BaseModule
from torchinit.model.names import WRAPPERS, Counted, normalize


@pytest.mark.parametrize(
    ("raw", "bare"),
    [
        ("weight", "weight"),
        ("module.weight", "weight"),
        ("module.module._orig_mod.0.weight", "0.weight"),
        ("layers.3._fsdp_wrapped_module._checkpoint_wrapped_module.attn.weight", "layers.3.attn.weight"),
        ("conv.parametrizations.weight.original", "conv.weight"),
        ("conv.parametrizations.weight.original0", "conv.weight"),
        ("parametrizations.weight.original1", "weight"),
        ("conv.parametrizations.weight.0._u", "conv.parametrizations.weight.0._u"),
        ("submodule.weight", "submodule.weight"),
        ("my_module.weight", "my_module.weight"),
        ("layer.module", "layer.module"),
    ],
)
def test_normalize(raw: str, bare: str) -> None:
    assert normalize(raw) == bare


@given(names(), st.lists(st.tuples(st.integers(0, 5), st.sampled_from(sorted(WRAPPERS))), max_size=4))
def test_wrappers_at_any_depth_leave_no_trace(name: str, wrappers: list[tuple[int, str]]) -> None:
    parts = name.split(".")
    for at, wrapper in wrappers:
        parts.insert(min(at, len(parts) - 1), wrapper)
    assert normalize(".".join(parts)) == name
    assert normalize(name) == name


NORMAL = [Rule("**", Normal())]


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


class Wrapper(nn.Module):
    """As a LightningModule: the net beside what is the wrapper's own."""

    def __init__(self, leaf: str = "net") -> None:
        super().__init__()
        self.loss = nn.Linear(2, 2)
        self.add_module(leaf, net())
        self.scale = nn.Parameter(torch.ones(2))

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(net() for _ in range(4))


def values(model: nn.Module) -> list[torch.Tensor]:
    return list(model.parameters())


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(values(first), values(second), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def in_tree(parts: list[str], model: nn.Module) -> nn.Module:
    for part in reversed(parts):
        model = nn.ModuleDict({part: model})
    return model


def shape_of(model: nn.Module) -> Any:
    tree = [(name, id(module), list(module._modules), sorted(vars(module))) for name, module in model.named_modules()]
    return tree, [name for name, _ in model.named_parameters()]


PARTS = st.lists(st.sampled_from(["a", "layers", "0", "7", "net"]), min_size=1, max_size=4)


@given(PARTS, PARTS, st.integers(0, 2**40))
def test_names_are_counted_from_the_root_that_is_meant(path: list[str], above: list[str], seed: int) -> None:
    under, inside = ".".join(above), ".".join(path)
    bare, stage = net(), in_tree(above, net())
    initialize(bare, NORMAL, seed=seed)
    initialize(stage, NORMAL, seed=seed)
    wrapped = in_tree(path, net())
    before = shape_of(wrapped)
    report = initialize(wrapped, NORMAL, seed=seed, inside=inside, fingerprint=True)
    assert shape_of(wrapped) == before
    assert report.fingerprint == fingerprint(bare)
    assert [record.name for record in report] == [step.site.name for step in plan(bare, NORMAL)]
    other = net()
    report = initialize(other, NORMAL, seed=seed, under=under, fingerprint=True)
    assert report.fingerprint == fingerprint(stage)
    both = initialize(wrapped, NORMAL, seed=seed, inside=inside, under=under, fingerprint=True)
    assert both.fingerprint == fingerprint(stage)


def test_a_wrapper_keeps_what_is_its_own() -> None:
    bare, wrapped = net(), Wrapper()
    initialize(bare, NORMAL, seed=3)
    report = initialize(wrapped, NORMAL, seed=3, inside="net")
    assert same(wrapped.get_submodule("net"), bare)
    assert {"loss.weight", "scale", "0.weight", "1.bias"} <= {record.name for record in report}
    assert {record.name for record in initialize(wrapped, NORMAL, seed=3)} >= {"net.0.weight", "loss.weight"}


def test_matching_and_draws_without_a_seed_go_by_the_same_names() -> None:
    wrapped, bare = Wrapper(), net()
    steps = {step.site.name for step in plan(wrapped, [Rule(Name("0.*"), Zeros())], inside="net")}
    assert steps == {"0.weight", "0.bias"}
    stage = {step.site.name for step in plan(bare, [Rule(Name("layers.3.2.*"), Ones())], under="layers.3")}
    assert stage == {"layers.3.2.weight", "layers.3.2.bias"}
    alone = in_tree(["net"], net())
    torch.manual_seed(0)
    initialize(bare, NORMAL)
    torch.manual_seed(0)
    initialize(alone, NORMAL, inside="net")
    assert same(alone, bare)


def test_a_module_below_others_and_behind_wrappers() -> None:
    bare = net()
    initialize(bare, NORMAL, seed=0)
    for make in (Wrapper, lambda: nn.DataParallel(Wrapper()), lambda: nn.ModuleDict({"module": Wrapper()})):
        model = make()
        initialize(model, NORMAL, seed=0, inside="net")
        assert same(next(each for each in model.modules() if isinstance(each, nn.Sequential)), bare)
    deep = nn.ModuleDict({"model": Wrapper(), "last": nn.Linear(1, 1)})
    before = shape_of(deep)
    report = initialize(deep, NORMAL, seed=0, inside="model.net")
    assert shape_of(deep) == before
    assert same(deep.get_submodule("model.net"), bare)
    names = {record.name for record in report}
    assert {"model.loss.weight", "model.scale", "last.bias", "0.weight"} <= names


def test_materialize() -> None:
    rules = [Rule(Leaf("weight"), Normal()), Rule(Leaf("scale"), Ones())]
    whole = nn.ModuleDict({"net": Wrapper()})
    initialize(whole, rules, seed=1)
    with torch.device("meta"):
        stage, wrapped = Wrapper(), Wrapper()
    rules[1] = Rule(Leaf("scale"), Ones(), optional=True)
    report = materialize(stage, rules, seed=1, under="net")
    assert torch.equal(stage.get_parameter("net.0.weight"), whole.get_parameter("net.net.0.weight"))
    assert report["net.net.1.running_var"].fill == "BatchNorm1d.reset_running_stats()"
    bare = net().to("meta")
    materialize(bare, rules, seed=1)
    before = shape_of(wrapped)
    materialize(wrapped, rules, seed=1, inside="net")
    assert shape_of(wrapped) == before
    assert same(wrapped.get_submodule("net"), bare)  # biases too, which the layers draw themselves


def test_materialize_without_a_recipe() -> None:
    class Own(BaseModule):
        def __init__(self) -> None:
            super().__init__(init_cfg={"type": "Normal", "layer": "Linear"})
            self.fc = nn.Linear(4, 4)

    with torch.device("meta"):
        whole, stage = nn.ModuleDict({"a": Own()}), Own()
    materialize(whole, seed=0)
    materialize(stage, seed=0, under="a")
    assert same(whole, stage)


def test_seeded() -> None:
    bare, wrapped, stage, whole = net(), Wrapper(), net(), Whole()

    def draw(model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape) * 2  # a tensor in the place of another
            nn.init.uniform_(parameter)

    with seeded(bare, 5):
        draw(bare)
    before = shape_of(wrapped)
    with seeded(wrapped, 5, inside="net") as seen:
        assert shape_of(wrapped) == before  # code sees the model as it is
        draw(wrapped.get_submodule("net"))
    assert same(wrapped.get_submodule("net"), bare)
    assert {write.site for write in seen} == {name for name, _ in bare.named_parameters()}
    with seeded(stage, 5, under="layers.3") as seen:
        draw(stage)
    with seeded(whole, 5):
        draw(whole)
    assert same(stage, whole.layers[3])
    assert {write.site.partition(".2.")[0] for write in seen} >= {"layers.3"}
    other = copy.deepcopy(wrapped)
    with seeded(other, 5, inside="net"):
        other.init_weights()
    assert not same(other, wrapped)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"inside": "nett"}, ConfigError, r"inside: 'nett' is not a module of Wrapper; did you mean 'net'\?"),
        ({"inside": "scale"}, ConfigError, r"inside: 'scale' is not a module of Wrapper$"),
        ({"inside": "hole"}, ConfigError, r"inside: 'hole' holds no parameter or buffer"),
        ({"inside": "module"}, ConfigError, r"inside: 'module' is the name of a wrapper, which is left out of names"),
        ({"inside": "net."}, ConfigError, r"inside must be a dotted name such as 'layers\.3', but got 'net\.'"),
        ({"under": "layers.*"}, ConfigError, r"under must be a dotted name such as 'layers\.3', but got 'layers\.\*'"),
        ({"under": "layers.?"}, ConfigError, r"under must be a dotted name such as 'layers\.3', but got 'layers\.\?'"),
        ({"under": 3}, TypeError, r"under must be text such as 'layers\.3', but got 3"),
        ({"inside": "loss"}, ConfigError, r"inside: without 'loss' two tensors have one name: weight"),
    ],
)
def test_what_does_not_fit(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    model = Wrapper()
    model.add_module("hole", nn.Identity())
    if options == {"inside": "loss"}:
        model.weight = nn.Parameter(torch.ones(1))
    before = shape_of(model)
    calls: list[Callable[[], object]] = [
        lambda: plan(model, NORMAL, **options),
        lambda: initialize(model, NORMAL, seed=0, **options),
        lambda: materialize(copy.deepcopy(model).to("meta"), NORMAL, seed=0, **options),
        lambda: seeded(model, 0, **options).__enter__(),
    ]
    for call in calls:
        with pytest.raises(kind, match=text):
            call()
    assert shape_of(model) == before


def test_the_tree_is_put_back_after_an_error() -> None:
    model = Wrapper()
    before = shape_of(model)
    with Counted(model, inside="net"):
        assert "module.0.weight" in dict(model.named_parameters())
        assert model.net is model._modules["module"]
    assert shape_of(model) == before
    with pytest.raises(PlanError, match="fans need at least 2 dimensions"):
        initialize(model, [Rule("1.weight", Kaiming())], seed=0, inside="net")
    assert shape_of(model) == before


@pytest.mark.filterwarnings("ignore")
def test_models_that_torch_has_compiled() -> None:
    bare = net()
    initialize(bare, NORMAL, seed=0)
    compiled: Any = torch.compile(Wrapper())
    before = shape_of(compiled)
    initialize(compiled, NORMAL, seed=0, inside="net")
    assert shape_of(compiled) == before
    assert same(compiled.net, bare)
    scripted = torch.jit.trace(Wrapper().net, torch.zeros(2, 4))
    with pytest.raises(ConfigError, match=r"inside: '0' is part of a ScriptModule; initialize the model before"):
        plan(scripted, NORMAL, inside="0")


def test_threads_wait_for_each_other() -> None:
    model = Wrapper()
    before = shape_of(model)
    with ThreadPoolExecutor(4) as threads:
        plans = [*threads.map(lambda _: plan(model, NORMAL, inside="net"), range(40))]
    assert {tuple(step.site.name for step in each) for each in plans} == {tuple(step.site.name for step in plans[0])}
    assert shape_of(model) == before


def test_what_code_does_to_the_modules_stays() -> None:
    model: Any = Wrapper()

    def replaces(tensor: torch.Tensor) -> None:
        model.more, model.loss = nn.Identity(), nn.Linear(3, 3)
        tensor.zero_()

    initialize(model, {"0.weight": replaces}, seed=0, inside="net")
    assert [*model._modules] == ["loss", "net", "more"]
    assert model.loss.in_features == 3
    assert "net" not in vars(model)


def test_a_change_that_fails_halfway_is_undone() -> None:
    class Fails(dict[str, Any]):
        def clear(self) -> None:
            super().clear()
            if "boom" not in vars(model):
                model.boom = True
                raise KeyboardInterrupt

    model: Any = Wrapper()
    model._modules = Fails(model._modules)
    names = [*model._modules]
    with pytest.raises(KeyboardInterrupt):
        Counted(model, inside="net").__enter__()
    assert [*model._modules] == names
    initialize(model, NORMAL, seed=0, inside="net")


@pytest.mark.parametrize("inside", ["net", "model.net"])
def test_a_callback_has_the_model_as_it_is(inside: str) -> None:
    """So that what it saves has the model's own keys; a call within it may count in the same way."""
    model = Wrapper() if inside == "net" else nn.ModuleDict({"model": Wrapper()})
    before, seen = shape_of(model), list[Any]()

    def progress(_: object) -> None:
        seen.append(shape_of(model))
        if len(seen) == 1:
            initialize(model, NORMAL, seed=1, inside=inside)

    initialize(model, NORMAL, seed=0, inside=inside, progress=progress)
    assert len(seen) > 1
    assert all(each == before for each in (*seen, shape_of(model)))

    def fails(_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        initialize(model, NORMAL, seed=0, inside=inside, progress=fails)
    assert shape_of(model) == before
