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
    assert _BUILDING.get() == ()


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
    assert _BUILDING.get() == ()
    report: Any = Failing(fails=False).init_weights()
    assert report.unfilled == ("free", "inner.free")


def test_super_init_called_late_is_torchs_error() -> None:
    class Early(BaseModule):
        def __init__(self) -> None:
            self.fc = nn.Linear(2, 2)
            super().__init__()

    with pytest.raises(AttributeError, match="cannot assign module before Module"):
        Early()
    assert _BUILDING.get() == ()


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
