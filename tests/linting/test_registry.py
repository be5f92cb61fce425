"""Checks and findings: what checks tell of themselves, how they are chosen, how findings are shown, as SARIF too."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from torch import nn

from tests.linting.sarif_schema import assert_sarif
from torchinit import ConfigError, lint
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


def results(findings: Findings, artifact: str = "") -> list[Any]:
    log = json.loads(findings.to_sarif(checks=CHECKS, artifact=artifact))
    assert_sarif(log)
    found: list[Any] = log["runs"][0]["results"]
    return found


def test_findings_of_a_model() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 2, enable_nested_tensor=False)
    findings = lint(model)
    (result,) = results(findings, "net.py")
    assert (result["ruleId"], result["level"]) == ("TI301", "error")
    assert result["message"]["text"] == f"layers.0: {findings[0].message}; {findings[0].remedy}"
    assert result["locations"] == [
        {
            "physicalLocation": {"artifactLocation": {"uri": "net.py"}, "region": {"startLine": 1}},
            "logicalLocations": [{"fullyQualifiedName": "layers.0", "kind": "member"}],
        }
    ]


@pytest.mark.parametrize(
    ("line", "uri", "number"),
    [
        ("a dir/net.py:12", "a%20dir/net.py", 12),
        ("/abs/net.py:3", "file:///abs/net.py", 3),
        ("C:\\net.py:3", "C%3A/net.py", 3),
    ],
)
def test_lines(line: str, uri: str, number: int) -> None:
    (result,) = results(Findings((Finding("TI103", "warning", "w", "NaN", line=line),)))
    where = result["locations"][0]["physicalLocation"]
    assert (where["artifactLocation"]["uri"], where["region"]["startLine"]) == (uri, number)


def test_a_finding_without_a_place() -> None:
    (result,) = results(Findings((Finding("TI102", "note", "", "on the meta device"),)))
    assert "locations" not in result
    assert result["message"]["text"] == "on the meta device"


def test_every_check_is_told_of() -> None:
    log = json.loads(Findings().to_sarif(checks=CHECKS))
    assert_sarif(log)
    assert [rule["id"] for rule in log["runs"][0]["tool"]["driver"]["rules"]] == sorted(CHECKS)


def test_a_code_that_nobody_tells_of() -> None:
    log = json.loads(Findings((Finding("X1", "note", "w", "odd"),)).to_sarif())
    assert_sarif(log)


def test_the_schema_can_fail() -> None:
    log = json.loads(Findings((Finding("TI103", "error", "w", "NaN"),)).to_sarif())
    damages: tuple[dict[str, object], ...] = (
        {"level": "fatal"},
        {"message": {}},
        {"ruleIndex": 0, "ruleId": "TI999"},
        {"odd": 1},
    )
    for damage in damages:
        broken = json.loads(json.dumps(log))
        broken["runs"][0]["results"][0].update(damage)
        with pytest.raises(AssertionError):
            assert_sarif(broken)
