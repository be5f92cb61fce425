"""Checks and findings: what checks tell about themselves, how they are chosen, and how their findings are shown."""

from __future__ import annotations

import json
import re

import pytest

from torchinit import ConfigError
from torchinit.linting import CHECKS, SEVERITIES, Finding, Findings, select_checks


@pytest.mark.parametrize("code", CHECKS)
def test_a_check_tells_about_itself(code: str) -> None:
    one = CHECKS[code]
    assert re.fullmatch(r"TI[1-79]\d\d", code)
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", one.name)
    assert one.severity in SEVERITIES
    summary, *more = one.text.split("\n\n")
    assert summary.endswith(".")
    assert one.summary == " ".join(summary.split())
    assert more, f"{code} does not say why, and how it is decided"
    assert not one.remedy.endswith(".")


def test_names_are_different() -> None:
    assert len({one.name for one in CHECKS.values()}) == len(CHECKS)


def test_selecting() -> None:
    assert [one.code for one in select_checks((), ())] == sorted(CHECKS)
    assert {one.code for one in select_checks(("TI3",), ("TI302",))} == {"TI301", "TI303", "TI304"}
    assert [one.code for one in select_checks(("meta", "TI103"), ())] == ["TI102", "TI103"]
    assert "TI102" not in {one.code for one in select_checks((), ("meta",))}


def test_a_word_that_is_not_a_check() -> None:
    with pytest.raises(ConfigError, match="a check goes by its code") as caught:
        select_checks(("XY9", "same-in-layer"), ("T",))
    assert caught.value.problems == (
        "'XY9' is not a check",
        "'same-in-layer' is not a check; did you mean 'same-in-layers'?",
        "'T' is not a check",
    )


ERROR = Finding("TI103", "error", "0.weight", "3 of 64 values are NaN", "initialize it", "net.py:12")
NOTE = Finding("TI102", "note", "", "all 2 tensors are on the meta device")
BOTH = Findings((ERROR, NOTE), (("TI701", "a recipe"), ("TI702", "a recipe"), ("TI203", "loaded weights")))


def test_a_finding_as_text() -> None:
    assert str(ERROR) == "0.weight: TI103 error: 3 of 64 values are NaN; initialize it (net.py:12)"
    assert str(NOTE) == "TI102 note: all 2 tensors are on the meta device"


def test_they_are_a_sequence() -> None:
    assert len(BOTH) == 2
    assert list(BOTH) == [BOTH[0], BOTH[1]] == [ERROR, NOTE]
    assert BOTH.codes == ("TI102", "TI103")


def test_by_severity() -> None:
    assert BOTH.errors == BOTH.at_least("error") == BOTH.at_least("warning") == (ERROR,)
    assert BOTH.at_least("note") == (ERROR, NOTE)


def test_as_a_table() -> None:
    assert str(BOTH).splitlines() == [
        "code   severity  site      finding                               line",
        "TI103  error     0.weight  3 of 64 values are NaN                net.py:12",
        "TI102  note      -         all 2 tensors are on the meta device",
        "TI103: initialize it",
        "1 error, 1 note",
    ]
    assert str(Findings()) == "no findings"


def test_what_did_not_run_is_one_line() -> None:
    assert BOTH.not_run() == "not run for want of a recipe (TI701, TI702), loaded weights (TI203)"
    assert Findings().not_run() == ""


def test_a_table_does_not_grow_without_end() -> None:
    many = Findings(tuple(Finding("TI103", "error", "abcdefghijkl"[at], "NaN") for at in range(12)))
    assert str(many).splitlines()[10:] == [
        "TI103  error     j     NaN",
        "TI103 error: and 2 more",
        "12 errors",
    ]
    assert len(many.table(full=True).splitlines()) == 14
    like = Findings(tuple(Finding("TI103", "error", f"h.{at}.w", f"{at + 3} are NaN") for at in range(12)))
    assert str(like).splitlines()[1].split() == ["TI103", "error", "h.0-11.w", "12", "3…14", "are", "NaN"]


def test_as_json() -> None:
    data = json.loads(BOTH.to_json())
    assert data["format"] == "torchinit-findings-1"
    assert [Finding(**one) for one in data["findings"]] == [ERROR, NOTE]
    assert data["skipped"][2] == ["TI203", "loaded weights"]
