"""Alternatives: which schemes reach more of a model than the one that was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torchinit.model.sites import Site
from torchinit.plans.plan import Plan, Reach
from torchinit.plans.planner import make_plan
from torchinit.recipes.files import schemes
from torchinit.recipes.forms import load_scheme


def with_better(plan: Plan, known: Sequence[Site]) -> Plan:
    """The plan of a model's sites; where a scheme reaches little of the model, with the schemes that reach more."""
    if not any(reach.is_low for reach in plan.reach):
        return plan
    others = [reach for name in schemes() for reach in make_plan(known, load_scheme(name)).reach]
    return replace(plan, reach=tuple(_among(reach, others) for reach in plan.reach))


def _among(reach: Reach, others: Sequence[Reach]) -> Reach:
    more = [other for other in others if other.share > reach.share] if reach.is_low else []
    return replace(reach, better=tuple(sorted(more, key=lambda other: -other.share)))
