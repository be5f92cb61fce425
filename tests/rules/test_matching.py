"""Matching by sets is matching one by one; what is a user's own is asked as if there were no sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from tests import strategies
from torchinit import Constant, Layer, Leaf, Name, Normal, Rule, plan
from torchinit.initializers import Fill, Initializer
from torchinit.initializers.base import fill_of
from torchinit.initializers.source import resolve_all
from torchinit.model.sites import Site
from torchinit.model.sites import sites as sites_of
from torchinit.rules import Selector, Within
from torchinit.rules.matching import Matcher


def one_by_one(rule: Rule, sites: Sequence[Site]) -> list[int]:
    return [number for number, site in enumerate(sites) if rule.matches(site)]


@given(st.lists(strategies.sites(), max_size=12), st.lists(strategies.rules(), max_size=4))
def test_sets_select_what_each_site_would(sites: list[Site], rules: list[Rule]) -> None:
    matcher = Matcher(sites)
    for rule in rules:
        assert matcher.matched(rule) == one_by_one(rule, sites)
        assert matcher.is_selected(rule.where) == any(map(rule.where.matches, sites))


@given(st.lists(strategies.names(), min_size=1, max_size=12), strategies.globs())
def test_globs_are_tried_on_all_names_that_they_can_fit(names: list[str], glob: str) -> None:
    sites = [Site(name, (2, 3)) for name in names]
    for where in (Name(glob), Within(glob), Name("nothing", glob), Within("")):
        rule = Rule(where, Constant(1.0))
        assert Matcher(sites).matched(rule) == one_by_one(rule, sites)


class Asked(Selector):
    """A user's own: notes whom it is asked of."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def matches(self, site: Site) -> bool:
        self.names.append(site.name)
        return site.name.endswith("weight")


@pytest.mark.parametrize(
    ("around", "asked"),
    [
        (lambda own: own, ["0.weight", "0.bias", "1.weight", "1.bias"]),
        (lambda own: own & Name("1.*"), ["0.weight", "0.bias", "1.weight", "1.bias"]),
        (lambda own: Name("1.*") & own, ["1.weight", "1.bias"]),
        (lambda own: Leaf("weight") | ~own, ["0.bias", "1.bias"]),
    ],
    ids=["alone", "first", "second", "what is left"],
)
def test_a_selector_of_a_users_own_is_asked_in_its_turn(
    around: Callable[[Selector], Selector], asked: list[str]
) -> None:
    own = Asked()
    plan(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)), Rule(around(own), Constant(1.0)))
    assert own.names == asked


def test_a_subclass_of_a_selector_is_a_users_own() -> None:
    class Mine(Leaf):  # type: ignore[misc]  # it is final for type checkers alone
        def matches(self, site: Site) -> bool:
            return site.name == "0.bias"

    sites = sites_of(nn.Sequential(nn.Linear(2, 3)))
    assert Matcher(sites).matched(Rule(Mine("weight"), Constant(1.0))) == [1]
    assert Matcher(sites).matched(Rule(Mine("weight") | Layer("Conv2d"), Constant(1.0))) == [1]


def answer(init: Initializer, site: Site) -> object:
    """The fill, or what kind of error there is instead."""
    try:
        return fill_of(init, site)
    except ValueError as error:
        return type(error)


@given(st.one_of(strategies.formulas(), strategies.elementwise_fills()), strategies.sites(), strategies.sites())
def test_an_answer_depends_on_no_more_than_is_declared(init: Initializer, site: Site, other: Site) -> None:
    declared: tuple[str, ...] | None = vars(type(init)).get("looks_at")
    assume(declared is not None)
    assert declared is not None
    kept = {"shape", "dtype", *declared}
    changes = {each.name: getattr(other, each.name) for each in fields(Site) if each.name not in kept}
    assert answer(init, site) == answer(init, replace(site, **changes))


class Own(Normal):  # type: ignore[misc]  # it is final for type checkers alone
    """A user's own formula, made of one of ours: it looks at the name, too."""

    def resolve(self, site: Site) -> Fill:
        return Constant(float(len(site.name)))


def test_a_formula_of_a_users_own_is_asked_for_each_site() -> None:
    sites = [Site("a", (3,)), Site("bb", (3,))]
    found = resolve_all(Own(), [(site, site) for site in sites], sites)
    assert found.fills == {"a": Constant(1.0), "bb": Constant(2.0)}
    shared = resolve_all(Normal(std=0.5), [(site, site) for site in sites], sites)
    assert shared.fills["a"] is shared.fills["bb"]
