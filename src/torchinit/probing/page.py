"""Page: what a probe found as a page: the verdict, the signal by depth, the values against the plan, the plan."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

from torchinit._folding import Column, RowGroup, large, starts_as, to_digits
from torchinit._tables import Table
from torchinit._text import count, shape_text
from torchinit.initializers.moments import Moments, truncated
from torchinit.linting.findings import Findings
from torchinit.pages import Distribution, Figure, Page, Panel, Section, Series
from torchinit.pages.drawing import cut
from torchinit.pages.figures import digits
from torchinit.plans.report import Record
from torchinit.probing.checks import PROBE_CHECKS
from torchinit.probing.measurement import Measurement, Output, SignalChain
from torchinit.probing.registry import Bound
from torchinit.probing.values import LikeValues, StartValues

_HERE: Final = "this start"


class Probed(Protocol):
    """What a page is made of: a result of :func:`torchinit.probe`."""

    @property
    def model(self) -> str: ...
    @property
    def findings(self) -> Findings: ...
    @property
    def runs(self) -> tuple[Measurement, ...]: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def start(self) -> StartValues | None: ...
    @property
    def verdict(self) -> str: ...


def page_of(result: Probed, beside: Probed | None = None, lint: Findings | None = None) -> Page:
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
        tuple(_facts(result)),
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


def _facts(result: Probed) -> Iterator[tuple[str, str]]:
    measured, start = result.runs[0], result.start
    if start:
        tensors = sum(len(each.names) for each in start.parameters)
        yield large(start.elements), f"parameters in {count(tensors, 'tensor')}"
        yield str(len(start.parameters)), "kinds of tensor"
    if not math.isnan(measured.objective.logits):
        yield digits(measured.objective.logits), "RMS of the logits"
    yield str(sum(not each.gradient for each in measured.parameters)), "tensors without a gradient in the first step"
    yield str(len(result.findings.at_least("warning"))), "errors and warnings"


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
    names = {"gradient": "predicted_gradient", "rms": "predicted"}
    found: float | None = getattr(output, names[measure], None) if measure in names else None
    return found


def _chains(measured: Measurement, beside: Measurement | None, name: str) -> Iterator[Panel]:
    others = {_key(chain): chain for chain in beside.chains} if beside else {}
    for chain in measured.chains:
        other = others.get(_key(chain))
        figures = [_figure(chain, other, name, measure) for measure in _MEASURES]
        drawn = tuple(figure for figure in figures if not figure.is_empty)
        ends = " to ".join(cut(each.name, 40) for each in (chain.outputs[0], chain.outputs[-1]))
        if drawn:
            heads, numbers = _numbers(chain, other, name)
            yield Panel(f"By depth: {len(chain.outputs)} {chain.kind}, {ends}", drawn, heads, numbers)


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
    series = [Series(_HERE, tuple(_value(each, key) for each in chain.outputs),
                     tuple(_predicted(each, key) for each in chain.outputs))]  # fmt: skip
    if other is not None:
        found = {each.name: _value(each, key) for each in other.outputs}
        values = tuple(found.get(each.name, math.nan) for each in chain.outputs)
        series.append(Series(name, values, dashed=True))
    places = tuple(each.name for each in chain.outputs)
    band = _band(series[0].values[:: -1 if back else 1], lower, upper)
    figure = Figure(key, title, places, tuple(series), chain.kind[:-1], caption, band)
    ratio = 1 / figure.ratio if back and figure.ratio else figure.ratio
    change = "" if math.isnan(ratio) else f"; ×{digits(ratio)} from {'last to first' if back else 'first to last'}"
    pale = "; pale as predicted" if any(each is not None for each in series[0].predicted) else ""
    return replace(figure, caption=f"{caption}{change}{pale}")


def _band(values: tuple[float, ...], lower: str, upper: str) -> tuple[float, float] | None:
    """Where the bounds of two checks lie, of a ratio to the first value; open where there is none."""
    first = next((value for value in values if not math.isnan(value)), math.nan)
    if not 0 < first < math.inf:
        return None
    base = 10.0 if lower == "TI805" else math.e
    low = first * base ** PROBE_CHECKS[lower].bound.warning if lower else 0.0
    high = first * base ** PROBE_CHECKS[upper].bound.warning if upper else math.inf
    return low, high


def _numbers(
    chain: SignalChain, other: SignalChain | None, name: str
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The numbers of the figures as a table: its heads, and a row for each place."""
    heads = [chain.kind[:-1], *(title.lower() for _, title, *_ in _MEASURES)]
    found = {each.name: each for each in other.outputs} if other else {}
    heads += [f"{title.lower()}, compared" for _, title, *_ in _MEASURES] if other else []
    rows = []
    for each in chain.outputs:
        beside = found.get(each.name)
        texts = [digits(_value(each, key)) for key, *_ in _MEASURES]
        texts += [digits(_value(beside, key)) if beside else "-" for key, *_ in _MEASURES] if other else []
        rows.append((each.name, *texts))
    return tuple(heads), tuple(rows)


