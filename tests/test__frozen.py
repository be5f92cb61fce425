"""Frozen dataclasses that are quickly made are what dataclasses makes of them."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace

import pytest

from torchinit._frozen import Postponable, quickly_made


@dataclass(frozen=True, slots=True)
class Careful:
    a: int
    b: str = "b"
    c: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.a < 0:
            raise ValueError("a is negative")


@quickly_made
@dataclass(frozen=True, slots=True)
class Quick:
    a: int
    b: str = "b"
    c: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert type(self) is Quick, "the open twin shows"
        if self.a < 0:
            raise ValueError("a is negative")


@dataclass(frozen=True, slots=True)
class Derived(Quick):
    d: int = 4

    def __post_init__(self) -> None:
        assert type(self) is Derived


class Plain(Quick):
    """A subclass without a constructor of its own, and with a ``__dict__``."""

    def __post_init__(self) -> None:
        assert type(self) is Plain


def test_is_of_its_class_and_frozen() -> None:
    made = Quick(1, c=(2,))
    assert type(made) is Quick
    for name in ("a", "b", "z"):
        with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
            setattr(made, name, 5)
    with pytest.raises(FrozenInstanceError):
        del made.a
    assert made == Quick(1, "b", (2,)) != Quick(2)


def test_does_what_dataclasses_does() -> None:
    for arguments in ((1,), (1, "x"), (1, "x", (3,))):
        quick, careful = Quick(*arguments), Careful(*arguments)
        assert repr(quick) == repr(careful).replace("Careful", "Quick")
        assert hash(quick) == hash(careful)
        assert [getattr(quick, each.name) for each in fields(quick)] == [
            getattr(careful, each.name) for each in fields(careful)
        ]
    assert str(inspect.signature(Quick)) == str(inspect.signature(Careful))
    assert not hasattr(Quick(1), "__dict__")
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'a'"):
        Quick()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        Quick(1, z=1)  # type: ignore[call-arg]


def test_copies_are_whole() -> None:
    made = Quick(1, "x", (1, 2))
    for again in (pickle.loads(pickle.dumps(made)), copy.copy(made), copy.deepcopy(made), replace(made)):
        assert again == made
        assert type(again) is Quick
    assert replace(made, b="y") == Quick(1, "y", (1, 2))
    match made:
        case Quick(a, b):
            assert (a, b) == (1, "x")


def test_a_failing_check_shows_no_twin() -> None:
    with pytest.raises(ValueError, match="a is negative") as caught:
        Quick(-1)
    frame = caught.traceback[-1].frame
    assert type(frame.f_locals["self"]) is Quick


def test_subclasses_are_of_their_own_class() -> None:
    assert Derived(1, d=5) == Derived(1, "b", (), 5)
    assert type(Derived(1)) is Derived
    assert type(Plain(1)) is Plain
    assert Plain(1, "z").b == "z"
    with pytest.raises(FrozenInstanceError):
        Plain(1).a = 2  # type: ignore[misc]


def test_refuses_default_factories() -> None:
    @dataclass(frozen=True, slots=True)
    class Listed:
        items: list[int] = field(default_factory=list)

    with pytest.raises(TypeError, match="Listed has a default factory, which quickly_made does not know"):
        quickly_made(Listed)


@dataclass(frozen=True, slots=True)
class Report(Postponable):
    a: int
    rows: tuple[int, ...] = ()


def late(made: list[str]) -> Report:
    def rows() -> tuple[int, ...]:
        made.append("rows")
        return (1, 2)

    return Report(1, (7,)).postponed("rows", rows)


@pytest.mark.parametrize(
    "read",
    [
        lambda report: report.rows == (1, 2),
        lambda report: report == Report(1, (1, 2)),
        lambda report: hash(report) == hash(Report(1, (1, 2))),
        lambda report: repr(report) == "Report(a=1, rows=(1, 2))",
        lambda report: replace(report, a=2) == Report(2, (1, 2)),
        lambda report: pickle.loads(pickle.dumps(report)) == Report(1, (1, 2)),
        lambda report: copy.deepcopy(report) == Report(1, (1, 2)),
        lambda report: copy.copy(report).rows == (1, 2),
    ],
)
def test_what_is_postponed_is_made_once_by_whoever_reads_it(read: Callable[[Report], bool]) -> None:
    made: list[str] = []
    report = late(made)
    assert (report.a, made) == (1, [])
    assert read(report)
    assert read(report)
    assert made == ["rows"]


def test_what_is_postponed_stays_so_in_changed_ones_and_is_shared() -> None:
    made: list[str] = []
    report = late(made)
    other, told = report.updated(a=3), report.updated(rows=(5,))
    assert (other.a, told.rows, made) == (3, (5,), [])
    assert (other.rows, report.rows, made) == ((1, 2), (1, 2), ["rows"])
    with pytest.raises(FrozenInstanceError):
        other.rows = ()  # type: ignore[misc]
    with pytest.raises(AttributeError, match="'Report' object has no attribute 'columns'"):
        other.columns  # type: ignore[attr-defined]  # noqa: B018
