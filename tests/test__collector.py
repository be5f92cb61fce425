"""The garbage collector is afterwards as it was, whatever happens in between."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest
from torch import Tensor, nn

from torchinit import Constant, Rule, initialize, plan
from torchinit._frozen import collector_paused
from torchinit.model.sites import Site
from torchinit.rules import Selector


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
