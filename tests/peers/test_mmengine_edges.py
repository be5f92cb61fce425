"""torchinit beside MMEngine where models are odd: what else ``weight`` may be, bad values, trees of both kinds."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from torchinit import mmengine as ours

with warnings.catch_warnings():  # importing it uses deprecated parts of torch
    warnings.simplefilter("ignore")
    import mmengine.model as mmengine
    from mmengine.logging import MMLogger

LIBRARIES: Any = (mmengine, ours)


class Reader(nn.Module):
    """Its weight is a property that gives a child's parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    @property
    def weight(self) -> Any:
        return self.inner.weight


class Holder(nn.Module):
    """Its weight is a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["weight"] = torch.zeros(3)
        self.free = nn.Parameter(torch.zeros(2))


class Kept(nn.Module):
    """Its weight is a buffer, its bias None."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(3))
        self.register_buffer("bias", None)


class Once(nn.Conv2d):
    """A convolution, by its direct base."""


class Twice(Once):
    """A convolution, and MMEngine does not know."""


class User(nn.Module):
    """A module that is no BaseModule and has an init_weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def init_weights(self) -> None:
        nn.init.constant_(self.fc.weight, 0.3)


class Adding(User):
    """Its init_weights adds a parameter."""

    def init_weights(self) -> None:
        self.added = nn.Parameter(torch.zeros(2))


class Tying(User):
    """Its init_weights gives two layers one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(2, 2)

    def init_weights(self) -> None:
        self.other.weight = self.fc.weight


LAYERS = ["Linear", "Conv2d", "Reader", "Holder", "Kept"]


def normal(**said: Any) -> dict[str, Any]:
    return {"type": "Normal", "std": 0.1, "bias": 0.5, **said}


def whole(**said: Any) -> dict[str, Any]:
    """An entry for all of the first child, whatever its class."""
    return {"type": "Normal", "std": 0.1, "override": {"name": "0", **said}}


def weight(tensor: Callable[[], Tensor]) -> Callable[[], nn.Module]:
    """A linear layer with this weight."""

    def make() -> nn.Module:
        layer = nn.Linear(4, 4)
        layer.weight = nn.Parameter(tensor())
        return layer

    return make


