"""Result: the verdict on a start with the numbers behind it, as text, as plain data and as a page."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from torchinit._folding import Column, RowGroup, large, starts_as, to_digits
from torchinit._tables import Table
from torchinit._text import count, one_line, shape_text
from torchinit.errors import MissingExtraError
from torchinit.linting.registry import Findings
from torchinit.pages import Distribution, Figure, Page, Panel, Section, Series
from torchinit.pages.drawing import cut
from torchinit.pages.figures import bars, digits
from torchinit.probing.checks import PROBE_CHECKS
from torchinit.probing.checks.registry import Bound
from torchinit.probing.measurement import Measurement, Output, SignalChain
from torchinit.probing.moments import LikeValues, StartValues, planned_curve
from torchinit.serialization.json import finite_data

_HERE: Final = "this start"
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
            return f"✓ Nothing is wrong with this start: {self._in_numbers()}."
        worst = severe[0]
        name = PROBE_CHECKS[worst.code].name.replace("-", " ").capitalize()
        text = f"{name}: {worst.message.partition('; unsure')[0]}"
        where = "" if f" {worst.site}" in text else f" ({worst.site})"
        return f"{'✗' if self.findings.errors else '!'} {text}{where}."

    def _in_numbers(self) -> str:
        chain = max(self.measurement.chains, key=lambda each: len(each.outputs), default=None)
        if chain is None or math.isnan(chain.signal):
            return f"loss {self.measurement.objective.loss:.3g}"
        there, back = math.exp(min(chain.signal, 700.0)), math.exp(min(chain.gradient, 700.0))
        size, grows = f"{len(chain.outputs)} {chain.kind}", there >= 1
        signal = f"the signal grows {there:.2g} times over" if grows else f"{there:.2g} of the signal is left after"
        if math.isnan(chain.gradient):
            return f"{signal} {size}"
        if back < 1:
            return f"{signal} {size}, {back:.2g} of the gradient back"
        return f"{signal} {size}, the gradient {'' if grows else 'grows '}{back:.2g} times on its way back"

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """The verdict, the signal and the gradient along each chain, the findings, the ways out, the conditions."""
        findings = [f"{each.code} {each.severity:<7}  {each.site or '-'}: {each.message}" for each in self.findings]
        ways = []
        for remedy in dict.fromkeys(each.remedy for each in self.findings if each.remedy):
            codes = dict.fromkeys(each.code for each in self.findings if each.remedy == remedy)
            ways += [f"{', '.join(codes)} way out:", *(f"  {line}" for line in remedy.splitlines())]
        charts = [line for chain in self.measurement.chains for line in _chart(chain)]
        beside = [f"  {each.sparkline}" for each in figures_of(self.measurement) if each.name not in _CHARTED]
        parts = [[self.verdict], charts, beside, [*findings, *ways], [*self._footer()]]
        return "\n\n".join("\n".join(map(one_line, part)) for part in parts if part)

    def _footer(self) -> Iterator[str]:
        measured = self.measurement
        goal = measured.objective
        beside = f", ln C {goal.best:.4g}" if goal.classes else ""
        yield f"{self.model} on {measured.inputs}; {goal.text}: {goal.loss:.4g}{beside}"
        agree = [each.agrees for each in measured.outputs], [each.gradient_agrees for each in measured.outputs]
        outputs, gradients = (f"{each.count(True)} of {len(each) - each.count(None)}" for each in agree)
        yield f"as large as the weights promise: {outputs} outputs, {gradients} gradients"
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
    signals, gradients = ([_value(each, key) for each in shown] for key in ("signal", "gradient"))
    width = max(len(chain.kind), *(len(each.name) for each in shown)) + 2
    yield f"  {chain.kind[:-1]:<{width}}{'signal':<{_WIDTH + 11}}gradient"
    for output, signal, gradient in zip(shown, bars(signals, _WIDTH), bars(gradients, _WIDTH), strict=True):
        yield f"  {output.name:<{width}}{signal:<{_WIDTH + 11}}{gradient}".rstrip()


# --- the page --------------------------------------------------------------------------------------------------------


def page_of(result: Probe, beside: Probe | None = None, lint: Findings | None = None) -> Page:
    """The page of a probe; with that of another start drawn and listed beside, and the findings of lint."""
    start, measured, severe = result.start, result.runs[0], result.findings.at_least("warning")
    other, compared = (beside.start, beside.runs[0]) if beside else (None, None)
    label = Path(other.recipe).name if other and other.recipe else "its own start"
    name = f"compared: {label}"
    subject = (result.model, start.recipe, f"seed {start.seed}") if start else (result.model,)
    return Page(
        " · ".join(filter(None, subject)),
        result.verdict[2:],
        "error" if result.findings.errors else "warning" if severe else "good",
        (_bill(measured), *([f"Compared with {label}: {beside.verdict}"] if beside else [])),
        tuple(dict.fromkeys(each.remedy for each in severe if each.remedy)),
        tuple(_facts(result, lint)),
        (*_chains(measured, compared, name), *_others(measured, compared, name)),
        tuple(_distributions(start, other)) if start else (),
        tuple(_sections(result, other, name, lint)),
        tuple(_conditions(result)),
    )


def _bill(measured: Measurement) -> str:
    goal = measured.objective
    guess = f"; answers that say nothing cost {goal.best:.4g}" if goal.classes and not math.isnan(goal.best) else ""
    made = measured.inputs.removeprefix("made: ")
    where = made if made == measured.inputs else f"{made}, made for it"
    return f"The loss at the start is {goal.loss:.4g} ({goal.text}){guess}. Measured on {where}."


def _facts(result: Probe, lint: Findings | None) -> Iterator[tuple[str, str]]:
    measured, start = result.runs[0], result.start
    if start:
        tensors = sum(len(each.names) for each in start.parameters)
        yield large(start.elements), f"parameters in {count(tensors, 'tensor')}"
        yield str(len(start.parameters)), "kinds of tensor"
    if not math.isnan(measured.objective.logits):
        yield digits(measured.objective.logits), "RMS of the logits"
    yield str(sum(not each.gradient for each in measured.parameters)), "tensors without a gradient in the first step"
    yield str(len(result.findings.at_least("warning"))), "errors and warnings"
    if lint is not None:
        yield str(len(lint.at_least("warning"))), "errors and warnings of lint"


# --- figures ---------------------------------------------------------------------------------------------------------

# What is drawn of each output: the name of the file, the title, the words below it, the checks whose bounds the healthy
# band has below and above, and whether the last value is the one that the others are compared with.
_MEASURES: Final = (
    ("signal", "Signal", "what differs between samples", "TI801", "TI802", False),
    ("gradient", "Gradient", "its RMS, on the way back", "TI803", "TI804", True),
    ("rms", "Forward RMS", "all of the output, with what its biases add", "", "TI802", False),
    ("spread", "Spread", "one minus the mean cosine between samples", "TI805", "", False),
)


def _value(output: Output, measure: str) -> float:
    if measure == "gradient":
        return output.gradient.rms if output.gradient else math.nan
    return float(getattr(output.forward, measure))


def _predicted(output: Output, measure: str) -> float | None:
    return {"gradient": output.predicted_gradient, "rms": output.predicted}.get(measure)


def _chains(measured: Measurement, beside: Measurement | None, name: str) -> Iterator[Panel]:
    others = {_key(chain): chain for chain in beside.chains} if beside else {}
    for chain in measured.chains:
        other = others.get(_key(chain))
        figures = [_figure(chain, other, name, measure) for measure in _MEASURES]
        drawn = tuple(figure for figure in figures if not figure.is_empty)
        ends = " to ".join(cut(each.name, 40) for each in (chain.outputs[0], chain.outputs[-1]))
        if drawn:
            yield Panel(f"By depth: {len(chain.outputs)} {chain.kind}, {ends}", drawn, *_numbers(figures))


def figures_of(measured: Measurement) -> Iterator[Figure]:
    """The figures of a measurement, along its chains, and beside them."""
    for panel in (*_chains(measured, None, ""), *_others(measured, None, "")):
        yield from panel.figures


def _key(chain: SignalChain) -> tuple[str, str]:
    return chain.kind, chain.outputs[0].name


def _figure(
    chain: SignalChain, other: SignalChain | None, name: str, measure: tuple[str, str, str, str, str, bool]
) -> Figure:
    key, title, caption, lower, upper, back = measure
    places = tuple(each.name for each in chain.outputs)
    values = tuple(_value(each, key) for each in chain.outputs)
    series = [Series(_HERE, values, tuple(_predicted(each, key) for each in chain.outputs))]
    if other is not None:
        series.append(_compared(name, places, {each.name: _value(each, key) for each in other.outputs}))
    band = _band(values[:: -1 if back else 1], lower, upper)
    figure = Figure(key, title, places, tuple(series), chain.kind[:-1], caption, band)
    ratio = 1 / figure.ratio if back and figure.ratio else figure.ratio
    change = "" if math.isnan(ratio) else f"; ×{digits(ratio)} from {'last to first' if back else 'first to last'}"
    pale = "; pale as predicted" if any(each is not None for each in series[0].predicted) else ""
    return replace(figure, caption=f"{caption}{change}{pale}")


def _compared(name: str, places: Sequence[str], values: Mapping[str, float]) -> Series:
    return Series(name, tuple(values.get(place, math.nan) for place in places), dashed=True)


def _band(values: tuple[float, ...], lower: str, upper: str) -> tuple[float, float] | None:
    """Where the bounds of two checks lie, of a ratio to the first value; open where there is none."""
    first = next((value for value in values if not math.isnan(value)), math.nan)
    if not 0 < first < math.inf:
        return None
    base = 10.0 if lower == "TI805" else math.e
    low = first * base ** PROBE_CHECKS[lower].bound.warning if lower else 0.0
    high = first * base ** PROBE_CHECKS[upper].bound.warning if upper else math.inf
    return low, high


def _numbers(figures: Sequence[Figure]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The numbers of figures over the same places as a table: its heads, and a row for each place."""
    lines = [(figure.title.lower(), figure.series[0]) for figure in figures]
    lines += [(f"{figure.title.lower()}, compared", line) for figure in figures for line in figure.series[1:]]
    places = enumerate(figures[0].places)
    rows = ((place, *(digits(line.values[at]) for _, line in lines)) for at, place in places)
    return (figures[0].unit, *(head for head, _ in lines)), tuple(rows)


