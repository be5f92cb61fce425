"""Registry: checks, functions that each look for one thing that goes wrong, by code and name; and their findings."""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Final, Literal, NamedTuple, TypeAlias
from urllib.parse import quote

from torchinit._folding import Column, Row, RowGroup, fold
from torchinit._tables import Table, Tabular
from torchinit._text import count, did_you_mean
from torchinit.errors import ConfigError
from torchinit.serialization.registry import load_plugin, plugins

Severity: TypeAlias = Literal["error", "warning", "note"]

SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")
"""From the worst to the least."""

Need: TypeAlias = Literal["sites", "values", "plan", "trace", "report", "loaded", "history", "probe", "ranks"]

NEEDS: Final[dict[Need, str]] = {
    "sites": "a model",
    "values": "values (the model is on the meta device)",
    "plan": "a recipe",
    "trace": "a trace",
    "report": "a report",
    "loaded": "loaded weights",
    "history": "loaded weights or a trace",
    "ranks": "the other ranks (group=...)",
    "probe": "a pass forward and back (torchinit.probe)",
}
"""The needs of checks, in words."""


class Hit(NamedTuple):
    """A hit of a check, which becomes a finding. ``severity`` and ``remedy`` replace those of the check.

    >>> Hit("fc.weight", "all 8 values are 0").site
    'fc.weight'
    """

    site: str
    message: str
    severity: Severity | None = None
    remedy: str = ""
    line: str = ""


Search: TypeAlias = Callable[[Any], Iterable[Hit]]
"""The function of a check, of the :class:`LintTarget` as a rule."""


@dataclass(frozen=True, slots=True)
class Check:
    """A check: its stable code, how bad a finding is at worst, what it needs, the way out, and its function.

    The function is a :data:`Search` of what :func:`torchinit.lint` looks at, or reads a measurement.
    """

    code: str
    severity: Severity
    needs: Need
    remedy: str
    search: Callable[[Any], Iterable[Any]]

    @property
    def name(self) -> str:
        """The name of the function, with hyphens."""
        return self.search.__name__.replace("_", "-")

    @property
    def text(self) -> str:
        """The function's docstring: what is looked for, why, how it is decided, and when it may be wrong."""
        return inspect.getdoc(self.search) or ""

    @property
    def summary(self) -> str:
        """The first sentence of the text."""
        return " ".join(self.text.partition("\n\n")[0].split())

    def matches(self, word: str) -> bool:
        """Whether a word is the check's name, its code, or the beginning of its code."""
        return word == self.name or (_BEGINNING.fullmatch(word) is not None and self.code.startswith(word))

    def finding(self, hit: Hit) -> Finding:
        """The finding that a hit of this check is."""
        severity, remedy = hit.severity or self.severity, hit.remedy or self.remedy
        return Finding(self.code, severity, hit.site, hit.message, remedy, hit.line)

    def to_sarif(self) -> dict[str, object]:
        """The check as a rule of SARIF."""
        return {
            "id": self.code,
            "name": self.name,
            "shortDescription": {"text": self.summary},
            "fullDescription": {"text": self.text},
            "defaultConfiguration": {"level": self.severity},
        }


# A check is one function and nothing beside it: its docstring is the row in the guide's table of codes, what `explain`
# prints and the text in SARIF, so that these cannot differ. Its severity is the worst that it reports: an error is
# certain, by a count, a comparison of bits or a bound that follows from the number of values; what a model may have on
# purpose is a warning or a note. A check that has nothing to work on is listed as skipped, never passed over silently.
CHECKS: Final[dict[str, Check]] = {}
"""All checks by their codes; those of plug-ins once :func:`known_checks` has been called."""

_PLUGINS: Final = "torchinit.checks"
_BEGINNING: Final = re.compile("[A-Z]{2,}[0-9]*")


