"""The registry of checks: functions, each of which looks for one thing that goes wrong, by code and name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

from torchinit._text import did_you_mean
from torchinit.errors import ConfigError
from torchinit.linting.findings import Finding, Severity
from torchinit.linting.target import LintTarget

Need: TypeAlias = Literal["sites", "values", "plan", "trace", "report", "loaded", "history"]

NEEDS: Final[dict[Need, str]] = {
    "sites": "a model",
    "values": "values (the model is on the meta device)",
    "plan": "a recipe",
    "trace": "a trace",
    "report": "a report",
    "loaded": "loaded weights",
    "history": "loaded weights or a trace",
}
"""The needs of checks, in words."""


class Hit(NamedTuple):
    """A hit of a check, which becomes a :class:`Finding`. ``remedy`` and ``severity`` replace those of the check."""

    site: str
    message: str
    severity: Severity | None = None
    remedy: str = ""
    line: str = ""


Search: TypeAlias = Callable[[LintTarget], Iterable[Hit]]


@dataclass(frozen=True, slots=True)
class Check:
    """A check: its stable code, its name, how bad a finding is at worst, what it needs, the way out, the function."""

    code: str
    name: str
    severity: Severity
    needs: Need
    remedy: str
    search: Search

    @property
    def text(self) -> str:
        """The function's docstring: what is looked for, why, how it is decided, and when it may be wrong."""
        return inspect.cleandoc(self.search.__doc__ or "")

    @property
    def summary(self) -> str:
        """The first sentence of the text."""
        return " ".join(re.split(r"(?<=\.)\s", self.text, maxsplit=1)[0].split())

    def findings(self, target: LintTarget) -> Iterator[Finding]:
        """The findings of the check in a model."""
        for hit in self.search(target):
            severity, remedy = hit.severity or self.severity, hit.remedy or self.remedy
            yield Finding(self.code, severity, hit.site, hit.message, remedy, hit.line or target.line(hit.site))

    def is_called(self, word: str) -> bool:
        """Whether a word is its name, its code, or the beginning of its code."""
        return word == self.name or (word.startswith("TI") and self.code.startswith(word))


CHECKS: Final[dict[str, Check]] = {}
"""All checks by their codes."""


def check(code: str, name: str, severity: Severity, needs: Need, remedy: str) -> Callable[[Search], Search]:
    """Register a function as a check."""

    def register(search: Search) -> Search:
        CHECKS[code] = Check(code, name, severity, needs, remedy, search)
        return search

    return register


def select_checks(select: Iterable[str], ignore: Iterable[str]) -> tuple[Check, ...]:
    """The checks that are selected, all if none is, and not ignored.

    Raises ConfigError for what is neither a name, a code nor the beginning of one.
    """
    wanted, unwanted = tuple(select), tuple(ignore)
    checks = [each for _, each in sorted(CHECKS.items())]
    names = [name for each in checks for name in (each.code, each.name)]
    problems = [
        f"{word!r} is not a check{did_you_mean(word, names)}"
        for word in dict.fromkeys([*wanted, *unwanted])
        if not any(each.is_called(word) for each in checks)
    ]
    if problems:
        raise ConfigError("a check goes by its code, the beginning of codes, or its name", problems)
    selected = [each for each in checks if not wanted or any(map(each.is_called, wanted))]
    return tuple(each for each in selected if not any(map(each.is_called, unwanted)))
