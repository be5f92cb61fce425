"""TI7: a recipe against its model, and the model's values against what was intended."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from torchinit._text import abbreviate, count
from torchinit.initializers.statistics import Moments, deviations, measure
from torchinit.linting.registry import Hit, check
from torchinit.linting.target import LintedTensor, LintTarget
from torchinit.plans.notes import discrepancies
from torchinit.plans.plan import Step


@check("TI701", "error", "plan", "correct what it selects, or set optional = true")
def unused_rule(target: LintTarget) -> Iterator[Hit]:
    """A rule of the recipe that matches nothing.

    A misspelt layer or name leaves everything as it was, silently. ``optional = true`` says that it is intended.
    """
    for _, hint in target.plan.unused:
        yield Hit("", hint)


@check("TI702", "warning", "plan", "move it behind the others, make it narrower, or drop it")
def shadowed_rule(target: LintTarget) -> Iterator[Hit]:
    """A rule all of whose sites later rules take over, so that it has no effect.

    Where two rules match, the later one wins, however narrow the earlier one is; a general rule at the end undoes
    the special ones before it. Read off the plan, so never wrong.
    """
    plan = target.plan
    effective = {step.rule.origin for step in plan.steps}
    for rule in dict.fromkeys(step.rule for step in plan.overwritten if step.rule.origin not in effective):
        lost = [step for step in plan.steps if rule in step.over]
        winners = dict.fromkeys(step.rule.origin for step in lost)
        text = f"{rule.origin} {rule} matches {count(len(lost), 'site')}, and all go to {abbreviate(list(winners))}"
        yield Hit("", f"{text}, later in the recipe")


@check("TI703", "warning", "plan", 'set fans = "true", or fans = "torch" knowingly')
def fan_convention(target: LintTarget) -> Iterator[Hit]:
    """A weight that its rule counts or cuts otherwise than its layer does: fans by torch's count, several for one.

    ``torch.nn.init`` reads fans off the shape: dimension 1 in, dimension 0 out. For grouped and transposed
    convolutions, experts in a stack and gates side by side that is not what the layer connects: both counts stand in
    the finding. Of three dimensions or more in a layer that nobody has described, dimension 0 may count experts. An
    orthogonal, Dirac or identity matrix over all groups, gates or experts is none for each of them. A tensor that
    Megatron marks as one rank's part (tensor_model_parallel) has the part's fans. Read off the plan. Where parity with
    torch is wanted, ignore it.
    """
    for step in target.plan:
        view = next((view for view in step.site.views if step.rule.matches(view)), step.site)
        for fact, remedy, is_chosen in discrepancies(step, view):
            if not is_chosen:
                yield Hit(step.site.name, fact, remedy=remedy)


@check("TI704", "error", "plan", "run the recipe last, or find what wrote after it")
def not_as_planned(target: LintTarget) -> Iterator[Hit]:
    """A parameter whose values are not as the recipe says.

    Mean and standard deviation may stray by six standard errors, which follow from the number of values and the
    kurtosis of the fill; bounds by the rounding of the dtype. A bias that lost its prior, a weight that kept its
    layer's initialization and a deviation that a format rounded to zero show here. Loaded values are left out.
    """
    for step in target.plan:
        linted = target.by_name.get(step.site.name)
        if linted is not None and linted.values is not None and not linted.loaded and linted.statistics.finite:
            reasons = _deviations(step, linted)
            if reasons:
                yield Hit(linted.name, f"{'; '.join(reasons)}: {step.rule.origin} {step.fill}")


def _deviations(step: Step, linted: LintedTensor) -> list[str]:
    site, stats = linted.site, linted.statistics
    if site.shape != step.site.shape:
        return [f"has shape {site.shape}, planned {step.site.shape}"]
    if not (linted.is_complete or step.fill.elementwise):
        return []
    expected = step.fill.parts(site.shape) if site.dtype.is_complex else step.fill.moments(site.shape)
    return deviations(expected, Moments(stats.mean, stats.std, stats.min, stats.max), stats.numel, site.dtype)


@check("TI705", "error", "plan", "correct the recipe")
def impossible_plan(target: LintTarget) -> Iterator[Hit]:
    """A problem of the plan: it would not run.

    What :meth:`torchinit.Plan.check` raises, as findings.
    """
    for problem in target.plan.problems:
        yield Hit("", problem)


@check("TI706", "error", "report", "initialize last, or find what wrote after it")
def changed_since_report(target: LintTarget) -> Iterator[Hit]:
    """A parameter that holds other values than when the report was made.

    Something wrote after the initialization: an ``apply``, a checkpoint, a training step. Decided by the four moments
    that the report measured, within the rounding of the dtype; a write that keeps all four is not seen.
    """
    for record in target.report:
        linted = target.by_name.get(record.name)
        if linted is not None and linted.values is not None and record.measured is not None:
            now, before, dtype = measure(linted.values), record.measured, linted.site.dtype
            kinds = (torch.float32, dtype if dtype.is_floating_point else torch.float32)
            moments = [(name, getattr(before, name), getattr(now, name)) for name in ("mean", "std", "min", "max")]
            slack = max(torch.finfo(kind).eps for kind in kinds) * linted.statistics.reach
            apart = [
                f"{name} was {was:.6g} and is {new:.6g}"
                for name, was, new in moments
                if was != new and not abs(was - new) <= slack  # "not", since a comparison with NaN is false
            ]
            if apart:
                yield Hit(linted.name, "; ".join(apart))
