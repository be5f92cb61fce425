"""SARIF: what the standard demands of the objects that we write, checked without our code.

Written after chapters 3.13 to 3.52 of SARIF 2.1.0: each object's properties with their types, and which are required.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlparse

LEVELS = {"none", "note", "warning", "error"}
TEXT, NUMBER, LIST, TABLE = str, int, list, dict

OBJECTS: dict[str, tuple[set[str], dict[str, type]]] = {
    "log": ({"version", "runs"}, {"$schema": TEXT, "version": TEXT, "runs": LIST}),
    "run": ({"tool"}, {"tool": TABLE, "results": LIST}),
    "tool": ({"driver"}, {"driver": TABLE}),
    "driver": ({"name"}, {"name": TEXT, "rules": LIST, "informationUri": TEXT, "version": TEXT}),
    "rule": (
        {"id"},
        {"id": TEXT, "name": TEXT, "shortDescription": TABLE, "fullDescription": TABLE, "defaultConfiguration": TABLE},
    ),
    "message": ({"text"}, {"text": TEXT}),
    "configuration": (set(), {"level": TEXT}),
    "result": (
        {"message"},
        {
            "ruleId": TEXT, "ruleIndex": NUMBER, "level": TEXT, "message": TABLE, "locations": LIST,
            "partialFingerprints": TABLE,
        },
    ),
    "location": (set(), {"physicalLocation": TABLE, "logicalLocations": LIST}),
    "physical": ({"artifactLocation"}, {"artifactLocation": TABLE, "region": TABLE}),
    "artifact": ({"uri"}, {"uri": TEXT}),
    "region": ({"startLine"}, {"startLine": NUMBER}),
    "logical": ({"fullyQualifiedName"}, {"fullyQualifiedName": TEXT, "kind": TEXT}),
}  # fmt: skip


def assert_is(kind: str, data: Any) -> None:
    """Whether the data are such an object: nothing required is missing, nothing unknown, every type right."""
    required, known = OBJECTS[kind]
    assert isinstance(data, dict), f"{kind} is {data!r}"
    assert required <= set(data) <= set(known), f"{kind} has {sorted(data)}"
    for key, value in data.items():
        assert isinstance(value, known[key]), f"{kind}.{key} is {value!r}"


def assert_sarif(log: Any) -> None:
    """Whether the data are a SARIF log."""
    assert_is("log", log)
    assert log["version"] == "2.1.0"
    for run in log["runs"]:
        assert_is("run", run)
        assert_is("tool", run["tool"])
        driver = run["tool"]["driver"]
        assert_is("driver", driver)
        rules = driver.get("rules", [])
        for rule in rules:
            _assert_rule(rule)
        assert len({rule["id"] for rule in rules}) == len(rules)
        for result in run["results"]:
            _assert_result(result, rules)


def _assert_rule(rule: Any) -> None:
    assert_is("rule", rule)
    for key in ("shortDescription", "fullDescription"):
        if key in rule:
            assert_is("message", rule[key])
    if "defaultConfiguration" in rule:
        assert_is("configuration", rule["defaultConfiguration"])
        assert rule["defaultConfiguration"]["level"] in LEVELS


def _assert_result(result: Any, rules: list[Any]) -> None:
    assert_is("result", result)
    assert_is("message", result["message"])
    assert result["level"] in LEVELS
    assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
    for location in result.get("locations", []):
        assert_is("location", location)
        for logical in location.get("logicalLocations", []):
            assert_is("logical", logical)
        if "physicalLocation" in location:
            _assert_physical(location["physicalLocation"])
    assert all(isinstance(value, str) for value in result["partialFingerprints"].values())


def _assert_physical(physical: Any) -> None:
    assert_is("physical", physical)
    assert_is("artifact", physical["artifactLocation"])
    uri = physical["artifactLocation"]["uri"]
    assert " " not in uri
    assert "\\" not in uri
    assert urlparse(uri).scheme in ("", "file")
    if "region" in physical:
        assert_is("region", physical["region"])
        assert physical["region"]["startLine"] >= 1
