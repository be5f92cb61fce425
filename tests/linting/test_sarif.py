"""SARIF: what is written is what the standard demands, and says what the findings say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torch import nn

from tests.linting.sarif_schema import assert_sarif
from torchinit import lint
from torchinit.linting import CHECKS, Finding, Findings


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