def _others(measured: Measurement, beside: Measurement | None, name: str) -> Iterator[Panel]:
    """Of attention how far its logits spread; of recurrent layers the gradient at each step."""
    if len(measured.attentions) > 1:
        places = tuple(each.module for each in measured.attentions)
        series = [Series(_HERE, tuple(each.std for each in measured.attentions))]
        if beside is not None and beside.attentions:
            series.append(_compared(name, places, {each.module: each.std for each in beside.attentions}))
        band = 0.0, PROBE_CHECKS["TI808"].bound.warning
        text = "standard deviation of what the softmax takes: far above, each query picks one key at random"
        yield Panel("Attention", (Figure("attention", "Attention logits", places, tuple(series), "layer", text, band),))
    for each in measured.time_steps:
        bound: Bound = PROBE_CHECKS["TI809"].bound
        last = each.gradients[-1]
        ends = last * math.exp(-bound.warning), last * math.exp(bound.warning * 9 / 20)
        places = tuple(map(str, range(len(each.gradients))))
        text = f"its RMS at each step of {each.module}, where the loss reads the last"
        line = Series(_HERE, each.gradients)
        figure = Figure("time", "Gradient over time", places, (line,), "time step", text, ends if last > 0 else None)
        yield Panel(f"Recurrent: {each.module}", (figure,))


