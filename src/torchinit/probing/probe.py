"""Probe: whether a start is any good, measured by a pass forward and back."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from torchinit._text import abbreviate, count, one_line, with_article
from torchinit.api import initialize, materialize
from torchinit.errors import MissingExtraError, ProbeError, ReportError
from torchinit.linting.findings import Findings
from torchinit.linting.registry import Severity
from torchinit.plans.report import Report
from torchinit.probing.checks import PROBE_CHECKS, judge, near_bounds
from torchinit.probing.inputs import check_place, given
from torchinit.probing.measure import MeasureOptions, Optimizer, measure
from torchinit.probing.measurement import Measurement, SignalChain
from torchinit.probing.moments import StartValues, values_of
from torchinit.probing.page import figures_of, page_of
from torchinit.probing.passes import Loss, Passes, inputs_of, kept, probing_mode
from torchinit.recipes import RecipeLike
from torchinit.serialization.json import finite_data


def probe(
    model: nn.Module,
    batch: Any = None,
    *,
    loss: Loss | None = None,
    recipe: RecipeLike | None = None,
    seed: int = 0,
    steps: int = 0,
    optimizer: Optimizer | None = None,
    lr: float | None = None,
    dtype: torch.dtype | None = None,
    prior: Sequence[float] | None = None,
    limit: float = 60.0,
) -> Probe:
    """Measure whether a model starts well: one pass forward and back, the verdict, and what would mend a bad start.

    ``batch`` is what the model takes: a tensor, a tuple of arguments, a dict of keywords, or a function that returns
    one; a last item that the model does not take is the target. Without it one is made from the model's signature, its
    config and its first layer. ``loss`` is a function of the output and the batch; without it the loss is the model's
    own, or the cross entropy of its logits. With a ``recipe`` a copy is initialized by it, with ``seed``, and measured:
    the way to probe a model on the meta device.

    With an ``optimizer``, a class of ``torch.optim`` or a function of the parameters (Adam), or ``lr``, it is tried for
    ``steps`` steps, one at least: how much of each weight its first step changes. ``dtype`` is that of the training,
    whose range is looked at; ``prior``, the shares of the classes, gives the loss that the first is shown beside.
    After ``limit`` seconds nothing new is begun.

    A value near its bound is measured twice more, with other seeds of the recipe or on other inputs, and called unsure
    where the runs differ. Norms over batches train, everything else is in evaluation. The model is left as it was: its
    values, buffers, modes, gradients, hooks, and the states of random generators, also where it raises.

    Raises ProbeError for a model that raises itself, takes inputs that nobody gave, returns nothing to take a loss of,
    has nothing that is trained, and for a loss that is not a scalar; ConfigError for a recipe that cannot be read.

    >>> layers = [layer for _ in range(30) for layer in (nn.Linear(64, 64), nn.ReLU())]
    >>> model = nn.Sequential(*layers, nn.Linear(64, 10))
    >>> for layer in model[::2]:
    ...     _ = nn.init.normal_(layer.weight, std=0.02)
    >>> result = probe(model)
    >>> result.healthy, result.findings[0].code
    (False, 'TI801')
    >>> entries = [{"type": "Kaiming", "mode": "fan_in", "layer": "Linear"}]
    >>> probe(model, recipe=entries).findings.errors
    ()
    """
    check_subject(model, seed)
    if not isinstance(steps, int) or steps < 0 or not limit >= 0:
        raise ValueError(f"steps= is a whole number and limit= seconds, from 0 on, but got {steps!r} and {limit!r}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype is that of the training, such as torch.bfloat16, but got {dtype!r}")
    options = MeasureOptions(optimizer, lr, steps, dtype, time.monotonic() + limit)
    copies = recipe is not None or any(parameter.is_meta for parameter in model.parameters())
    is_fresh = copies or batch is None or callable(batch)  # each run has other draws, or other inputs
    values: StartValues | None = None

    def run(number: int) -> Measurement:
        nonlocal values
        started, report = _started(model, recipe, seed + number) if copies else (model, None)
        values = values or values_of(started, recipe, seed, report)
        with kept(started, seed + number), probing_mode(started):
            inputs = inputs_of(started, batch, seed if copies else seed + number, limit)
            inputs = inputs if is_fresh or not number else inputs.part(number - 1, 2)
            check_place(inputs, started)
            return measure(Passes(started, inputs, loss, prior, seed + number), options)

    runs = [run(0)]
    for number in (1, 2) if near_bounds(runs[0]) and (is_fresh or given(model, batch).samples > 3) else ():
        if not options.late:
            runs.append(run(number))
    late = f"after {limit:g} seconds nothing new was begun: more would be looked at with a higher limit"
    findings = judge(runs, "seeds" if recipe is not None else "inputs")
    return Probe(type(model).__name__, findings, tuple(runs), (late,) if options.late else (), values)


def _started(model: nn.Module, recipe: RecipeLike | None, seed: int) -> tuple[nn.Module, Report]:
    """A copy of a model with the values of a recipe, or on the meta device with those of its own rules."""
    try:
        model = copy.deepcopy(model)
    except Exception as error:
        raise ProbeError(f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}") from error
    if recipe is None or any(parameter.is_meta for parameter in model.parameters()):
        return model, materialize(model, recipe, seed=seed)
    return model, initialize(model, recipe, seed=seed)


def assert_healthy(model: nn.Module, batch: Any = None, *, fail_on: Severity = "error", **options: Any) -> None:
    """Raise ReportError, an AssertionError, with all that :func:`probe` finds from this severity on.

    ``options`` are those of :func:`probe`. For tests of a model.

    >>> assert_healthy(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)))
    """
    result = probe(model, batch, **options)
    severe = result.findings.at_least(fail_on)
    if severe:
        headline = f"{count(len(severe), 'finding')}: {type(model).__name__} does not start well"
        raise ReportError(headline, map(str, severe))


def check_subject(model: object, seed: object) -> None:
    """Raise TypeError or ProbeError for what cannot be probed."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"probe takes a torch.nn.Module, but got {with_article(type(model).__name__)}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ProbeError("a scripted module takes no hooks; probe the model that it was made of")
    if type(model).forward is nn.Module.forward and "forward" not in vars(model):
        raise ProbeError(f"{type(model).__name__} has no forward, so it cannot be run")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed is a whole number, but got {seed!r}")
    if next(model.parameters(), None) is None:
        raise ProbeError(f"{type(model).__name__} has no parameters, so it has no start to judge")
    lazy = [name for name, each in model.named_parameters() if isinstance(each, nn.UninitializedParameter)]
    if lazy:
        subject = f"{abbreviate(lazy)} of {type(model).__name__}"
        raise ProbeError(f"{subject}: no shape yet; run it once on an example before")


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
        parts = [[self.verdict], charts, beside, [*findings, *ways], [*self._conditions()]]
        return "\n\n".join("\n".join(map(one_line, part)) for part in parts if part)

    def _conditions(self) -> Iterator[str]:
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
