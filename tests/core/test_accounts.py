"""Accounts: what they count, what they complain of, and how they print."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import names
from torchinit import Account
from torchinit.core.accounts import Guess, shortened

FULL = Account("a.pth", loaded=("body.0.weight", "body.0.bias"), elements=(6, 6))
PART = Account(
    "a.pth",
    part="model",
    loaded=("body.0.weight",),
    adapted=(("body.stem", "InputChannels()"),),
    declined=(("head.weight", "has shape [2], but the file [3]"),),
    expected=("head.bias",),
    missing=("body.1.weight",),
    unexpected=("fc.weight",),
    casts=(("body.0.weight", "float16 -> float32"),),
    elements=(999, 1000),
    notes=("taken from 'model'",),
    hints=("with prefix='x.' 3 of 5 match",),
)


def test_counts() -> None:
    assert (PART.found, PART.wanted, PART.percent()) == (2, 5, 99.9)
    assert FULL.complete
    assert not PART.complete
    assert Account("a.pth").percent() == 0.0
    assert not Account("a.pth").complete


def test_a_hundred_percent_is_all_of_it() -> None:
    assert FULL.headline() == "a.pth: 100 % of the elements loaded, 2 of 2 sites"
    assert replace(FULL, elements=(99_999, 100_000)).headline().startswith("a.pth: 99.9 %")


def test_the_table() -> None:
    fates = "1 adapted, 1 declined, 1 missing as expected, 1 missing, 1 unexpected"
    assert PART.headline() == f"a.pth, part 'model': 99.9 % of the elements loaded, 2 of 5 sites, {fates}"
    assert PART.table().splitlines() == [
        PART.headline(),
        "  part  loaded  adapted  declined  expected  missing  mismatched",
        "  body  1       1        -         -         1        -",
        "  head  -       -        1         1         -        -",
        "  taken from 'model'",
        "  adapted body.stem: InputChannels()",
        "  declined head.weight: has shape [2], but the file [3]",
        "  missing: body.1.weight",
        "  unexpected: fc.weight",
        "  cast float16 -> float32: 1 site",
        "  with prefix='x.' 3 of 5 match",
    ]


def test_parts_that_begin_alike_are_told_apart_further_down() -> None:
    account = Account("a.pth", loaded=("net.a.weight", "net.b.weight"), missing=("net.b.bias",), elements=(2, 3))
    assert [line.split()[0] for line in account.table().splitlines()[2:4]] == ["net.a", "net.b"]


def test_problems() -> None:
    assert FULL.problems == ()
    assert Account("a.pth", failure="a.pth: is empty").problems == ("a.pth: is empty",)
    assert Account("a.pth", failure="a.pth: is empty").headline() == "a.pth: is empty"
    nothing = Account("a.pth", missing=("w", "b"), bare=("w", "b"), hints=("with prefix='x.' 2 of 2 match",))
    assert nothing.problems == ("a.pth: 0 of 2 tensors match the model.\n    with prefix='x.' 2 of 2 match",)
    wrong = replace(FULL, mismatched=(("w", "has shape [2], but the file [3]"),))
    (text,) = wrong.problems
    assert text == (
        "a.pth: 1 site of 3 does not fit.\n    w has shape [2], but the file [3]\n"
        "    on_shape='skip' leaves what has another shape to its other rules"
    )
    (kinds,) = replace(FULL, mismatched=tuple((f"w{n}", "is float32") for n in range(7))).problems
    assert kinds.splitlines()[0] == "a.pth: 7 sites of 9 do not fit."
    assert kinds.splitlines()[-2:] == ["    w4 is float32", "    and 2 more"]
    (bare,) = replace(PART, bare=PART.missing).problems
    assert "1 site of 5 is not in the file, and no other rule writes it: body.1.weight" in bare
    assert "with prefix='x.' 3 of 5 match" in bare


def test_what_is_blamed_on_a_checkpoint() -> None:
    assert replace(PART, bare=("w",)).blamed == {"w"}
    assert PART.blamed == FULL.blamed == frozenset()
    nothing = Account("a.pth", expected=("a",), mismatched=(("b", "x"),), declined=(("c", "y"),), bare=("d",))
    assert nothing.blamed == {"a", "b", "c", "d"}
    assert Account("a.pth", failure="a.pth: is empty", missing=("w",), bare=("w",)).blamed == {"w"}


def test_a_file_that_could_not_be_read_has_no_table() -> None:
    account = Account("a.pth", failure="a.pth: is empty", missing=("w", "b"))
    assert account.table() == account.summary() == "a.pth: is empty"


def test_rows_call_a_checkpoint_by_as_much_of_its_path_as_tells_it_apart() -> None:
    loads = [
        Account(source) for source in ("/a/x/net.pth", "/b/x/net.pth", "https://host/net.pth", "/c/other.pth", "o")
    ]
    cells = ["w of /a/x/net.pth", "w of /b/x/net.pth", "w of https://host/net.pth", "w of /c/other.pth", "o of o"]
    (row,) = shortened([cells], loads)
    assert row == ["w of a/x/net.pth", "w of b/x/net.pth", "w of host/net.pth", "w of other.pth", "o of o"]
    assert shortened([cells], []) == [cells]


def test_what_other_rules_write_is_a_warning() -> None:
    (text,) = PART.warnings
    assert text.startswith(
        "a.pth: 1 site not in the file, left to other rules: body.1.weight. Say so with expect_missing"
    )
    assert replace(PART, bare=PART.missing).warnings == ()
    assert FULL.warnings == ()


@given(st.lists(names(), unique=True), st.lists(names(), unique=True), st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_there_and_back_through_json(loaded: list[str], missing: list[str], elements: tuple[int, int]) -> None:
    account = Account(
        "a.pth", loaded=tuple(loaded), missing=tuple(missing), casts=tuple((n, "x") for n in loaded), elements=elements
    )
    account = replace(account, guess=Guess("x.", (("a", "b"),), 1, 2) if loaded else None)
    assert Account.from_dict(json.loads(json.dumps(account.to_dict()))) == account
    assert str(account) == account.table()


@pytest.mark.parametrize("account", [FULL, PART])
def test_the_repr_rebuilds(account: Account) -> None:
    assert eval(repr(account)) == account
