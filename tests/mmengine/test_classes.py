"""Classes of users' own on a BaseModule: any bases and metaclasses, signatures, copies, constructors that fail."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import pickle
from abc import ABC, ABCMeta, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import pytest
import torch
from torch import nn

from torchinit.mmengine import BaseModule, ModuleDict, ModuleList, Sequential
from torchinit.mmengine.base_module import _BUILDING

T = TypeVar("T")
CONSTANT = {"type": "Constant", "val": 2.0, "layer": "Linear"}
AMENDED = {"amend": {"layer": "Linear", "val": 5.0}}


@runtime_checkable
class Scores(Protocol):
    def scores(self) -> torch.Tensor: ...


class Own(ABCMeta):
    """A metaclass of a user's own."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__new__(cls, *args, **kwargs)
        made.tag = "own"  # type: ignore[attr-defined]
        return made


class Base(BaseModule):
    """A layer, and a parameter that nobody fills."""

    def __init__(self, width: int = 2, init_cfg: Any = CONSTANT) -> None:
        super().__init__(init_cfg)
        self.fc = nn.Linear(width, 2)
        self.free = nn.Parameter(torch.empty(3))

    def scores(self) -> torch.Tensor:
        return self.fc.weight


class OnProtocol(Base, Scores): ...


class ProtocolFirst(Scores, Base): ...


class OnABC(Base, ABC): ...


class OnMetaclass(Base, metaclass=Own): ...


class OnGeneric(Base, Generic[T]): ...


