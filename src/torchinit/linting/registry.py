"""The registry of checks: functions, each of which looks for one thing that goes wrong, by code and name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from torchinit._text import did_you_mean
from torchinit.errors import ConfigError
from torchinit.linting.target import LintTarget

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
    """A hit of a check, which becomes a finding. ``severity`` and ``remedy`` replace those of the check."""

    site: str
    message: str
    severity: Severity | None = None
    remedy: str = ""
    line: str = ""


Search: TypeAlias = Callable[[LintTarget], Iterable[Hit]]


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
        return word == self.name or (word.startswith("TI") and self.code.startswith(word))


# A check is one function and nothing beside it: its docstring is the row in the guide's table of codes, what `explain`
# prints and the text in SARIF, so that these cannot differ. Its severity is the worst that it reports: an error is
# certain, by a count, a comparison of bits or a bound that follows from the number of values; what a model may have on
# purpose is a warning or a note. A check that has nothing to work on is listed as skipped, never passed over silently.
CHECKS: Final[dict[str, Check]] = {}
"""All checks by their codes."""


def check(code: str, severity: Severity, needs: Need, remedy: str) -> Callable[[Search], Search]:
    """Register a function as a check, under its own name."""

    def register(search: Search) -> Search:
        CHECKS[code] = Check(code, severity, needs, remedy, search)
        return search

    return register


def select_checks(select: Iterable[str], ignore: Iterable[str]) -> tuple[Check, ...]:
    """The checks that are selected, all if none is, and not ignored.

    Raises ConfigError for what is neither a name, a code nor the beginning of one.
    """
    wanted, unwanted = tuple(select), tuple(ignore)
    checks = [CHECKS[code] for code in sorted(CHECKS)]
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