def tied() -> nn.Module:
    table, head, turned = nn.Embedding(3, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
    head.weight = table.weight
    turned.weight = nn.Parameter(table.weight.data.t())
    return nn.Sequential(table, head, turned)


def shared() -> nn.Module:
    layer = nn.Linear(2, 2)
    return nn.ModuleList([nn.Sequential(layer), nn.Sequential(layer), layer, layer])


def packed() -> nn.Module:
    memory, one, other = torch.zeros(6), nn.Linear(2, 2), nn.Linear(2, 2)
    one.weight = nn.Parameter(memory[:4].view(2, 2))
    other.weight = nn.Parameter(memory[2:].view(2, 2))
    return nn.Sequential(one, other)


def named_as_wrappers() -> nn.Module:
    return nn.ModuleDict({"module": nn.Linear(2, 2), "*": nn.ModuleDict({"module": nn.Linear(2, 2)})})


def channels_last() -> nn.Module:
    layer = nn.Conv2d(4, 4, 3)
    layer.weight.data = layer.weight.data.to(memory_format=torch.channels_last)
    return layer


def linear() -> nn.Module:
    return nn.Linear(3, 3)


ONE = [normal(layer=LAYERS)]
SAME: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "a property": (Reader, ONE),
    "a property, whole": (Reader, whole()),
    "a plain tensor": (Holder, ONE),
    "a plain tensor, whole": (Holder, whole()),
    "a buffer": (Kept, ONE),
    "a buffer, whole": (Kept, whole()),
    "weight norm by hook": (lambda: nn.Sequential(nn.utils.weight_norm(linear()), linear()), ONE),
    "spectral norm by hook": (lambda: nn.Sequential(nn.utils.spectral_norm(linear()), linear()), ONE),
    "weight norm": (lambda: nn.Sequential(parametrizations.weight_norm(linear()), linear()), ONE),
    "spectral norm": (lambda: nn.Sequential(parametrizations.spectral_norm(linear()), linear()), ONE),
    "spectral norm, not matched": (lambda: parametrizations.spectral_norm(linear()), normal(layer="Conv2d")),
    "an orthogonal layer": (lambda: parametrizations.orthogonal(linear()), ONE),
    "an orthogonal layer by another class": (
        lambda: parametrizations.orthogonal(nn.Conv2d(2, 2, 1)),
        normal(layer="_ConvNd"),
    ),
    "a direct base": (lambda: nn.Sequential(Once(2, 2, 1), Twice(2, 2, 1)), ONE),
    "a dotted layer": (linear, normal(layer=["torch.nn.Linear"])),
    "a class as layer": (linear, normal(layer=[nn.Linear])),
    "a number among layers": (linear, normal(layer=[3, "Linear"])),
    "an empty layer": (linear, normal(layer="")),
    "no layer": (linear, normal()),
    "a tuple of entries": (linear, tuple(ONE)),
    "bad: a layer as a tuple": (linear, normal(layer=("Linear",))),
    "no fans": (lambda: nn.BatchNorm2d(2), {"type": "Kaiming", "layer": "BatchNorm2d"}),
    "no elements": (lambda: nn.Linear(0, 2), {"type": "Kaiming", "layer": "Linear"}),
    "no elements, normal": (lambda: nn.Linear(0, 2), ONE),
    "bfloat16": (lambda: linear().bfloat16(), {"type": "TruncNormal", "std": 0.02, "layer": "Linear"}),
    "float16": (lambda: linear().half(), {"type": "Uniform", "layer": "Linear"}),
    "float64": (lambda: linear().double(), {"type": "Kaiming", "mode": "FAN_IN", "layer": "Linear"}),
    "complex": (lambda: nn.Linear(3, 3, dtype=torch.complex64), ONE),
    "strides": (weight(lambda: torch.zeros(4, 4).t()), {"type": "TruncNormal", "layer": "Linear"}),
    "channels last": (channels_last, ONE),
    "a mean far outside": (linear, {"type": "TruncNormal", "mean": 5, "layer": "Linear"}),
    "a number that is a tensor": (linear, normal(std=torch.tensor(0.3), layer="Linear")),
    "infinity": (linear, {"type": "Constant", "val": float("inf"), "layer": "Linear"}),
    "true": (linear, {"type": "Constant", "val": True, "bias": True, "layer": "Linear"}),
    "no slope": (linear, {"type": "Kaiming", "a": None, "nonlinearity": "leaky_relu", "layer": "Linear"}),
    "another nonlinearity": (linear, {"type": "Kaiming", "nonlinearity": "tanh", "layer": "Linear"}),
    "a probability": (linear, normal(bias_prob=0.01, layer="Linear")),
    "overrides": (
        linear,
        normal(layer="Linear", override=[{"name": "0"}, {"type": "Constant", "val": 1, "name": "0"}]),
    ),
    "no overrides": (linear, normal(layer="Linear", override=[])),
    "tied weights": (tied, [normal(layer="Embedding"), {"type": "Xavier", "layer": "Linear"}]),
    "a shared layer": (shared, ONE),
    "parts of one memory": (packed, ONE),
    "names of wrappers": (named_as_wrappers, ONE),
    "frozen": (lambda: linear().requires_grad_(False), ONE),
    "a user's module": (User, ONE),
    "a user's module, whole": (User, whole()),
    "weights tied on the way": (Tying, ONE),
    "attention": (lambda: nn.MultiheadAttention(4, 2), whole()),
    "type by path": (linear, {"type": "mmengine.model.weight_init.NormalInit", "std": 0.3, "layer": "Linear"}),
    "type by scope": (linear, {"type": "mmengine.Normal", "layer": "Linear"}),
    "type as a function": (linear, {"type": lambda: lambda module: nn.init.ones_(module[0].weight)}),
    "bad: a parameter added": (Adding, ONE),
    "bad: override by nobody": (linear, normal(override={"name": "other"})),
    "bad: override without a name": (linear, normal(override={"type": "Normal"})),
    "bad: override without a type": (linear, normal(override={"name": "0", "std": 1})),
    "bad: override in an override": (linear, whole(type="Normal", override={"name": "x"})),
    "bad: override as text": (linear, normal(override="0")),
    "bad: override as nothing": (linear, normal(override={})),
    "bad: type": (linear, {"type": "Norml", "layer": "Linear"}),
    "bad: no type": (linear, {"layer": "Linear"}),
    "bad: an argument": (linear, normal(sdt=1, layer="Linear")),
    "bad: text in a list": (linear, ["Normal"]),
    "bad: a number": (linear, 5),
    "bad: text": (linear, "Normal"),
    "bad: distribution": (linear, {"type": "Xavier", "distribution": "x", "layer": "Linear"}),
    "bad: mode": (linear, {"type": "Kaiming", "mode": "x", "layer": "Linear"}),
    "bad: nonlinearity": (linear, {"type": "Kaiming", "nonlinearity": "x", "layer": "Linear"}),
    "bad: bias": (linear, normal(bias="1", layer="Linear")),
    "bad: a spread below 0": (linear, normal(std=-1, layer="Linear")),
    "bad: a gain below 0": (linear, {"type": "Xavier", "gain": -1, "layer": "Linear"}),
    "bad: bounds": (linear, {"type": "Uniform", "a": 1, "b": 0, "layer": "Linear"}),
    "bad: a lazy layer": (lambda: nn.LazyLinear(2), ONE),
}


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path) -> Iterator[None]:
    """MMEngine's log goes to a file."""
    logger = MMLogger.get_current_instance()
    before = logger.handlers[:]
    handler = logging.FileHandler(tmp_path / "init.log")
    logger.handlers[:] = [handler]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    handler.close()
    logger.handlers[:] = before


