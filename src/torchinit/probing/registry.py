"""The registry of the checks of a measurement, and their bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from torchinit.linting.registry import Check, Severity
from torchinit.probing.measurement import Measurement


class Bound(NamedTuple):
    """From which value on there is a warning, and an error; ``noise`` is by how much a value differs between runs.

    ``downwards``: small values are the bad ones. An infinite bound is never reached; of two such, one is a note.

    >>> vanishing = Bound(-5.3, -9.0, noise=1.5, downwards=True)
    >>> vanishing.severity(-6.0), vanishing.severity(-1.0), vanishing.is_near(-4.0)
    ('warning', None, True)
    """

    warning: float
    error: float
    noise: float = 0.0
    downwards: bool = False

    def severity(self, value: float) -> Severity | None:
        """The severity of a value; None if it is a good one, or not a number."""
        for severity, bound in (("error", self.error), ("warning", self.warning)):
            if math.isfinite(bound) and (value <= bound if self.downwards else value >= bound):
                return "error" if severity == "error" else "warning"
        is_note = math.isinf(self.warning) and math.isinf(self.error) and value >= 1
        return "note" if is_note else None

    def is_near(self, value: float) -> bool:
        """Whether another run could put the value on the other side of a bound."""
        return any(abs(value - bound) < self.noise for bound in (self.warning, self.error))


ANY: Final = Bound(math.inf, 1.0)
"""One is one too many."""


class Reading(NamedTuple):
    """A value that a check reads off a measurement, good or bad: where, how much, and the words if it is bad."""

    site: str
    value: float
    message: str
    remedy: str = ""


Read: TypeAlias = Callable[[Measurement], Iterable[Reading]]


@dataclass(frozen=True, slots=True)
class ProbeCheck(Check):
    """A check of a measurement: it reads values, and its bound tells the bad ones."""

    bound: Bound = ANY


# A check is one function, as lint's are; what it yields are readings, not findings: the same number is read in several
# runs before it is called bad, where it lies near its bound. Bounds and noise were fitted to 112 models with known
# starts, half of which were trained for a hundred steps; docs/guides/probe.md tells how well they do on others.
PROBE_CHECKS: Final[dict[str, ProbeCheck]] = {}
"""All checks of a measurement by their codes."""


def probe_check(code: str, bound: Bound, remedy: str) -> Callable[[Read], Read]:
    """Register a function as a check, under its own name."""
    severity: Severity = (
        "error" if math.isfinite(bound.error) else "warning" if math.isfinite(bound.warning) else "note"
    )

    def register(read: Read) -> Read:
        PROBE_CHECKS[code] = ProbeCheck(code, severity, "probe", remedy, read, bound)
        return read

    return register
