"""Frozen dataclasses that are quickly made are what dataclasses makes of them; the collector is as it was."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace

import pytest
from torch import Tensor, nn

from torchinit import Constant, Rule, initialize, plan
from torchinit._frozen import Postponable, collector_paused, quickly_made
from torchinit.model.sites import Site
from torchinit.rules import Selector


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


@pytest.fixture(autouse=True)
def _enabled() -> Iterator[None]:
    yield
    gc.enable()


class _Asks(Selector):
    """Notes whether the collector is on while it is asked, and may fail."""

    def __init__(self, *, fails: bool = False) -> None:
        self.seen: list[bool] = []
        self.fails = fails

    def matches(self, site: Site) -> bool:
        self.seen.append(gc.isenabled())
        if self.fails:
            raise KeyError(site.name)
        return True


def test_it_is_off_inside_and_on_again_afterwards() -> None:
    asks = _Asks()
    initialize(nn.Linear(2, 3), Rule(asks, Constant(1.0)), seed=0)
    assert asks.seen == [False, False]
    assert gc.isenabled()


def test_it_is_on_again_after_an_error() -> None:
    with pytest.raises(KeyError, match="weight"):
        plan(nn.Linear(2, 3), Rule(_Asks(fails=True), Constant(1.0)))
    assert gc.isenabled()


def test_who_has_switched_it_off_finds_it_off() -> None:
    gc.disable()
    initialize(nn.Linear(2, 3), Rule("*", Constant(1.0)), seed=0)
    assert not gc.isenabled()
    with collector_paused(), collector_paused():
        pass
    assert not gc.isenabled()


def test_blocks_within_blocks_switch_it_on_once() -> None:
    with collector_paused():
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_is_on_where_other_peoples_code_runs() -> None:
    seen: list[bool] = []

    def own(tensor: Tensor) -> None:
        seen.append(gc.isenabled())
        tensor.fill_(1.0)

    initialize(nn.Linear(2, 3), Rule("*", Constant(1.0)), seed=0, progress=lambda _: seen.append(gc.isenabled()))
    initialize(nn.Linear(2, 3), Rule("*", own), seed=0)
    assert len(seen) >= 4
    assert all(seen)


def test_a_thread_that_comes_while_another_pauses_leaves_it_on() -> None:
    """The second finds the collector off, and leaves after the first has switched it on."""
    first, second = collector_paused(), collector_paused()
    first.__enter__()
    thread = threading.Thread(target=second.__enter__)
    thread.start()
    thread.join()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert gc.isenabled()


def test_what_is_on_within_is_off_again_until_the_pause_ends() -> None:
    with collector_paused():
        with collector_paused(False):
            assert gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