def outcome(make: Callable[[], Any]) -> tuple[BaseException | None, dict[str, Tensor], list[str]]:
    """What was raised, every tensor the model holds and the generator's next values, and what is left on modules."""
    torch.manual_seed(0)
    model = make()
    error: BaseException | None = None
    try:
        model.init_weights()
    except Exception as problem:  # noqa: BLE001 - whatever the one raises, the other must raise, too
        error = problem
    names = dict(model.named_modules())
    loose = {f"{name}.weight": vars(module)["weight"] for name, module in names.items() if "weight" in vars(module)}
    left = [name for name, module in names.items() if "_params_init_info" in vars(module)]
    return error, {**model.state_dict(), **loose, "next draws": torch.rand(4)}, left


def assert_equal(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.allclose(ours[name], tensor, rtol=0, atol=0, equal_nan=True), name


@pytest.mark.parametrize("name", SAME)
def test_the_same_values_or_the_same_kind_of_error(name: str) -> None:
    make, init_cfg = SAME[name]
    theirs, ours = (outcome(lambda: library.Sequential(make(), init_cfg=init_cfg)) for library in LIBRARIES)  # noqa: B023
    assert ours[2] == []
    if theirs[0] is None:
        assert ours[0] is None
        assert_equal(theirs[1], ours[1])
    else:
        raised = next(cls for cls in type(theirs[0]).__mro__ if cls.__module__ in ("builtins", "torch"))
        assert isinstance(ours[0], raised)
        assert name.startswith("bad") or name == "no fans"


def family(parent: Any, child: Any, *, own: bool) -> Any:
    """A model of one library's classes with children of another's."""

    class Leaf(child.BaseModule):
        def __init__(self) -> None:
            super().__init__({"type": "Normal", "layer": "Linear", "std": 0.3, "bias": 0.7})
            self.fc = nn.Linear(2, 2)
            self.norm = nn.LayerNorm(2)

    class Own(Leaf):
        def init_weights(self) -> None:
            super().init_weights()
            nn.init.normal_(self.norm.weight)

    made = Own if own else Leaf
    rules = [{"type": "Xavier", "layer": "Linear"}, {"type": "Constant", "val": 2, "bias": 0.1, "layer": "LayerNorm"}]
    inner = parent.Sequential(made(), nn.Linear(2, 2))
    return parent.Sequential(made(), inner, nn.Sequential(made()), init_cfg=rules)


@pytest.mark.parametrize("own", [False, True], ids=["rules", "code"])
@pytest.mark.parametrize(("parent", "child"), [(mmengine, ours), (ours, mmengine), (ours, ours)])
def test_trees_of_both_kinds(parent: Any, child: Any, own: bool, tmp_path: Path) -> None:
    theirs = outcome(lambda: family(mmengine, mmengine, own=own))
    log = (tmp_path / "init.log").read_text()
    ours = outcome(lambda: family(parent, child, own=own))
    assert ours[0] is None
    assert ours[2] == []
    assert_equal(theirs[1], ours[1])
    told = (tmp_path / "init.log").read_text().removeprefix(log)
    assert parameters(told) == parameters(log)


def parameters(log: str) -> list[str]:
    """What the log says of each parameter; none of these rules keeps a mean, so MMEngine is right about all of them."""
    start = log.index("Name of parameter")
    return log[start:].replace("`init_weights` in Own", "`init_weights` in Leaf").split("\n\n")
