"""Probe: whether a start is any good, measured by a pass forward and back."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from torchinit._text import abbreviate, count, with_article
from torchinit.api import initialize, materialize
from torchinit.errors import ProbeError, ReportError
from torchinit.linting.registry import Severity
from torchinit.plans.report import Report
from torchinit.probing.checks import judge, near_bounds
from torchinit.probing.inputs import Together, check_place, given, inputs_of
from torchinit.probing.measure import MeasureOptions, Optimizer, measure
from torchinit.probing.measurement import Measurement
from torchinit.probing.moments import StartValues, values_of
from torchinit.probing.passes import Loss, Passes, kept, probing_mode
from torchinit.probing.result import Probe
from torchinit.recipes import RecipeLike


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
    After ``limit`` seconds nothing new is begun; ranks that hold parts of the model decide that, and whether there is
    another pass, as one.

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
    together = Together(model)
    options = MeasureOptions(optimizer, lr, steps, dtype, time.monotonic() + limit, together)
    copies = recipe is not None or any(parameter.is_meta for parameter in model.parameters())
    is_fresh = copies or batch is None or callable(batch)  # each run has other draws, or other inputs
    values: StartValues | None = None

    def run(number: int) -> Measurement:
        nonlocal values
        started, report = _started(model, recipe, seed + number) if copies else (model, None)
        values = values or values_of(started, recipe, seed, report)
        with kept(started, seed + number), probing_mode(started):
            inputs = inputs_of(started, batch, seed if copies else seed + number, limit, together)
            inputs = inputs if is_fresh or not number else inputs.part(number - 1, 2)
            check_place(inputs, started)
            return measure(Passes(started, inputs, loss, prior, seed + number), options)

    runs = [run(0)]
    again = bool(near_bounds(runs[0])) and (is_fresh or given(model, batch).samples > 3)
    for number in (1, 2) if together.largest(again) else ():
        if not options.late:
            runs.append(run(number))
    late = f"after {limit:g} seconds nothing new was begun: more would be looked at with a higher limit"
    findings = judge(runs, "seeds" if recipe is not None else "inputs")
    notes = (*((late,) if options.late else ()), *_notes(model, runs[0]))
    return Probe(type(model).__name__, findings, tuple(runs), notes, values)


def _notes(model: nn.Module, measured: Measurement) -> Iterator[str]:
    """What a reader of the verdict should know: what was off, what may be meant, and of what nothing was promised."""
    chances = [each.p for each in model.modules() if isinstance(each, _DropoutNd) and 0 < each.p < 1]
    if chances:
        times = f"training makes what passes one up to {(1 - max(chances)) ** -0.5:.3g} times as large"
        yield f"{count(len(chances), 'dropout')} off, p = {max(chances):g} at most: {times}"
    if masks := [each.name for each in measured.not_finite if each.may_be_meant and each.kind == "buffer"]:
        yield f"infinite, as masks are: {abbreviate(masks)}"
    unknown = [each.name for each in measured.outputs if each.predicted is None]
    if unknown:
        share = f"{len(unknown)} of {count(len(measured.outputs), 'output')}, from {unknown[0]} on"
        yield f"nothing is promised of {share}: behind attention, recurrent layers, averages or the like, until a norm"


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
