"""Verdict: what several measurements of one start say together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torchinit.linting.registry import SEVERITIES, Finding, Findings, Severity
from torchinit.probing.checks import PROBE_CHECKS
from torchinit.probing.measurement import Measurement
from torchinit.probing.registry import ProbeCheck, Reading


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
    mildest of them, a note at least, as unsure.
    """
    found = [
        finding
        for code in sorted(PROBE_CHECKS)
        for reading in PROBE_CHECKS[code].search(runs[0])
        if (finding := _finding(PROBE_CHECKS[code], reading, runs, repeated)) is not None
    ]
    skipped = [] if runs[0].samples > 1 else [(code, "two samples or more") for code in ("TI801", "TI805")]
    if runs[0].small_batch:
        skipped += [(code, "16 samples, since there are batch norms") for code in ("TI803", "TI804")]
    return Findings(tuple(sorted(found, key=lambda each: (SEVERITIES.index(each.severity), each.code))), tuple(skipped))


def _finding(check: ProbeCheck, reading: Reading, runs: Sequence[Measurement], repeated: str) -> Finding | None:
    values = [reading.value, *(_value_again(check, reading, run) for run in runs[1:])]
    severities = [check.bound.severity(value) for value in values if not math.isnan(value)]
    if not any(severities):
        return None
    remedy = reading.remedy or check.remedy
    site = reading.site.partition(" ")[0]
    if len(set(severities)) == 1 and severities[0]:
        return Finding(check.code, severities[0], site, reading.message, remedy)
    mildest = max(severities, key=_mildness) or "note"
    low, high = min(values), max(values)
    text = f"{reading.message}; unsure: ln {low:.2g} to {high:.2g} over {len(values)} {repeated}, bounds"
    return Finding(check.code, mildest, site, f"{text} {check.bound.warning:.3g} and {check.bound.error:.3g}", remedy)


def _mildness(severity: Severity | None) -> int:
    return len(SEVERITIES) if severity is None else SEVERITIES.index(severity)


def _value_again(check: ProbeCheck, reading: Reading, run: Measurement) -> float:
    """What the check reads off another run at the same place, or of the same kind."""
    again = list(check.search(run))
    same = [each.value for each in again if each.site == reading.site] or [each.value for each in again]
    return same[0] if same else math.nan
