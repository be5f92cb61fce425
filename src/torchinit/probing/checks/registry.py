"""The registry of the checks of a measurement, their bounds, and what they say of several runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias, get_args

from torchinit.linting.registry import SEVERITIES, Check, Finding, Findings, Severity
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


Stage: TypeAlias = Literal["values", "forward", "samples", "loss", "backward"]
"""Where a check looks, in the order in which one thing leads to the next: first at what the model holds."""

_STAGES: Final[tuple[Stage, ...]] = get_args(Stage)


class Reading(NamedTuple):
    """A value that a check reads off a measurement, good or bad: where, how much, and the words if it is bad.

    Along a chain ``begins`` is the output from which on it is bad. ``stage`` replaces that of the check.
    """

    site: str
    value: float
    message: str
    remedy: str = ""
    begins: str = ""
    stage: Stage | None = None


Read: TypeAlias = Callable[[Measurement], Iterable[Reading]]


@dataclass(frozen=True, slots=True)
class ProbeCheck(Check):
    """A check of a measurement: it reads values, and its bound tells the bad ones. ``stage`` is where it looks."""

    bound: Bound = ANY
    stage: Stage = "forward"


# A check is one function, as lint's are; what it yields are readings, not findings: the same number is read in several
# runs before it is called bad, where it lies near its bound. Bounds and noise were fitted to 112 models with known
# starts, half of which were trained for a hundred steps; docs/guides/probe.md tells how well they do on others.
PROBE_CHECKS: Final[dict[str, ProbeCheck]] = {}
"""All checks of a measurement by their codes."""


def probe_check(code: str, bound: Bound, remedy: str, stage: Stage = "forward") -> Callable[[Read], Read]:
    """Register a function as a check, under its own name."""
    severity: Severity = (
        "error" if math.isfinite(bound.error) else "warning" if math.isfinite(bound.warning) else "note"
    )

    def register(read: Read) -> Read:
        PROBE_CHECKS[code] = ProbeCheck(code, severity, "probe", remedy, read, bound, stage)
        return read

    return register


def near_bounds(measured: Measurement) -> tuple[str, ...]:
    """The codes of the checks whose values another run could put on the other side of a bound."""
    return tuple(
        code
        for code, check in PROBE_CHECKS.items()
        if any(check.bound.is_near(reading.value) for reading in check.search(measured))
    )


def judge(runs: Sequence[Measurement], repeated: str = "inputs") -> Findings:
    """The findings of a start that was measured several times, on other ``inputs`` or with other ``seeds``.

    A value that all runs put on one side of a bound is judged by the first. Where they differ it is judged by the
    mildest of them, a note at least, as unsure. Of findings that are as severe the cause comes first.
    """
    found = [
        (_rank(PROBE_CHECKS[code], reading, runs[0]), finding)
        for code in sorted(PROBE_CHECKS)
        for reading, values in _readings(PROBE_CHECKS[code], runs)
        if (finding := _finding(PROBE_CHECKS[code], reading, values, repeated)) is not None
    ]
    found.sort(key=lambda pair: (SEVERITIES.index(pair[1].severity), *pair[0]))
    skipped = [] if runs[0].samples > 1 else [(code, "two samples or more") for code in ("TI801", "TI805")]
    if runs[0].small_batch:
        skipped += [(code, "16 samples, since there are batch norms") for code in ("TI803", "TI804")]
    return Findings(tuple(finding for _, finding in found), tuple(skipped))


def _rank(check: ProbeCheck, reading: Reading, measured: Measurement) -> tuple[int, int, bool]:
    """What puts causes before what they lead to: the stage, and of a pass forward the place in the order of execution.

    At one place what is seen there comes before what becomes of a chain behind it.
    """
    stage = _STAGES.index(reading.stage or check.stage)
    if _STAGES[stage] != "forward":
        return stage, 0, False
    name = reading.begins or reading.site
    places = (at for at, output in enumerate(measured.outputs) if name in (output.name, output.module))
    return stage, next(places, 0), bool(reading.begins)


def _readings(check: ProbeCheck, runs: Sequence[Measurement]) -> Iterator[tuple[Reading, list[float]]]:
    """What a check reads off the first run, each with its values in all of them."""
    first, *others = ([*check.search(run)] for run in runs)
    for at, reading in enumerate(first):
        yield reading, [reading.value, *(_value_again(reading, at, len(first), again) for again in others)]


def _finding(check: ProbeCheck, reading: Reading, values: Sequence[float], repeated: str) -> Finding | None:
    severities = [check.bound.severity(value) for value in values if not math.isnan(value)]
    if not any(severities):
        return None
    remedy = reading.remedy or check.remedy
    site = reading.site.partition(" ")[0]
    if len(set(severities)) == 1 and severities[0]:
        return Finding(check.code, severities[0], site, reading.message, remedy)
    mildest = next(each for each in (None, *reversed(SEVERITIES)) if each in severities) or "note"
    low, high = min(values), max(values)
    text = f"{reading.message}; unsure: ln {low:.2g} to {high:.2g} over {len(values)} {repeated}, bounds"
    return Finding(check.code, mildest, site, f"{text} {check.bound.warning:.3g} and {check.bound.error:.3g}", remedy)


def _value_again(reading: Reading, at: int, number: int, again: Sequence[Reading]) -> float:
    """What is read off another run at the same place; else in the same turn, as of a chain; else at all."""
    same = [each.value for each in again if each.site == reading.site]
    turn = again[at : at + 1] if len(again) == number else again[:1]
    return [*same, *(each.value for each in turn), math.nan][0]
