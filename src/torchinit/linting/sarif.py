"""SARIF: findings in the format of services for code review, version 2.1.0.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import quote

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


class Described(Protocol):
    """A check: its name, what it finds in a sentence and in full, and how bad that is."""

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def severity(self) -> str: ...


def to_sarif(findings: Sequence[Mapping[str, Any]], checks: Mapping[str, Described], artifact: str) -> str:
    """The findings, as plain data, as one run of a tool.

    >>> finding = {"code": "TI103", "severity": "error", "site": "w", "message": "NaN", "line": "a.py:3"}
    >>> text = to_sarif([finding], {}, "")
    >>> json.loads(text)["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    {'artifactLocation': {'uri': 'a.py'}, 'region': {'startLine': 3}}
    """
    codes = sorted({*checks, *(finding["code"] for finding in findings)})
    driver = {"name": "torchinit", "rules": [_rule(code, checks.get(code)) for code in codes]}
    results = [_result(finding, codes.index(finding["code"]), artifact) for finding in findings]
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}
    return json.dumps(log, indent=2)


def _rule(code: str, check: Described | None) -> dict[str, object]:
    if check is None:
        return {"id": code}
    return {
        "id": code,
        "name": check.name,
        "shortDescription": {"text": check.summary},
        "fullDescription": {"text": check.text},
        "defaultConfiguration": {"level": check.severity},
    }


def _result(finding: Mapping[str, Any], rule: int, artifact: str) -> dict[str, object]:
    text = "; ".join(filter(None, [finding["message"], finding.get("remedy")]))
    site = finding["site"]
    result = {
        "ruleId": finding["code"],
        "ruleIndex": rule,
        "level": finding["severity"],
        "message": {"text": f"{site}: {text}" if site else text},
        # What makes a finding the same one in the next run, whatever its numbers.
        "partialFingerprints": {"torchinit/v1": f"{finding['code']}:{site}"},
    }
    location = _location(site, finding["line"], artifact)
    return {**result, "locations": [location]} if location else result


def _location(site: str, line: str, artifact: str) -> dict[str, object]:
    location: dict[str, object] = {}
    path, _, number = line.rpartition(":")
    if path and number.isdigit():
        location["physicalLocation"] = _physical(path, int(number))
    elif artifact:
        location["physicalLocation"] = _physical(artifact, 1)
    if site:
        location["logicalLocations"] = [{"fullyQualifiedName": site, "kind": "member"}]
    return location


def _physical(path: str, line: int) -> dict[str, object]:
    uri = quote(path.replace("\\", "/"))
    return {"artifactLocation": {"uri": f"file://{uri}" if uri.startswith("/") else uri}, "region": {"startLine": line}}