def known_checks() -> Mapping[str, Check]:
    """All checks by their codes, those of other packages among them, whose entry points are called by the code.

    Raises ConfigError for an entry point that brings no check of this code.
    """
    for code, point in plugins(_PLUGINS).items():
        if code not in CHECKS:
            load_plugin(point, "check")
        if code not in CHECKS:
            why = f"it has no function with the decorator torchinit.linting.check({code!r}, ...)"
            raise ConfigError(f"the plug-in for check {code!r} ({point.value}) cannot be used: {why}")
    return CHECKS


def check(
    code: str, severity: Severity, needs: Need, remedy: str, registry: dict[str, Check] | None = None
) -> Callable[[Search], Search]:
    """Register a function as a check, under its own name and a code: capitals, then digits.

    The function gets a :class:`LintTarget`, or what the checks of another ``registry`` look at, and yields a
    :class:`Hit` for each finding. Raises ValueError for a code of another form, or that another check has.

    >>> @check("ACME101", "note", "values", "draw it narrower")
    ... def wide_values(target):
    ...     "A value beyond 9."
    ...     return [Hit(each.name, "is wide") for each in target.drawn if each.statistics.reach > 9]
    >>> CHECKS.pop("ACME101").name
    'wide-values'
    """

    def register(search: Search) -> Search:
        if not _BEGINNING.fullmatch(code) or code.isalpha():
            raise ValueError(f"the code of a check is capitals and then digits, such as 'ACME101', but got {code!r}")
        checks = CHECKS if registry is None else registry
        if code in checks and checks[code].search.__qualname__ != search.__qualname__:
            raise ValueError(f"the check {code!r} is taken: it is {checks[code].name}")
        checks[code] = Check(code, severity, needs, remedy, search)
        return search

    return register


def select_checks(select: Iterable[str], ignore: Iterable[str]) -> tuple[Check, ...]:
    """The checks that are selected, all if none is, and not ignored.

    Raises ConfigError for what is neither a name, a code nor the beginning of one.
    """
    wanted, unwanted = tuple(select), tuple(ignore)
    checks = [each for _, each in sorted(known_checks().items())]
    names = [name for each in checks for name in (each.code, each.name)]
    problems = [
        f"{word!r} is not a check{did_you_mean(word, names)}"
        for word in dict.fromkeys([*wanted, *unwanted])
        if not any(each.matches(word) for each in checks)
    ]
    if problems:
        raise ConfigError("a check goes by its code, the beginning of codes, or its name", problems)
    selected = [each for each in checks if not wanted or any(map(each.matches, wanted))]
    return tuple(each for each in selected if not any(map(each.matches, unwanted)))


# --- findings --------------------------------------------------------------------------------------------------------

_FORMAT: Final = "torchinit-findings-1"
_SARIF: Final = "https://json.schemastore.org/sarif-2.1.0.json"


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
        if not (path and number.isdigit()):
            path, number = artifact, "1"
        location: dict[str, object] = {"physicalLocation": _physical(path, int(number))} if path else {}
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
        return f"Findings: {self.summary()}"

    def summary(self) -> str:
        """The number of findings of each severity."""
        numbers = Counter(finding.severity for finding in self)
        return ", ".join(count(numbers[each], each) for each in SEVERITIES if numbers[each]) or "no findings"

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
        known = checks or {}
        codes = sorted({*known, *self.codes})
        rules = [known[code].to_sarif() if code in known else {"id": code} for code in codes]
        driver = {"name": "torchinit", "rules": rules}
        results = [finding.to_sarif(codes.index(finding.code), artifact) for finding in self]
        log = {"$schema": _SARIF, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}
        return json.dumps(log, indent=2)


def sorted_findings(found: Iterable[Finding], skipped: Iterable[tuple[str, str]] = ()) -> Findings:
    """Findings, the worst first and then by their codes."""
    severe = sorted(found, key=lambda finding: (SEVERITIES.index(finding.severity), finding.code))
    return Findings(tuple(severe), tuple(skipped))