def _others(measured: Measurement, beside: Measurement | None, name: str) -> Iterator[Panel]:
    """Of attention how far its logits spread; of recurrent layers the gradient at each step."""
    if len(measured.attentions) > 1:
        places = tuple(each.module for each in measured.attentions)
        series = [Series(_HERE, tuple(each.std for each in measured.attentions))]
        if beside is not None and beside.attentions:
            found = {each.module: each.std for each in beside.attentions}
            series.append(Series(name, tuple(found.get(each, math.nan) for each in places), dashed=True))
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
            yield _histogram(each, caption, _curve(record, each), second)


def _histogram(
    each: LikeValues, caption: str, curve: tuple[float, ...], beside: Distribution | None = None
) -> Distribution:
    title = f"{each.label} ×{len(each.names)}" if len(each.names) > 1 else each.label
    return Distribution(title, caption, each.low, each.high, each.counts, curve, beside)


def _curve(record: Record | None, each: LikeValues) -> tuple[float, ...]:
    """The planned density at the middle of each count; empty where the distribution is not a known one."""
    known = re.match(r"(?:-?[\d.e+-]+ \* )?(Normal|Uniform|TruncNormal)\(", record.fill) if record else None
    planned = record.expected if record else None
    if not known or planned is None or planned.mean is None or not planned.std:
        return ()
    wide = (each.high - each.low) / len(each.counts)
    middles = [each.low + (at + 0.5) * wide for at in range(len(each.counts))]
    return tuple(_density(known[1], planned, value) for value in middles)


def _density(kind: str, planned: Moments, value: float) -> float:
    mean, std = planned.mean or 0.0, planned.std or 1.0
    low, high = planned.min, planned.max
    if low is not None and high is not None and not low <= value <= high:
        return 0.0
    if kind == "Uniform":
        return 1 / (std * math.sqrt(12))
    if kind == "Normal" or low is None or high is None:
        return _normal(value, mean, std)
    centre, sigma = _untruncated((low + high) / 2 if abs(low + high) < 1e-9 * (high - low) else mean, std, low, high)
    mass = (math.erf((high - centre) / sigma / math.sqrt(2)) - math.erf((low - centre) / sigma / math.sqrt(2))) / 2
    return _normal(value, centre, sigma) / mass


def _normal(value: float, mean: float, std: float) -> float:
    return math.exp(-(((value - mean) / std) ** 2) / 2) / std / math.sqrt(2 * math.pi)


def _untruncated(mean: float, std: float, low: float, high: float) -> tuple[float, float]:
    """The normal whose part between two ends has this standard deviation: its mean, taken as that of the part, and
    its standard deviation, by halving an interval, since the first grows with the second.
    """
    least, most = std, std * 1e4
    for _ in range(60):
        sigma = math.sqrt(least * most)
        if truncated((low - mean) / sigma, (high - mean) / sigma)[1] * sigma < std:
            least = sigma
        else:
            most = sigma
    return mean, math.sqrt(least * most)


# --- tables ----------------------------------------------------------------------------------------------------------


def _sections(result: Probed, other: StartValues | None, name: str, lint: Findings | None) -> Iterator[Section]:
    start = result.start
    if result.findings:
        yield Section.of("Findings", result.findings)
    if start is not None and start.report is not None:
        plan, *loads = start.report.sections()
        yield replace(plan, table=_with_other(plan.table, other, name)) if other else plan
        yield from loads
    elif start is not None:
        yield Section("The parameters", _own(start, other, name), "As the model's own code left them.")
    if lint is not None:
        yield Section.of("Lint", lint, "What torchinit check finds in the values and the structure.")


def _with_other(table: Table, other: StartValues, name: str) -> Table:
    """The table with a column that says what the same tensors of another start hold, where that differs."""
    at = [column.head for column in table.columns].index("started as") + 1
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


def _own(start: StartValues, other: StartValues | None, name: str) -> Table:
    """What the parameters hold, where no plan says what they should."""
    texts = _texts(other) if other else {}
    groups = []
    for each in start.parameters:
        cells = (shape_text(each.shape), "…".join(dict.fromkeys(map(digits, each.stds))))
        theirs = (texts.get(each.names[0], "-"),) if other else ()
        groups.append(RowGroup([*each.names], (*cells, *theirs), (), (each.label,), (len(each.names),)))
    columns = (Column("shape"), Column("std"), *((Column(name),) if other else ()))
    return Table("tensor", columns, groups)


def _conditions(result: Probed) -> Iterator[tuple[str, str]]:
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
