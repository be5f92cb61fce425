"""Intents: checks of a recipe against its model, and of the model's values against what was intended."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from torchinit.core.measures import deviations, measure
from torchinit.core.moments import Moments
from torchinit.core.planner import fan_notes
from torchinit.core.plans import Step
from torchinit.core.tables import some
from torchinit.errors import count
from torchinit.linting.checks import Evidence, check
from torchinit.linting.subjects import Part, Subject


@check("TI701", "unused-rule", "error", "plan", "correct what it selects, or set optional = true")
def unused_rule(subject: Subject) -> Iterator[Evidence]:
    """A rule of the recipe that matches nothing.

    A misspelt layer or name leaves everything as it was, silently. Read off the plan, so never wrong; ``optional =
    true`` says that it is intended.
    """
    for _, hint in subject.intended.unused:
        yield Evidence("", hint)


@check("TI702", "shadowed-rule", "warning", "plan", "move it behind the others, make it narrower, or drop it")
def shadowed_rule(subject: Subject) -> Iterator[Evidence]:
    """A rule all of whose sites later rules take over, so that it has no effect.

    Where two rules match, the later one wins, however narrow the earlier one is; a general rule at the end undoes
    the special ones before it. Read off the plan, so never wrong.
    """
    plan = subject.intended
    effective = {step.rule.origin for step in plan.steps}
    for rule in dict.fromkeys(step.rule for step in plan.overwritten if step.rule.origin not in effective):
        lost = [step for step in plan.steps if rule in step.over]
        winners = dict.fromkeys(step.rule.origin for step in lost)
        text = f"{rule.origin} {rule} matches {count(len(lost), 'site')}, and all go to {some(list(winners))}"
        yield Evidence("", f"{text}, later in the recipe")


@check("TI703", "fan-convention", "warning", "plan", 'set fans = "true", or fans = "torch" knowingly')
def fan_convention(subject: Subject) -> Iterator[Evidence]:
    """A weight whose fans depend on how they are counted, filled by torch's count.

    ``torch.nn.init`` reads fans off the shape: dimension 1 in, dimension 0 out. For grouped and transposed
    convolutions, experts in a stack and gates side by side that is not what the layer connects. Read off the plan:
    both counts stand in the finding. Where parity with torch is wanted, ignore it.
    """
    for step in subject.intended:
        if getattr(step.rule.init, "fans", None) == "torch":
            for note in fan_notes(step):
                yield Evidence(step.site.name, note)


@check("TI704", "not-as-planned", "error", "plan", "run the recipe last, or find what wrote after it")
def not_as_planned(subject: Subject) -> Iterator[Evidence]:
    """A parameter whose values are not as the recipe says.

    Mean and standard deviation may stray by six standard errors, which follow from the number of values and the
    kurtosis of the fill; bounds by the rounding of the dtype. A bias that lost its prior, a weight that kept a
    layer's own initialization and a standard deviation that a format rounded to zero show here. Loaded values are
    left out.
    """
    for step in subject.intended:
        part = subject.find(step.site.name)
        if part is not None and part.values is not None and not part.loaded and part.facts.finite:
            found = _deviations(step, part)
            if found:
                yield Evidence(part.name, f"{'; '.join(found)}: {step.rule.origin} {step.fill}")


def _deviations(step: Step, part: Part) -> list[str]:
    site, facts = part.site, part.facts
    if site.shape != step.site.shape:
        return [f"has shape {site.shape}, planned {step.site.shape}"]
    shape, numel = site.shape, facts.numel
    if not (part.is_whole or step.fill.elementwise):
        return []
    if site.dtype.is_complex:
        return deviations(step.fill.parts(shape), _seen(part), numel, site.dtype)
    return deviations(step.fill.moments(shape), _seen(part), numel, site.dtype)


def _seen(part: Part) -> Moments:
    facts = part.facts
    return Moments(facts.mean, facts.std, facts.min, facts.max)


@check("TI705", "impossible-plan", "error", "plan", "correct the recipe")
def impossible_plan(subject: Subject) -> Iterator[Evidence]:
    """A problem of the plan: it would not run.

    What :meth:`torchinit.Plan.check` raises, as findings.
    """
    for problem in subject.intended.problems:
        yield Evidence("", problem)


@check("TI706", "changed-since-report", "error", "report", "initialize last, or find what wrote after it")
def changed_since_report(subject: Subject) -> Iterator[Evidence]:
    """A parameter that holds other values than when the report was made.

    Something wrote after the initialization: an ``apply`` with a function of one's own, a checkpoint, a training
    step. Decided by the four moments that the report measured, within the rounding of the dtype; a write that keeps
    all four is not seen.
    """
    for record in subject.report if subject.report is not None else ():
        part = subject.find(record.name)
        if part is None or part.values is None or record.measured is None:
            continue
        now, then = measure(part.values), record.measured
        pairs = [(name, getattr(then, name), getattr(now, name)) for name in ("mean", "std", "min", "max")]
        apart = [f"{name} was {was:.6g} and is {now:.6g}" for name, was, now in pairs if not _close(was, now, part)]
        if apart:
            yield Evidence(part.name, "; ".join(apart))


def _close(was: float, now: float, part: Part) -> bool:
    dtype = part.site.dtype
    slack = max(torch.finfo(torch.float32).eps, torch.finfo(dtype).eps if dtype.is_floating_point else 0.0)
    return was == now or abs(was - now) <= slack * part.facts.reach
