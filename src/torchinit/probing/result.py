"""Result: the verdict on a start, with the numbers behind it, as text and as plain data."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from torchinit._text import count, one_line
from torchinit.errors import MissingExtraError
from torchinit.linting.registry import Findings
from torchinit.probing.checks import PROBE_CHECKS
from torchinit.probing.measurement import Measurement, SignalChain
from torchinit.probing.page import figures_of, page_of
from torchinit.probing.values import StartValues
from torchinit.serialization.json import finite_data

_FORMAT: Final = "torchinit-probe-1"
_ROWS, _WIDTH = 12, 16
_CHARTED: Final = {"signal", "gradient"}


@dataclass(frozen=True)
class Probe:
    """The result of :func:`torchinit.probe`: ``findings`` is the verdict, ``measurement`` the first run's numbers.

    ``runs`` holds all of them, more than one where a value lay near a bound; ``notes`` what a reader should know.

    >>> from torch import nn
    >>> import torchinit
    >>> result = torchinit.probe(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)))
    >>> result.healthy, result.measurement.objective.classes
    (True, 4)
    """

    model: str
    findings: Findings
    runs: tuple[Measurement, ...]
    notes: tuple[str, ...] = ()
    start: StartValues | None = None

    @property
    def measurement(self) -> Measurement:
        """The measurement that the verdict is about: the first."""
        return self.runs[0]

    @property
    def healthy(self) -> bool:
        """Whether there is no error and no warning."""
        return not self.findings.at_least("warning")

    @property
    def verdict(self) -> str:
        """The verdict in one sentence with its number."""
        severe = self.findings.at_least("warning")
        if not severe:
            return f"✓ Nothing is wrong with this start: {self._facts()}."
        worst = severe[0]
        name = PROBE_CHECKS[worst.code].name.replace("-", " ").capitalize()
        text = f"{name}: {worst.message.partition('; unsure')[0]}"
        where = "" if f" {worst.site}" in text else f" ({worst.site})"
        return f"{'✗' if self.findings.errors else '!'} {text}{where}."

    def _facts(self) -> str:
        chain = max(self.measurement.chains, key=lambda each: len(each.outputs), default=None)
        if chain is None or math.isnan(chain.signal):
            return f"loss {self.measurement.objective.loss:.3g}"
        there, back = math.exp(min(chain.signal, 700.0)), math.exp(min(chain.gradient, 700.0))
        size = f"{len(chain.outputs)} {chain.kind}"
        grows = there >= 1
        text = (
            f"the signal grows {there:.2g} times over {size}"
            if grows
            else f"{there:.2g} of the signal is left after {size}"
        )
        if math.isnan(chain.gradient):
            return text
        if back < 1:
            return f"{text}, {back:.2g} of the gradient back"
        return f"{text}, the gradient {'' if grows else 'grows '}{back:.2g} times on its way back"

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """The verdict, the signal and the gradient along each chain, the findings, the ways out, the conditions."""
        findings = [f"{each.code} {each.severity:<7}  {each.site or '-'}: {each.message}" for each in self.findings]
        codes: dict[str, dict[str, None]] = {}
        for each in self.findings:
            codes.setdefault(each.remedy, {})[each.code] = None
        ways = [
            line
            for remedy, several in codes.items()
            if remedy
            for line in (f"{', '.join(several)} way out:", *(f"  {line}" for line in remedy.splitlines()))
        ]
        charts = [line for chain in self.measurement.chains for line in _chart(chain)]
        beside = [f"  {each.sparkline}" for each in figures_of(self.measurement) if each.name not in _CHARTED]
        parts = [[self.verdict], charts, beside, [*findings, *ways], [*self._conditions()]]
        return "\n\n".join("\n".join(map(one_line, part)) for part in parts if part)

    def _conditions(self) -> Iterator[str]:
        measured = self.measurement
        goal = measured.objective
        beside = f", ln C {goal.best:.4g}" if goal.classes else ""
        yield f"{self.model} on {measured.inputs}; {goal.text}: {goal.loss:.4g}{beside}"
        every = {"outputs": [each.agrees for each in measured.outputs]}
        every["gradients"] = [each.gradient_agrees for each in measured.outputs]
        claims = (f"{agree.count(True)} of {len(agree) - agree.count(None)} {what}" for what, agree in every.items())
        yield f"as large as the weights promise: {', '.join(claims)}"
        if measured.asleep:
            yield f"{count(measured.asleep, 'gradient')} are zero in the first step, and wake"
        if measured.losses:
            steps = ", ".join(f"{loss:.4g}" for loss in measured.losses)
            yield f"losses of {count(len(measured.losses) - 1, 'step')} of the optimizer: {steps}"
            updates = sorted(each.update for each in measured.parameters if each.update is not None)
            if updates:
                low, middle, high = updates[0], updates[len(updates) // 2], updates[-1]
                yield f"its first step changes weights by {low:.2g} to {high:.2g} of their size, median {middle:.2g}"
        yield from self.notes
        yield self.findings.summary()

    def save_html(
        self, path: str | os.PathLike[str], *, beside: Probe | None = None, lint: Findings | None = None
    ) -> None:
        """Write the page of this start, one file that needs no other: verdict, figures, values, plan, conditions.

        ``beside`` is the result of another start of the same model, which is drawn dashed and listed next to this one;
        ``lint`` are the findings of :func:`torchinit.lint`, for a section of their own. Needs jinja2, the extra
        ``report``: raises MissingExtraError without it.
        """
        page_of(self, beside, lint).save(path)

    def save_svg(self, folder: str | os.PathLike[str], *, beside: Probe | None = None) -> list[Path]:
        """Write each figure of the page as an SVG file of its own into a folder, and return the files."""
        return page_of(self, beside).save_svg(folder)

    def _repr_html_(self) -> str | None:
        try:
            return page_of(self).html(fragment=True)
        except MissingExtraError:  # the text will do
            return None

    def to_dict(self) -> dict[str, object]:
        """The verdict and all numbers of all runs as plain data; what is not finite is text."""
        data = {"format": _FORMAT, "model": self.model, "verdict": self.verdict, "healthy": self.healthy}
        runs = [finite_data(asdict(run)) for run in self.runs]
        return {**data, "findings": self.findings.to_dict(), "notes": list(self.notes), "runs": runs}

    def to_json(self, *, indent: int | None = 2) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)


def _chart(chain: SignalChain) -> Iterator[str]:
    """A line for each block or layer, of many for a few of them, with bars on a logarithmic scale."""
    step = max(1, -(-(len(chain.outputs) - 1) // (_ROWS - 1)))
    shown = [*chain.outputs[:-1:step], chain.outputs[-1]]
    signals = [each.forward.signal for each in shown]
    gradients = [each.gradient.rms if each.gradient else math.nan for each in shown]
    width = max(len(chain.kind), *(len(each.name) for each in shown)) + 2
    yield f"  {chain.kind[:-1]:<{width}}{'signal':<{_WIDTH + 11}}gradient"
    for output, signal, gradient in zip(shown, _bars(signals), _bars(gradients), strict=True):
        yield f"  {output.name:<{width}}{signal:<{_WIDTH + 11}}{gradient}".rstrip()


def _bars(values: Sequence[float]) -> list[str]:
    """Each number with a bar, whose length is its logarithm between the smallest and the largest, a decade at least."""
    logs = [math.log10(value) for value in values if 0 < value < math.inf]
    high = max(logs, default=0.0)
    low = min([*logs, high - 3]) - 0.5
    return [f"{_number(value):<9}{_bar(value, low, high)}" for value in values]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else "0" if value == 0 else f"{value:.1e}" if math.isfinite(value) else "inf"


def _bar(value: float, low: float, high: float) -> str:
    if math.isnan(value) or value <= 0:
        return ""
    share = 1.0 if math.isinf(value) else (math.log10(value) - low) / (high - low)
    eighths = round(share * _WIDTH * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
