"""The registry of checks: functions, each of which looks for one thing that goes wrong, by code and name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from torchinit._text import did_you_mean
from torchinit.errors import ConfigError
from torchinit.linting.target import LintTarget
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
        return word == self.name or (_BEGINNING.fullmatch(word) is not None and self.code.startswith(word))


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


def check(code: str, severity: Severity, needs: Need, remedy: str) -> Callable[[Search], Search]:
    """Register a function as a check, under its own name and a code: capitals, then digits.

    The function gets a :class:`LintTarget` and yields a :class:`Hit` for each finding. Raises ValueError for a code of
    another form, or that another check has.

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
        if code in CHECKS and CHECKS[code].search.__qualname__ != search.__qualname__:
            raise ValueError(f"the check {code!r} is taken: it is {CHECKS[code].name}")
        CHECKS[code] = Check(code, severity, needs, remedy, search)
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
