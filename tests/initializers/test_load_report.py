"""Load reports: what they count, what they complain of, how they print, and how they are saved."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import names
from torchinit import ConfigError, Plan
from torchinit.initializers import LoadReport
from torchinit.initializers.load_report import Cast, Guess, Mismatch

FULL = LoadReport("a.pth", loaded=("body.0.weight", "body.0.bias"), elements=(6, 6))
PART = LoadReport(
    "a.pth",
    part="model",
    loaded=("body.0.weight",),
    adapted=(("body.stem", "InputChannels()"),),
    declined=(("head.weight", "has shape [2], but the file [3]"),),
    expected=("head.bias",),
    missing=("body.1.weight",),
    unexpected=("fc.weight",),
    casts=(Cast("body.0.weight", (torch.float16, torch.float32)),),
    elements=(999, 1000),
    notes=("taken from 'model'",),
    hints=("with prefix='x.' 3 of 5 match",),
)


def test_counts() -> None:
    assert (PART.found, PART.wanted) == (2, 5)
    assert FULL.complete
    assert not PART.complete
    assert not LoadReport("a.pth").complete


def test_a_hundred_percent_is_all_of_it() -> None:
    assert FULL.headline() == "a.pth: 100 % of the elements loaded, 2 of 2 sites"
    assert replace(FULL, elements=(99_999, 100_000)).headline().startswith("a.pth: 99.9 %")


def test_the_table() -> None:
    fates = "1 adapted, 1 declined, 1 missing as expected, 1 missing, 1 unexpected"
    assert PART.headline() == f"a.pth, part 'model': 99.9 % of the elements loaded, 2 of 5 sites, {fates}"
    assert PART.table().splitlines() == [
        "a.pth, part 'model': 99.9 % of the elements loaded, 2 of 5 sites, 1 adapted, 1 declined, 1 missing",
        "  as expected, 1 missing, 1 unexpected",
        "",
        "outcome   site           how",
        "adapted   body.stem      InputChannels()",
        "declined  head.weight    has shape [2], but the file [3]",
        "expected  head.bias",
        "missing   body.1.weight",
        "",
        "taken from 'model'",
        "unexpected: fc.weight",
        "cast float16 -> float32: 1 site",
        "with prefix='x.' 3 of 5 match",
    ]
    assert "loaded    body.0.weight" in PART.table(full=True).splitlines()


def test_sites_of_like_layers_are_one_line() -> None:
    names = tuple(f"net.{at}.bias" for at in range(12))
    account = LoadReport("a.pth", loaded=("net.0.weight",), missing=names, elements=(2, 3))
    assert account.table().splitlines()[3].split() == ["missing", "net.*.bias", "12"]
    assert account.summary().splitlines()[1] == "  missing: net.0-11.bias ×12"
    wrong = tuple(Mismatch(name, f"has shape [{at}], but the file [3]") for at, name in enumerate(names))
    assert "net.0-11.bias ×12 has shape [0…11], but the file [3]" in LoadReport("a.pth", mismatched=wrong).problems[0]


def test_problems() -> None:
    assert FULL.problems == ()
    assert LoadReport("a.pth", failure="a.pth: is empty").problems == ("a.pth: is empty",)
    assert LoadReport("a.pth", failure="a.pth: is empty").headline() == "a.pth: is empty"
    nothing = LoadReport(
        "a.pth", missing=("w", "b"), uninitialized=("w", "b"), hints=("with prefix='x.' 2 of 2 match",)
    )
    assert nothing.problems == ("a.pth: 0 of 2 tensors match the model.\n    with prefix='x.' 2 of 2 match",)
    wrong = replace(FULL, mismatched=(Mismatch("w", "has shape [2], but the file [3]", "shape"),))
    (text,) = wrong.problems
    assert text == (
        "a.pth: 1 site of 3 does not fit.\n    w has shape [2], but the file [3]\n"
        "    on_shape='skip' leaves what has another shape to its other rules"
    )
    (kinds,) = replace(FULL, mismatched=tuple(Mismatch(f"w{n}", "is float32") for n in range(7))).problems
    assert kinds.splitlines()[0] == "a.pth: 7 sites of 9 do not fit."
    assert kinds.splitlines()[-2:] == ["    w4 is float32", "    and 2 more"]
    (bare,) = replace(PART, uninitialized=PART.missing).problems
    assert "1 site of 5 is not in the file, and no other rule writes it: body.1.weight" in bare
    assert "with prefix='x.' 3 of 5 match" in bare


def test_sites_that_fail_because_of_a_checkpoint() -> None:
    assert replace(PART, uninitialized=("w",)).failed_sites == {"w"}
    assert PART.failed_sites == FULL.failed_sites == frozenset()
    nothing = LoadReport(
        "a.pth", expected=("a",), mismatched=(Mismatch("b", "x"),), declined=(("c", "y"),), uninitialized=("d",)
    )
    assert nothing.failed_sites == {"a", "b", "c", "d"}
    assert LoadReport("a.pth", failure="a.pth: is empty", missing=("w",), uninitialized=("w",)).failed_sites == {"w"}


def test_a_file_that_could_not_be_read_has_no_table() -> None:
    account = LoadReport("a.pth", failure="a.pth: is empty", missing=("w", "b"))
    assert account.table() == account.summary() == "a.pth: is empty"


def test_what_other_rules_write_is_a_warning() -> None:
    text, _ = PART.warnings
    assert text.startswith(
        "a.pth: 1 site not in the file, left to other rules: body.1.weight. Say so with expect_missing"
    )
    assert replace(PART, uninitialized=PART.missing).lapses == ()
    assert FULL.warnings == ()


@given(st.lists(names(), unique=True), st.lists(names(), unique=True), st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_there_and_back_through_json(loaded: list[str], missing: list[str], elements: tuple[int, int]) -> None:
    casts = tuple(Cast(name, (torch.int8, torch.int64)) for name in loaded)
    wrong = tuple(Mismatch(name, "x", "shape") for name in missing)
    account = LoadReport(
        "a.pth", loaded=tuple(loaded), missing=tuple(missing), mismatched=wrong, casts=casts, elements=elements
    )
    account = replace(account, guess=Guess("x.", (("a", "b"),), 1, 2) if loaded else None)
    assert LoadReport.from_dict(json.loads(json.dumps(account.to_dict()))) == account
    assert str(account) == account.table()


OLD = {
    "source": "a.pth",
    "declined": [["head.weight", "Drop()"]],
    "missing": ["w"],
    "bare": ["w"],
    "mismatched": [["b", "has shape [2], but the file [3]"]],
    "casts": [["c", "float64 -> bfloat16 -> float32"]],
    "idle": ["adapt: 'x' matches no site"],
    "elements": [3, 9],
    "guess": {"prefix": "net.", "rename": [], "matching": 1, "wanted": 2},
}
"""What plans and reports of format 1 hold."""


def test_older_data_are_read_and_keys_stay_as_they_are_saved() -> None:
    account = LoadReport.from_dict(OLD)
    assert (account.uninitialized, account.unused_patterns) == (("w",), ("adapt: 'x' matches no site",))
    assert account.mismatched == (Mismatch("b", "has shape [2], but the file [3]"),)
    assert account.casts == (Cast("c", (torch.float64, torch.bfloat16, torch.float32)),)
    saved = json.loads(json.dumps(account.to_dict()))
    added: dict[str, Any] = {"prefix": "net.", "rename": [], "matching": 1, "wanted": 2, "rivals": []}
    changed = {"mismatched": [["b", "has shape [2], but the file [3]", "other"]], "guess": added}
    assert saved.items() >= {**OLD, **changed}.items()
    assert "uninitialized" not in saved
    plan = Plan(loads=(account, PART))
    assert json.loads(plan.to_json())["loads"] == [saved, json.loads(json.dumps(PART.to_dict()))]
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("data", "problems"),
    [
        ([], ("must be a table, but got []",)),
        ({}, ("LoadReport needs 'source', text",)),
        ({**OLD, "bare": 3, "part": None}, ("uninitialized: must be a list, but got 3", "part: must be text, but got")),
        ({**OLD, "casts": [["c", 3], "d"]}, ("casts[0]: must be a table", "casts[1]: must be a table, but got 'd'")),
        ({**OLD, "casts": [["c", "float33"]]}, ("casts[0].dtypes[0]: must be the name of a dtype, but got 'float33'",)),
        ({**OLD, "mismatched": [["a"], ["a", "b", "c"]]}, ("mismatched[0]: must be", "mismatched[1].reason: must be")),
    ],
)
def test_data_that_are_not_a_load_report(data: Any, problems: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        LoadReport.from_dict(data)
    assert len(caught.value.problems) == len(problems)
    for problem, text in zip(sorted(caught.value.problems), sorted(problems), strict=True):
        assert problem.startswith(text)
    with pytest.raises(ConfigError, match=re.escape("loads[0]")):
        Plan.from_json(json.dumps({"format": "torchinit-plan-1", "loads": [data]}))


def test_numbers_of_another_kind_have_their_own_remedy() -> None:
    kind = Mismatch("w", "is float32, but the file holds whole numbers (int64)", "kind")
    (text,) = replace(FULL, mismatched=(kind, Mismatch("v", "has shape [2], but the file [3]", "shape"))).problems
    assert text.splitlines()[-2:] == [
        "    on_shape='skip' leaves what has another shape to its other rules",
        "    numbers of another kind are not cast: exclude these sites, or give a dict of what you cast",
    ]
    (nothing,) = LoadReport("a.pth", mismatched=(Mismatch("v", "has shape [2], but the file [3]", "shape"),)).problems
    assert "on_shape" not in nothing
