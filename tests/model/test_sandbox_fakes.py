"""Tensors without values: refused by name by whatever would read or write them, and planned all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations
from torch.nn.utils.stateless import _reparametrize_module
from torch.testing._internal.logging_tensor import LoggingTensor
from torch.testing._internal.two_tensor import TwoTensor

from torchinit import (
    Constant,
    Name,
    Normal,
    Orthogonal,
    Rule,
    RunError,
    fingerprint,
    initialize,
    lint,
    materialize,
    mmengine,
    plan,
    seeded,
)
from torchinit.initializers import Sparse
from torchinit.model import Shard
from torchinit.noise import Global, Keyed

RULES = [Rule(Name("**"), Normal(std=0.3)), Rule("1.weight", Orthogonal())]
ONES = {"type": "Constant", "val": 1, "layer": "Linear"}
MODES = {"FakeTensorMode": FakeTensorMode, "FunctionalTensorMode": FunctionalTensorMode}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 4), parametrizations.weight_norm(nn.Linear(6, 6)))


class Own(mmengine.BaseModule):
    def __init__(self) -> None:
        super().__init__(init_cfg={"type": "Kaiming", "layer": "Linear"})
        self.a = nn.Linear(4, 4)


def run_seeded(model: nn.Module) -> None:
    with seeded(model, 0):
        nn.init.normal_(model[0].bias)  # type: ignore[index]


WRITES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], object]]] = {
    "initialize": (net, lambda model: initialize(model, RULES, seed=0)),
    "initialize without a seed": (net, lambda model: initialize(model, RULES)),
    "initialize with a generator": (net, lambda model: initialize(model, RULES, seed=torch.Generator())),
    "a function": (net, lambda model: initialize(model, Rule("*.bias", lambda t: t.zero_()), seed=0)),
    "materialize": (lambda: nn.Linear(5, 4).to("meta"), lambda model: materialize(model, RULES[0], seed=0)),
    "init_weights": (Own, lambda model: model.init_weights()),
    "init_weights with a seed": (Own, lambda model: model.init_weights(seed=0)),
    "mmengine.initialize": (Own, lambda model: mmengine.initialize(model, ONES)),
    "seeded": (net, run_seeded),
    "fingerprint": (net, fingerprint),
    "write": (net, lambda model: Constant(1.0).write(Shard.whole("w", model[0].weight.data), Keyed(0))),
    "write without a seed": (net, lambda model: Normal().write(Shard.whole("w", model[0].weight.data), Global())),
    "write a whole": (net, lambda model: Orthogonal().write(Shard.whole("w", model[0].weight.data), Keyed(0))),
    "write some": (net, lambda model: Sparse(0.5).write(Shard.whole("w", model[0].weight.data), Keyed(0))),
}  # fmt: skip
TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor]], object]] = {
    "grad": lambda f: torch.func.grad(f)(torch.ones(3)),
    "vmap": lambda f: torch.func.vmap(f)(torch.ones(2, 3)),
    "jvp": lambda f: torch.func.jvp(f, (torch.ones(3),), (torch.ones(3),)),
    "functionalize": lambda f: torch.func.functionalize(f)(torch.ones(3)),
    "hessian": lambda f: torch.func.hessian(f)(torch.ones(3)),
}


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_left(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert value.is_meta or torch.equal(value, before[name])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("verb", WRITES)
def test_within_transforms(verb: str, transform: str) -> None:
    make, act = WRITES[verb]
    model = make()
    before, state = values(model), torch.get_rng_state()

    def inside(x: Tensor) -> Tensor:
        act(model)
        return x.sum()

    names = r"within a transform of torch\.func \(\w+\) tensors are stand-ins, with no values to read or write: call"
    with pytest.raises(RunError, match=names):
        TRANSFORMS[transform](inside)
    assert_left(model, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_plans_and_findings_are_refused_there_too() -> None:
    model = net()
    for act in (lambda: plan(model, RULES), lambda: lint(model)):
        with pytest.raises(RunError, match=r"of torch\.func \(functionalize\)"):
            torch.func.functionalize(lambda x, act=act: act() and x)(torch.ones(3))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("verb", [verb for verb in WRITES if not verb.startswith("write")])
def test_real_models_within_modes(verb: str, mode: str) -> None:
    make, act = WRITES[verb]
    model = make()
    before = values(model)
    with MODES[mode](), pytest.raises(RunError, match=f"within {mode} tensors are stand-ins, with no values"):
        act(model)
    assert_left(model, before)


@pytest.mark.parametrize("verb", [verb for verb in WRITES if verb != "materialize"])
def test_fake_models(verb: str) -> None:
    """Within their mode and outside of it."""
    make, act = WRITES[verb]
    with FakeTensorMode():
        model = make()
        with pytest.raises(RunError, match="within FakeTensorMode tensors are stand-ins"):
            act(model)
    with pytest.raises(RunError, match=r"is a FakeTensor, which holds no values; build the model outside of its mode"):
        act(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_traces_of_torchs() -> None:
    model = net()
    with pytest.raises(RunError, match="within make_fx tensors are stand-ins"):
        make_fx(lambda x: initialize(model, RULES, seed=0) and x)(torch.ones(3))
    with pytest.raises(RunError, match=r"within torch\.jit\.trace tensors are stand-ins"):
        torch.jit.trace(lambda x: initialize(model, RULES, seed=0) and x, torch.ones(3))


@pytest.mark.slow("imports torch's compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_code() -> None:
    """What torch compiles around a call leaves it out; what makes memory it cannot leave out."""
    model, bare = net(), nn.Linear(5, 4).to("meta")
    expected = net()
    initialize(expected, RULES, seed=0)

    @torch.compile(backend="eager")
    def compiled(x: Tensor) -> Tensor:
        initialize(model, RULES, seed=0)
        return x + 1

    assert compiled(torch.ones(2)).tolist() == [2, 2]
    assert fingerprint(model) == fingerprint(expected)
    refusals: tuple[type[Exception], ...] = (RunError,)
    if torch.__version__ < "2.12":  # the compiler of 2.10 fails on an error that is raised, and quotes its line
        refusals = RunError, torch._dynamo.exc.InternalTorchDynamoError
    with pytest.raises(
        refusals, match=r"materialize gives a model memory, which torch\.compile cannot follow: call it"
    ):
        torch.compile(lambda x: materialize(bare, RULES[0], seed=0) and x, backend="eager")(torch.ones(2))
    assert bare.weight.is_meta


def test_parameters_that_a_transform_put_into_a_model() -> None:
    """Also where they have been left behind."""
    model = nn.Linear(5, 4)
    left: list[Tensor] = []

    def inside(parameters: dict[str, Tensor]) -> Tensor:
        left.append(parameters["weight"])
        with _reparametrize_module(model, parameters):
            initialize(model, RULES[0], seed=0)
        return parameters["weight"].sum()

    with pytest.raises(RunError, match=r"within a transform of torch\.func \(grad\)"):
        torch.func.grad(inside)({name: value.detach() for name, value in model.named_parameters()})
    model._parameters["weight"] = left[0]  # type: ignore[assignment]
    with pytest.raises(
        RunError, match=r"weight: is a stand-in within a transform of torch\.func, which holds no values"
    ):
        initialize(model, RULES[0], seed=0)


def test_plans_need_no_values() -> None:
    expected = [(step.site.name, step.fill) for step in plan(net(), RULES).steps]
    with FakeTensorMode():
        fake = net()
        assert [(step.site.name, step.fill) for step in plan(fake, RULES).steps] == expected
    assert [(step.site.name, step.fill) for step in plan(fake, RULES).steps] == expected
    real = net()
    with FakeTensorMode():
        assert [(step.site.name, step.fill) for step in plan(real, RULES).steps] == expected


class Looking(Tensor):
    """A subclass through whose method every function goes."""


WRAPPED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Any], list[Tensor]]]] = {
    "subclass": (lambda t: t.as_subclass(Looking), lambda t: [t.as_subclass(Tensor)]),
    "two tensors": (lambda t: TwoTensor(t, t.clone()), lambda t: [t.a, t.b]),
    "logging": (LoggingTensor, lambda t: [t.elem]),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_tensors_of_other_classes_have_the_same_values(kind: str) -> None:
    wrap, unwrap = WRAPPED[kind]
    rules = [Rule("**", Normal()), Rule("a", Orthogonal()), Rule("b", Sparse(0.2)), Rule("c", product)]
    plain = nn.ParameterDict({name: nn.Parameter(torch.zeros(33, 65)) for name in "abcd"})
    other = nn.ParameterDict({name: nn.Parameter(wrap(torch.zeros(33, 65))) for name in "abcd"})
    for model in (plain, other):
        initialize(model, rules, seed=0)
    for name, value in plain.items():
        assert all(torch.equal(part, value.detach()) for part in unwrap(other[name].detach()))
    assert fingerprint(other) == fingerprint(plain)


def product(weight: Tensor) -> Tensor:
    return torch.randn(33, 40) @ torch.randn(40, 65)
