"""Findings: what is wrong with the initial values of a model, each with its evidence and the way out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Final
from urllib.parse import quote

from torchinit._folding import Column, Row, RowGroup, fold
from torchinit._tables import Table, Tabular
from torchinit._text import count
from torchinit.linting.registry import SEVERITIES, Check, Severity

_FORMAT = "torchinit-findings-1"
_SARIF = "https://json.schemastore.org/sarif-2.1.0.json"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or worth a look: which check found it, where, the evidence, and the way out.

    ``site`` is a parameter, a buffer or a module; it is empty where the whole model or a rule is meant.
    ``line`` is ``file.py:12``, where a trace knows the line that wrote.

    >>> print(Finding("TI103", "error", "0.weight", "3 of 64 values are NaN", "initialize it"))
    0.weight: TI103 error: 3 of 64 values are NaN; initialize it
    """

    code: str
    severity: Severity
    site: str
    message: str
    remedy: str = ""
    line: str = ""

    def __str__(self) -> str:
        line = f" ({self.line})" if self.line else ""
        return self._at_site(f"{self.code} {self.severity}: {self._text}{line}")

    @property
    def _text(self) -> str:
        return "; ".join(filter(None, (self.message, " ".join(self.remedy.split()))))

    def _at_site(self, text: str) -> str:
        return f"{self.site}: {text}" if self.site else text

    def to_sarif(self, rule: int, artifact: str) -> dict[str, object]:
        """The finding as a result of SARIF, by the check at this place among its rules."""
        path, _, number = self.line.rpartition(":")
        location: dict[str, object] = {}
        if path and number.isdigit():
            location["physicalLocation"] = _physical(path, int(number))
        elif artifact:
            location["physicalLocation"] = _physical(artifact, 1)
        if self.site:
            location["logicalLocations"] = [{"fullyQualifiedName": self.site, "kind": "member"}]
        return {
            "ruleId": self.code,
            "ruleIndex": rule,
            "level": self.severity,
            "message": {"text": self._at_site(self._text)},
            # What makes a finding the same one in the next run, whatever its numbers.
            "partialFingerprints": {"torchinit/v1": f"{self.code}:{self.site}"},
            **({"locations": [location]} if location else {}),
        }


def _physical(path: str, line: int) -> dict[str, object]:
    uri = quote(path.replace("\\", "/"))
    return {"artifactLocation": {"uri": f"file://{uri}" if uri.startswith("/") else uri}, "region": {"startLine": line}}


_COLUMNS: Final = (Column("code"), Column("severity"), Column("finding", "range"), Column("line"))
_MOST: Final = 10
"""The lines of one check and severity in a table that is not the full one."""


@dataclass(frozen=True, slots=True, repr=False)
class Findings(Tabular):
    """The findings of :func:`torchinit.lint`, the worst first; a sequence of :class:`Finding`.

    ``skipped`` holds the codes of the checks that had nothing to work on, each with what they would need.

    >>> findings = Findings((Finding("TI103", "error", "0.weight", "3 of 64 values are NaN"),))
    >>> len(findings), findings.codes, findings.errors == tuple(findings)
    (1, ('TI103',), True)
    """

    items: tuple[Finding, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.items)

    def __getitem__(self, at: int) -> Finding:
        return self.items[at]

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of the findings, each once, in order."""
        return tuple(sorted({finding.code for finding in self}))

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings of severity error."""
        return self.at_least("error")

    def at_least(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings that are as severe as this, or worse."""
        severe = SEVERITIES[: SEVERITIES.index(severity) + 1]
        return tuple(finding for finding in self if finding.severity in severe)

    def _table(self, *, full: bool = False) -> Table:
        rows = (Row(each.site or "-", (each.code, each.severity, each.message, each.line)) for each in self)
        groups = list[RowGroup]()
        remedies = dict.fromkeys(f"{each.code}: {each.remedy}" for each in self if each.remedy)
        more: list[str] = []
        for (code, severity), several in groupby(fold(rows, _COLUMNS, full=full), key=lambda group: group.cells[:2]):
            alike = [*several]
            groups += alike if full else alike[:_MOST]
            more += [f"{code} {severity}: and {len(alike) - _MOST} more"] if len(alike) > _MOST and not full else []
        return Table("site", _COLUMNS, groups, foot=(*more, *remedies, *self.summary().split("\n")), before=2)

    def _headline(self, groups: Sequence[RowGroup]) -> str:
        return f"Findings: {self._numbers()}"

    def _numbers(self) -> str:
        numbers = Counter(finding.severity for finding in self)
        return ", ".join(count(numbers[each], each) for each in SEVERITIES if numbers[each]) or "no findings"

    def summary(self) -> str:
        """The number of findings of each severity."""
        return self._numbers()

    def not_run(self) -> str:
        """The line that tells which checks had nothing to work on, empty if all had; ``check -v`` prints it."""
        needs: dict[str, list[str]] = {}
        for code, need in self.skipped:
            needs.setdefault(need, []).append(code)
        texts = [f"{need} ({', '.join(codes)})" for need, codes in needs.items()]
        return f"not run for want of {', '.join(texts)}" if texts else ""

    def to_dict(self) -> dict[str, object]:
        """The findings as plain data."""
        findings = [asdict(finding) for finding in self]
        return {"format": _FORMAT, "findings": findings, "skipped": [list(pair) for pair in self.skipped]}

    def to_json(self, *, indent: int | None = 2) -> str:
        """The findings as JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def to_sarif(self, *, checks: Mapping[str, Check] | None = None, artifact: str = "") -> str:
        """The findings as SARIF 2.1.0, which services for code review read.

        ``checks`` by their codes are described in it; ``artifact`` is the file that a finding without a line points to.
        The standard: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
        """
        codes = sorted({*(checks or {}), *self.codes})
        driver = {"name": "torchinit", "rules": [_sarif_rule(code, (checks or {}).get(code)) for code in codes]}
        results = [finding.to_sarif(codes.index(finding.code), artifact) for finding in self]
        log = {"$schema": _SARIF, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}
        return json.dumps(log, indent=2)


def _sarif_rule(code: str, check: Check | None) -> dict[str, object]:
    if check is None:
        return {"id": code}
    return {
        "id": code,
        "name": check.name,
        "shortDescription": {"text": check.summary},
        "fullDescription": {"text": check.text},
        "defaultConfiguration": {"level": check.severity},
    }