# --- values ----------------------------------------------------------------------------------------------------------


def _distributions(start: StartValues, other: StartValues | None) -> Iterator[Distribution]:
    """The histograms of what was drawn, in the order of the model, without what is one value."""
    beside = {each.label: each for each in other.parameters} if other else {}
    records = {name: record for record in start.report or () for name in (record.name, *record.aliases)}
    for each in start.parameters:
        if each.counts:
            record = records.get(each.names[0])
            planned = starts_as(to_digits(record.fill)) if record else ""
            caption = f"planned {planned}" if planned else f"std {digits(each.stds[0])}"
            found = beside.get(each.label)
            second = _histogram(found, "", ()) if found and found.counts else None
            yield _histogram(each, caption, planned_curve(record, each), second)


def _histogram(
    each: LikeValues, caption: str, curve: tuple[float, ...], beside: Distribution | None = None
) -> Distribution:
    title = f"{each.label} ×{len(each.names)}" if len(each.names) > 1 else each.label
    return Distribution(title, caption, each.low, each.high, each.counts, curve, beside)


# --- tables ----------------------------------------------------------------------------------------------------------


def _sections(result: Probe, other: StartValues | None, name: str, lint: Findings | None) -> Iterator[Section]:
    start = result.start
    if result.findings:
        yield Section.of("Findings", result.findings)
    if start is not None and start.report is not None:
        plan, *loads = start.report.sections()
        yield replace(plan, table=_with_other(plan.table, "started as", other, name))
        yield from loads
    elif start is not None:
        table = _with_other(_own(start), "std", other, name)
        yield Section("The parameters", table, "As the model's own code left them.")
    if lint is not None:
        yield Section.of("Lint", lint, "What torchinit check finds in the values and the structure.")


