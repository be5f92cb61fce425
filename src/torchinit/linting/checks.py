"""Checks: small functions, each of which looks for one thing that goes wrong, by code and name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

from torchinit.errors import ConfigError, did_you_mean
from torchinit.linting.findings import Finding, Severity
from torchinit.linting.sarif import About
from torchinit.linting.subjects import Subject

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
"""What a check may need, in words."""


class Evidence(NamedTuple):
    """What a check saw; it becomes a :class:`Finding`. ``remedy`` and ``severity`` replace those of the check."""

    site: str
    message: str
    remedy: str = ""
    severity: Severity | None = None
    line: str = ""


Look: TypeAlias = Callable[[Subject], Iterable[Evidence]]


@dataclass(frozen=True, slots=True)
class Check:
    """A check: its stable code, its name, how bad a finding is at worst, what it needs, the way out."""

    code: str
    name: str
    severity: Severity
    needs: Need
    remedy: str
    look: Look

    @property
    def text(self) -> str:
        """What is looked for, why, how it is decided, and when it may be wrong."""
        return inspect.cleandoc(self.look.__doc__ or "")

    @property
    def summary(self) -> str:
        """The first sentence of the text."""
        return " ".join(re.split(r"(?<=\.)\s", self.text, maxsplit=1)[0].split())

    def findings(self, subject: Subject) -> Iterator[Finding]:
        """What the check finds in a model."""
        for seen in self.look(subject):
            severity, remedy = seen.severity or self.severity, seen.remedy or self.remedy
            yield Finding(self.code, severity, seen.site, seen.message, remedy, seen.line or subject.line(seen.site))


CHECKS: Final[dict[str, Check]] = {}
"""All checks by their codes."""


def check(code: str, name: str, severity: Severity, needs: Need, remedy: str) -> Callable[[Look], Look]:
    """Registers a function as a check."""

    def remember(function: Look) -> Look:
        CHECKS[code] = Check(code, name, severity, needs, remedy, function)
        return function

    return remember


def chosen(select: Iterable[str], ignore: Iterable[str]) -> tuple[Check, ...]:
    """The checks of which a code's beginning or the name is selected and not ignored; none selected means all.

    Raises ConfigError for what is neither a beginning of a code nor a name.
    """
    wanted, unwanted = tuple(select), tuple(ignore)
    known = {word for one in CHECKS.values() for word in (one.code, one.name)}
    problems = [
        f"{word!r} is no check{did_you_mean(word, known)}"
        for word in dict.fromkeys([*wanted, *unwanted])
        if not any(_means(word, one) for one in CHECKS.values())
    ]
    if problems:
        raise ConfigError("a check goes by its code, the beginning of codes, or its name", problems)
    return tuple(
        one
        for code, one in sorted(CHECKS.items())
        if (not wanted or any(_means(word, one) for word in wanted)) and not any(_means(word, one) for word in unwanted)
    )


def _means(word: str, one: Check) -> bool:
    return word == one.name or (word.startswith("TI") and one.code.startswith(word))


def about() -> dict[str, About]:
    """What SARIF tells of the checks."""
    return {code: About(one.name, one.summary, one.text, one.severity) for code, one in CHECKS.items()}