class Mixed:
    """A mixin with a constructor and an init_weights, neither of which knows of BaseModule."""

    def __init__(self, depth: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.depth = depth

    def init_weights(self, **_: Any) -> None:
        super().init_weights()  # type: ignore[misc]
        nn.init.constant_(self.fc.bias, 6.0)  # type: ignore[attr-defined]


class OnMixin(Mixed, Base): ...


class WithoutConstructor(OnMixin): ...


class Late(Base):
    """Its base is built last, by a constructor that sets something before."""

    def __init__(self, init_cfg: Any = CONSTANT) -> None:
        self.__dict__["note"] = 1
        Base.__init__(self, 2, init_cfg)


@dataclass(eq=False)
class AsDataclass(Base):
    """Its constructor is made after the class."""

    width: int = 2
    init_cfg: Any = None

    def __post_init__(self) -> None:
        super().__init__(self.width, self.init_cfg or CONSTANT)


CLASSES: tuple[type[Base], ...] = (
    *(Base, OnProtocol, ProtocolFirst, OnABC, OnMetaclass, OnGeneric, OnMixin, WithoutConstructor, Late, AsDataclass),
)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_is_watched_as_it_is_built_and_amended(cls: type[Base]) -> None:
    report: Any = cls().init_weights()
    assert report.unfilled == ("free",)
    assert report["fc.weight"].rule == "ConstantInit: val=2.0, bias=0"
    amended = cls(init_cfg=AMENDED)
    assert amended.init_cfg == [{"type": "Constant", "val": 5.0, "layer": ["Linear"]}]
    amended.init_weights()
    assert amended.fc.weight.unique().tolist() == [5.0]
    assert _BUILDING.get() == frozenset()


def _saved(module: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "save": _saved,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cls", CLASSES)
def test_copies(cls: type[Base], way: str) -> None:
    module = cls()
    module.init_weights()
    again = WAYS[way](module)
    assert type(again) is cls
    assert again.is_init
    assert again.init_cfg == CONSTANT
    assert torch.equal(again.fc.weight, module.fc.weight)
    again.is_init = False
    again.init_weights()


SIGNATURES: list[tuple[type, list[str]]] = [
    (BaseModule, ["init_cfg"]),
    (Sequential, ["args", "init_cfg"]),
    (ModuleList, ["modules", "init_cfg"]),
    (ModuleDict, ["modules", "init_cfg"]),
    *((cls, ["width", "init_cfg"]) for cls in (Base, OnProtocol, OnABC, OnMetaclass, OnGeneric, AsDataclass)),
    (OnMixin, ["depth", "kwargs"]),
    (WithoutConstructor, ["depth", "kwargs"]),
    (Late, ["init_cfg"]),
]


@pytest.mark.parametrize("built", [False, True], ids=["as defined", "once built"])
@pytest.mark.parametrize(("cls", "names"), SIGNATURES, ids=str)
def test_the_signature_of_a_class_is_its_own(cls: Any, names: list[str], built: bool) -> None:
    if built:
        cls()
    assert list(inspect.signature(cls).parameters) == names
    assert cls.__init__.__name__ == "__init__"


def test_abstract_methods_have_to_be_there() -> None:
    class Abstract(BaseModule):
        @abstractmethod
        def missing(self) -> None: ...

    with pytest.raises(TypeError, match=r"abstract method '?missing"):
        Abstract()  # type: ignore[abstract]


def test_protocols_metaclasses_and_generics_do_what_they_are_for() -> None:
    assert isinstance(OnProtocol(), Scores)
    assert isinstance(ProtocolFirst(3), Scores)  # type: ignore[abstract]  # Base has it
    assert OnMetaclass.tag == "own"  # type: ignore[attr-defined]
    made: Any = OnGeneric[int](3, init_cfg=AMENDED)
    assert made.__orig_class__ == OnGeneric[int]
    assert made.init_cfg[0]["val"] == 5.0


def test_a_constructor_that_fails_leaves_nothing_behind() -> None:
    class Failing(Base):
        def __init__(self, fails: bool) -> None:
            super().__init__()
            self.inner = Base()
            if fails:
                raise ValueError("no such width")

    with pytest.raises(ValueError, match="no such width"):
        Failing(fails=True)
    assert _BUILDING.get() == frozenset()
    report: Any = Failing(fails=False).init_weights()
    assert report.unfilled == ("free", "inner.free")


def test_super_init_called_late_is_torchs_error() -> None:
    class Early(BaseModule):
        def __init__(self) -> None:
            self.fc = nn.Linear(2, 2)
            super().__init__()

    with pytest.raises(AttributeError, match="cannot assign module before Module"):
        Early()
    assert _BUILDING.get() == frozenset()


class Top(BaseModule):
    """A parent."""

    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.child = child


def biased(module: Any) -> None:
    nn.init.constant_(module.fc.bias, 6.0)


def by_mixin() -> Base:
    return OnMixin()


def patched_before() -> Base:
    cls = type("Patched", (Base,), {})
    cls.init_weights = biased  # type: ignore[attr-defined]
    return cls()  # type: ignore[no-any-return]


def patched_after() -> Base:
    cls = type("Patched", (Base,), {})
    made = cls()
    cls.init_weights = biased  # type: ignore[attr-defined]
    return made  # type: ignore[no-any-return]


def patched_object() -> Base:
    made: Any = type("Patched", (Base,), {})()
    made.init_weights = lambda: biased(made)
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [by_mixin, patched_before, patched_after, patched_object])
def test_who_wrote_is_seen_wherever_the_method_comes_from(make: Callable[[], Base]) -> None:
    child = make()
    report: Any = Top(child).init_weights()
    expected = f"Initialized by user-defined `init_weights` in {type(child).__name__}"
    assert report["child.fc.bias"].rule == expected
    if make in (by_mixin, patched_before):
        again = make().init_weights()
        assert again is not None
        assert again["fc.bias"].rule == expected


class Delegating(nn.Module):
    """A module that has what another one has, which is no part of the model though its layers are."""

    def __init__(self, inner: Base) -> None:
        super().__init__()
        self.fc = inner.fc
        vars(self)["inner"] = inner

    def __getattr__(self, name: str) -> Any:
        own = ("_parameters", "_buffers", "_modules")
        return super().__getattr__(name) if any(name in vars(self)[each] for each in own) else getattr(
            vars(self)["inner"], name)  # fmt: skip


def made_by_hand() -> nn.Module:
    layer: Any = nn.Linear(2, 2)
    layer.init_weights = partial(nn.init.constant_, layer.bias, 6.0)
    return layer  # type: ignore[no-any-return]


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


BY_CODE = "Initialized by user-defined `init_weights` in "
CHILDREN: dict[str, tuple[Callable[[], Any], str, str]] = {
    "an attribute": (made_by_hand, "bias", f"{BY_CODE}Linear"),
    "compiled": (lambda: compiled(Base()), "fc.bias", "ConstantInit: val=2.0, bias=0"),
    "compiled, of its own": (lambda: compiled(OnMixin()), "fc.bias", f"{BY_CODE}OnMixin"),
    "an attribute, compiled": (lambda: compiled(made_by_hand()), "bias", f"{BY_CODE}OptimizedModule"),
    "delegated": (lambda: Delegating(Base()), "fc.bias", "ConstantInit: val=2.0, bias=0"),
    "delegated, of its own": (lambda: Delegating(OnMixin()), "fc.bias", f"{BY_CODE}Delegating"),
    "delegated, of the object": (lambda: Delegating(patched_object()), "fc.bias", f"{BY_CODE}Delegating"),
}


@pytest.mark.parametrize("case", CHILDREN)
def test_an_init_weights_that_is_no_method_of_the_childs_class(case: str) -> None:
    make, name, expected = CHILDREN[case]
    model = Top(make())
    report: Any = model.init_weights()
    assert report[f"child.{name}"].rule == expected
    again: Any = Top(make()).init_weights(seed=0)
    assert [record.name for record in again] == [record.name for record in report]


@pytest.mark.parametrize("init_cfg", [{}, [], (), None, "", 0])
def test_an_empty_init_cfg_asks_for_nothing(init_cfg: Any) -> None:
    model = Sequential(nn.Linear(2, 2), init_cfg=init_cfg)
    before = model.get_parameter("0.weight").clone()
    assert tuple(model.init_weights() or ()) == ()
    assert torch.equal(model.get_parameter("0.weight"), before)


@pytest.mark.parametrize(
    ("init_cfg", "error", "text"),
    [
        (3, TypeError, "init_cfg must be a dict or a list of dict, but got <class 'int'>"),
        ("Constant", AssertionError, "an init_cfg is a dict or a list of dicts, but holds 'C'"),
        ([{}], KeyError, r'must contain the key "type", but got {}'),
    ],
)
def test_an_init_cfg_of_another_kind(init_cfg: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Sequential(nn.Linear(2, 2), init_cfg=init_cfg).init_weights()


def test_an_init_weights_that_a_constructor_calls_has_no_log(caplog: pytest.LogCaptureFixture) -> None:
    class Block(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.init_weights()

        def init_weights(self, **_: Any) -> Any:
            nn.init.zeros_(self.fc.weight)

    with caplog.at_level(logging.INFO, "torchinit"):
        model = Sequential(Block(), Block())
        assert caplog.messages == []
        model.init_weights()
    assert len(caplog.messages) == 4
