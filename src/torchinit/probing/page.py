"""Page: what a probe found as a page: the verdict, the signal by depth, the values against the plan, the plan."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from torchinit._folding import Column, Group, large, starts_as
from torchinit._tables import Table
from torchinit._text import count, shape_text
from torchinit.initializers.moments import Moments, truncated
from torchinit.linting.findings import Findings
from torchinit.pages import Distribution, Figure, Page, Panel, Section, Series
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
    start, other = result.start, beside.start if beside else None
    name = beside and _compared(beside)
    measured = result.runs[0]
    lead = [_bill(measured)]
    if beside is not None:
        lead.append(f"{name}: {beside.verdict}")
    remedies = dict.fromkeys(each.remedy for each in result.findings.at_least("warning") if each.remedy)
    severity = "error" if result.findings.errors else "warning" if result.findings.at_least("warning") else "good"
    panels = [*_chains(measured, beside and beside.runs[0], name or ""), *_others(measured)]
    return Page(
        " · ".join(filter(None, (result.model, start and start.recipe, f"seed {start.seed}" if start else ""))),
        result.verdict[2:], severity, tuple(lead), tuple(remedies), tuple(_facts(result)), tuple(panels),
        tuple(_distributions(start, other)) if start else (), tuple(_sections(result, other, name or "", lint)),
        tuple(_conditions(result)),
    )  # fmt: skip


def _compared(beside: Probed) -> str:
    return f"compared: {(beside.start and beside.start.recipe) or 'its own start'}"


def _bill(measured: Measurement) -> str:
    goal = measured.objective
    guess = f"; answers that say nothing cost {goal.best:.4g}" if goal.classes and not math.isnan(goal.best) else ""
    return f"The loss at the start is {goal.loss:.4g} ({goal.text}){guess}. Measured on {measured.inputs}."


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
        ends = f"{chain.outputs[0].name} to {chain.outputs[-1].name}"
        if drawn:
            heads, numbers = _numbers(chain, other, name)
            yield Panel(f"By depth: {len(chain.outputs)} {chain.kind}, {ends}", drawn, heads, numbers)


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
        series.append(Series(name, tuple(found.get(each.name, math.nan) for each in chain.outputs)))
    places = tuple(each.name for each in chain.outputs)
    band = _band(series[0].values[:: -1 if back else 1], lower, upper)
    figure = Figure(key, title, places, tuple(series), chain.kind[:-1], caption, band)
    ratio = 1 / figure.ratio if back and figure.ratio else figure.ratio
    change = "" if math.isnan(ratio) else f"; ×{digits(ratio)} from {'last to first' if back else 'first to last'}"
    pale = ", the broad pale line as predicted" if any(each is not None for each in series[0].predicted) else ""
    return Figure(key, title, places, tuple(series), chain.kind[:-1], f"{caption}{change}{pale}", band)


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


def _others(measured: Measurement) -> Iterator[Panel]:
    """Of attention how far its logits spread; of recurrent layers the gradient at each step."""
    if len(measured.attentions) > 1:
        places = tuple(each.module for each in measured.attentions)
        series = Series(_HERE, tuple(each.std for each in measured.attentions))
        band = 0.0, PROBE_CHECKS["TI808"].bound.warning
        text = "standard deviation of what the softmax takes: far above, each query picks one key at random"
        yield Panel("Attention", (Figure("attention", "Attention logits", places, (series,), "layer", text, band),))
    for each in measured.time_steps:
        bound: Bound = PROBE_CHECKS["TI809"].bound
        last = each.gradients[-1]
        ends = last * math.exp(-bound.warning), last * math.exp(bound.warning * 9 / 20)
        places = tuple(map(str, range(len(each.gradients))))
        text = f"its RMS at each step of {each.module}, where the loss reads the last"
        series = Series(_HERE, each.gradients)
        figure = Figure("time", "Gradient over time", places, (series,), "time step", text, ends if last > 0 else None)
        yield Panel(f"Recurrent: {each.module}", (figure,))


# --- values ----------------------------------------------------------------------------------------------------------


def _distributions(start: StartValues, other: StartValues | None) -> Iterator[Distribution]:
    """The histograms of what was drawn, in the order of the model, without what is one value."""
    beside = {each.label: each for each in other.parameters} if other else {}
    for each in start.parameters:
        if each.counts:
            record = _record(start, each)
            planned = starts_as(record.fill) if record else ""
            caption = f"planned {planned}" if planned else f"std {digits(each.stds[0])}"
            found = beside.get(each.label)
            second = _histogram(found, "", ()) if found and found.counts else None
            yield _histogram(each, caption, _curve(record, each), second)


def _histogram(
    each: LikeValues, caption: str, curve: tuple[float, ...], beside: Distribution | None = None
) -> Distribution:
    title = f"{each.label} ×{len(each.names)}" if len(each.names) > 1 else each.label
    return Distribution(title, caption, each.low, each.high, each.counts, curve, beside)


def _record(start: StartValues, each: LikeValues) -> Record | None:
    """What was reported of the first of some parameters; None where nothing was."""
    if start.report is None or each.names[0] not in _names(start):
        return None
    return start.report[each.names[0]]


def _names(start: StartValues) -> set[str]:
    records = start.report.records if start.report else ()
    return {name for record in records for name in (record.name, *record.aliases)}


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
        about = "Who wrote what: like tensors in one line, each with the rule that won."
        table = start.report._table()
        yield Section("The plan", _with_other(table, other, name) if other else table, about)
    elif start is not None:
        yield Section("The parameters", _own(start, other, name), "As the model's own code left them.")
    if lint is not None:
        yield Section.of("Lint", lint, "What torchinit check finds in the values and the structure.")
    for load in start.report.loads if start and start.report else ():
        yield Section.of(f"The checkpoint {load.source}", load)


def _with_other(table: Table, other: StartValues, name: str) -> Table:
    """The table with a column that says what the same tensors of another start hold, where that differs."""
    planned = [column.head for column in table.columns].index("started as")
    texts = _texts(other)
    groups = []
    for group in table.groups:
        theirs = " / ".join(dict.fromkeys(texts.get(each, "-") for each in group.names[:1]))
        own = str(group.cells[planned])
        cells = (*group.cells[: planned + 1], "same" if theirs == own else theirs, *group.cells[planned + 1 :])
        groups.append(Group(group.names, cells, group.notes, group.path, group.copies))
    columns = (*table.columns[: planned + 1], Column(name), *table.columns[planned + 1 :])
    return Table(table.subject, columns, groups, table.title, table.foot, table.tree, table.before)


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
        groups.append(Group([*each.names], (*cells, *theirs), (), (each.label,), (len(each.names),)))
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
