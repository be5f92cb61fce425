"""Findings: what is wrong with the initial values of a model, each with its evidence and the way out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

from torchinit._text import columns, count
from torchinit.linting import sarif

Severity: TypeAlias = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""From the worst to the least."""

_FORMAT = "torchinit-findings-1"


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
        where = f"{self.site}: " if self.site else ""
        tail = "".join([f"; {self.remedy}" if self.remedy else "", f" ({self.line})" if self.line else ""])
        return f"{where}{self.code} {self.severity}: {self.message}{tail}"


@dataclass(frozen=True, slots=True)
class Findings:
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

    def __str__(self) -> str:
        return self.table()

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of what was found, each once, in order."""
        return tuple(sorted({finding.code for finding in self}))

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings of severity error."""
        return self.at_least("error")

    def at_least(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings that are as severe as this, or worse."""
        worst = SEVERITIES.index(severity)
        return tuple(finding for finding in self if SEVERITIES.index(finding.severity) <= worst)

    def table(self, most: int = 10) -> str:
        """The findings as plain text, a line each, then the ways out, and how many there are of each severity.

        Of one code and severity the first ``most`` are shown.
        """
        groups: dict[tuple[str, str], list[tuple[str, ...]]] = {}
        for each in self:
            row = (each.code, each.severity, each.site or "-", " ".join(filter(None, (each.message, each.line))))
            groups.setdefault(row[:2], []).append(row)
        table: list[tuple[str, ...]] = []
        for kind, rows in groups.items():
            more = [(*kind, "...", f"and {len(rows) - most} more")] if len(rows) > most else []
            table += [*rows[:most], *more]
        remedies = dict.fromkeys(f"{each.code}: {each.remedy}" for each in self if each.remedy)
        head = [columns(("code", "severity", "site", "finding"), table)] if table else []
        return "\n".join([*head, *remedies, self.summary()])

    def summary(self) -> str:
        """The number of findings, and which checks could not run."""
        numbers = Counter(finding.severity for finding in self)
        lines = [", ".join(count(numbers[each], each) for each in SEVERITIES if numbers[each]) or "no findings"]
        needs: dict[str, list[str]] = {}
        for code, need in self.skipped:
            needs.setdefault(need, []).append(code)
        lines += [f"not run for want of {need}: {', '.join(codes)}" for need, codes in needs.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """The findings as plain data."""
        return {
            "format": _FORMAT,
            "findings": [asdict(finding) for finding in self],
            "skipped": [list(pair) for pair in self.skipped],
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """The findings as JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def to_sarif(self, *, checks: Mapping[str, sarif.Described] | None = None, artifact: str = "") -> str:
        """The findings as SARIF 2.1.0, which services for code review read.

        ``checks`` by their codes are described in it; ``artifact`` is the file that a finding without a line points to.
        """
        return sarif.to_sarif([asdict(finding) for finding in self], checks or {}, artifact)