def _with_other(table: Table, head: str, other: StartValues | None, name: str) -> Table:
    """The table with a column that says what the same tensors of another start hold, where that differs."""
    if other is None:
        return table
    at = [column.head for column in table.columns].index(head) + 1
    texts, groups = _texts(other), []
    for group in table.groups:
        theirs = to_digits(texts.get(group.names[0], "-"))
        cells = (*group.cells[:at], "same" if theirs == group.cells[at - 1] else theirs, *group.cells[at:])
        groups.append(replace(group, cells=cells))
    return replace(table, columns=(*table.columns[:at], Column(name), *table.columns[at:]), groups=groups)


def _texts(start: StartValues) -> Mapping[str, str]:
    """What each parameter of a start holds, in words: what was planned, else the standard deviation."""
    planned = {record.name: starts_as(record.fill) for record in start.report or ()}
    held = {name: f"std {digits(each.stds[0])}" for each in start.parameters for name in each.names}
    return {**held, **planned}


def _own(start: StartValues) -> Table:
    """What the parameters hold, where no plan says what they should."""
    groups = []
    for each in start.parameters:
        cells = (shape_text(each.shape), "…".join(dict.fromkeys(map(digits, each.stds))))
        groups.append(RowGroup([*each.names], cells, (), (each.label,), (len(each.names),)))
    return Table("tensor", (Column("shape"), Column("std")), groups)


def _conditions(result: Probe) -> Iterator[tuple[str, str]]:
    start = result.start
    if start is not None:
        yield "recipe", start.recipe or "the model's own start"
        yield "seed", str(start.seed)
        yield "fingerprint", start.fingerprint or "-"
        yield "dtype", ", ".join(start.dtypes)
        yield "device", ", ".join(start.devices)
        if start.report is not None:
            yield "noise", start.report.noise or "none"
    yield "inputs", result.runs[0].inputs
    yield "runs", str(len(result.runs))
    for note in result.notes:
        yield "note", note
