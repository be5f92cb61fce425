"""Plans: what will be written where, and why, worked out before any memory is touched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from torchinit._text import by_reason, columns, count, did_you_mean, shape_text, shorten_paths, some
from torchinit.errors import CheckpointError, PlanError
from torchinit.initializers.elementwise import Fill
from torchinit.initializers.load_report import LoadReport, by_field
from torchinit.initializers.moments import Moments
from torchinit.model.sites import Site
from torchinit.plans.reach import Reach
from torchinit.rules.catalog import SCHEMA
from torchinit.rules.rule import Rule
from torchinit.serialization.schema import parse


@dataclass(frozen=True, slots=True)
class Step:
    """One site and the fill it gets; ``rule`` says why, ``over`` which earlier rules it beat.

    ``turn`` is the step's place among all writes, the overwritten ones included. ``notes`` holds what the
    reader of a plan should know about it.

    >>> from torchinit.initializers.elementwise import Constant
    >>> from torchinit.rules.selectors import Name
    >>> rule = Rule(Name("a.weight"), Constant(1.0))
    >>> Step(Site("a.weight", (2, 2)), Constant(1.0), rule).over
    ()
    """

    site: Site
    fill: Fill
    rule: Rule
    over: tuple[Rule, ...] = ()
    turn: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A site that a rule matches and no fill can be written to, and why.

    >>> Skipped(Site("ids", (4,)), "holds whole numbers").why
    'holds whole numbers'
    """

    site: Site
    why: str


FROZEN: Final = "frozen: requires_grad is false"
"""The note of a step that writes a parameter which does not learn, and why one is left alone."""

UNKNOWN: Final = "what follows this layer is not known: gain 1"
"""The note of a step whose gain should be that of the next nonlinearity, where no structure shows one."""

_FORMAT = "torchinit-plan-1"

Verb: TypeAlias = Literal["added", "removed", "changed"]


@dataclass(frozen=True, slots=True)
class Change:
    """A difference between two plans: what a site got before, and what it gets after.

    >>> print(Change("head.weight", "changed", "Constant(val=0.0)", "Constant(val=1.0)"))
    changed head.weight: Constant(val=0.0) -> Constant(val=1.0)
    """

    name: str
    verb: Verb
    before: str = ""
    after: str = ""

    def __str__(self) -> str:
        what = {"added": self.after, "removed": self.before, "changed": f"{self.before} -> {self.after}"}
        return f"{self.verb} {self.name}: {what[self.verb]}"


@dataclass(frozen=True, slots=True)
class Plan:
    """The resolved steps of a recipe on a model, and what was left out.

    ``steps`` has one step a site, in the order in which they are written. ``overwritten`` has the writes
    that a later rule replaces; they are made only where they must draw (torch's global generator).
    ``untouched`` are the sites without a step, ``skipped`` those that cannot be written, ``unused`` the
    rules that matched nothing, with a hint each. ``declined`` are those of the untouched sites that a rule
    matches, and why it has no values for them. ``loads`` tell what is taken from checkpoints, ``reach`` how much of
    the model the rules of each scheme are for. ``problems`` make :meth:`check` fail.

    >>> from torchinit.initializers.elementwise import Constant
    >>> from torchinit.plans.planner import make_plan
    >>> from torchinit.rules.selectors import Name
    >>> plan = make_plan([Site("a.weight", (2,)), Site("a.bias", (2,))], [Rule(Name("**.weight"), Constant(1.0))])
    >>> len(plan), [site.name for site in plan.untouched]
    (1, ['a.bias'])
    """

    steps: tuple[Step, ...] = ()
    overwritten: tuple[Step, ...] = ()
    untouched: tuple[Site, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    unused: tuple[tuple[Rule, str], ...] = ()
    problems: tuple[str, ...] = ()
    loads: tuple[LoadReport, ...] = ()
    declined: tuple[Skipped, ...] = ()
    reach: tuple[Reach, ...] = ()

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __getitem__(self, name: str) -> Step:
        """The step of a site, by any of its names."""
        for step in self.steps:
            if any(view.name == name for view in step.site.views):
                return step
        names = [view.name for step in self.steps for view in step.site.views]
        raise KeyError(f"no step for {name!r}{did_you_mean(name, names)}")

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """The plan as plain text, a line a site, then what is left out."""
        head = ("name", "shape", "dtype", "fill", "mean", "std", "rule", "over", "notes")
        rows = shorten_paths(map(_row, self.steps), [load.source for load in self.loads])
        return "\n".join([columns(head, rows), self.summary()])

    def summary(self) -> str:
        """What will be written and what will not, in a few lines."""
        elements = sum(step.site.numel for step in self.steps)
        lines = [f"{count(len(self.steps), 'site')} to write: {elements:,} elements"]
        name, most = self.scratch
        if most >= _WORTH_A_LINE:
            lines.append(f"{name} is computed whole, which takes {most / 2**20:,.1f} MiB beside the model for a moment")
        for kind in ("parameter", "buffer"):
            names = [site.name for site in self.untouched if site.kind == kind]
            lines += [f"{count(len(names), kind)} untouched: {some(names)}"] if names else []
        lines += self.left_alone
        lines += by_reason("skipped", ((skip.site.name, skip.why) for skip in self.skipped))
        if frozen := [step.site.name for step in self.steps if FROZEN in step.notes]:
            lines.append(f"{count(len(frozen), 'frozen parameter')} to write: {some(frozen)}")
        lines += [f"unused: {hint}" for _, hint in self.unused]
        lines += [reach.summary() for reach in self.reach]
        if unknown := [step.site.name for step in self.steps if UNKNOWN in step.notes]:
            lines.append(f"what follows is not known of {count(len(unknown), 'layer')}, gain 1: {some(unknown)}")
        lines += [account.summary() for account in self.loads]
        lines += [f"problem: {problem}" for problem in self.problems]
        return "\n".join(lines)

    @property
    def left_alone(self) -> list[str]:
        """The sites that a rule matches and has no values for, a line for each reason."""
        return by_reason("left alone", ((one.site.name, one.why) for one in self.declined))

    @property
    def writes(self) -> tuple[Step, ...]:
        """All writes in order, the overwritten ones included."""
        return tuple(sorted((*self.steps, *self.overwritten), key=lambda step: step.turn))

    @property
    def without_values(self) -> tuple[Site, ...]:
        """The parameters that get no values: no rule matches them, or no fill can be written to them.

        One whose layer gives it no elements needs none.
        """
        left = [site for site in self.untouched if site.kind == "parameter" and (site.lack or site.numel)]
        return (*left, *(skip.site for skip in self.skipped if skip.site.lack and skip.why != FROZEN))

    @property
    def scratch(self) -> tuple[str, int]:
        """The site whose write takes the most memory beside the model's own, and the bytes of it."""
        needs = ((step.site.name, step.fill.scratch(step.site.shape)) for step in self.steps)
        return max(needs, key=lambda need: need[1], default=("", 0))

    def to_dict(self) -> dict[str, object]:
        """The plan as plain data.

        Raises ConfigError for a rule whose initializer is of a class that is not registered.
        """
        return {"format": _FORMAT, **SCHEMA.encode(self, Plan), "loads": [load.to_dict() for load in self.loads]}

    def to_json(self, *, indent: int | None = 2) -> str:
        """The plan as JSON; :meth:`from_json` reads it back."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that :meth:`to_json` wrote; raises ConfigError with every mistake if it did not.

        >>> from torchinit.initializers.elementwise import Normal
        >>> from torchinit.plans.planner import make_plan
        >>> from torchinit.rules.selectors import Name
        >>> plan = make_plan([Site("a.weight", (2, 2))], [Rule(Name("a.*"), Normal(std=0.02))])
        >>> Plan.from_json(plan.to_json()) == plan
        True
        """
        data = parse(text, "a plan", _FORMAT, object_hook=_renamed)
        if isinstance(data.get("loads"), list):
            data["loads"] = [*map(by_field, data["loads"])]
        plan: Plan = SCHEMA.decode(data, Plan, "the plan")
        return plan

    def check(self, *, complete: bool = False, strict: bool = False) -> Plan:
        """The plan itself, if nothing is wrong with it; else PlanError with every problem.

        ``complete`` makes a parameter without a step a problem, be it that no rule matches it or that no fill can be
        written to it; ``strict`` a rule that matches nothing and a site that a checkpoint lacks. Where all that is
        wrong is with checkpoints it is a CheckpointError.
        """
        loading = [text for account in self.loads for text in account.problems]
        if strict:
            loading += [text for account in self.loads for text in account.lapses]
        found = [*loading, *self.problems]
        if strict:
            found += [f"{hint}\n    If that is intended, set optional = true." for _, hint in self.unused]
        if complete:
            failed = {name for account in self.loads for name in account.failed_sites}
            why = {one.site.name: f": {one.why}" for one in self.declined}
            found += [
                f"{site.name} {site.lack}" if site.lack else f"no rule for {site.name}{why.get(site.name, '')}"
                for site in self.without_values
                if failed.isdisjoint(view.name for view in site.views)
            ]
        if found and len(found) == len(loading):
            raise CheckpointError(*_headed(found))
        if found:
            raise PlanError(f"{count(len(found), 'problem')} in the plan; nothing was written", found)
        return self

    def diff(self, other: Plan) -> tuple[Change, ...]:
        """What ``other`` does differently: sites added, removed, changed."""
        mine = {step.site.name: step for step in self.steps}
        theirs = {step.site.name: step for step in other.steps}
        changes = [Change(name, "removed", before=_gist(step)) for name, step in mine.items() if name not in theirs]
        changes += [Change(name, "added", after=_gist(step)) for name, step in theirs.items() if name not in mine]
        changes += [
            Change(name, "changed", _gist(step), _gist(theirs[name]))
            for name, step in mine.items()
            if name in theirs and not _agree(step, theirs[name])
        ]
        return tuple(changes)


def _headed(found: list[str]) -> tuple[str, list[str]]:
    """One problem as the headline itself, several below one."""
    return (found[0], []) if len(found) == 1 else (f"{count(len(found), 'problem')} with checkpoints", found)


def _renamed(data: dict[str, Any]) -> dict[str, Any]:
    """A table of a plan under today's names; older plans have others."""
    match data:
        case {"type": "Any", "of": of}:
            return {"type": "AnyOf", "of": of}
        case {"type": "Roles", "roles": kinds}:
            return {"type": "Kinds", "kinds": kinds}
        case {"owner": _, "role": kind, **rest}:
            return {**rest, "owner": data["owner"], "parameter_kind": kind}
    return data


_WORTH_A_LINE = 1 << 20
"""Bytes of working memory from which a plan's summary speaks of them."""


def _row(step: Step) -> tuple[str, ...]:
    site = step.site
    moments = step.fill.moments(site.shape) or Moments()
    mean, std = ("-" if value is None else f"{value:.4g}" for value in (moments.mean, moments.std))
    over = ", ".join(rule.origin or str(rule) for rule in step.over)
    dtype = str(site.dtype).removeprefix("torch.")
    rule = " ".join(filter(None, (step.rule.origin, str(step.rule))))
    return (site.name, shape_text(site.shape), dtype, str(step.fill), mean, std, rule, over, "; ".join(step.notes))


def _agree(step: Step, other: Step) -> bool:
    """Whether two steps do the same: as values, since 1 is 1.0, or as texts, since NaN is not NaN."""
    same = step.fill == other.fill and (step.site.shape, step.site.dtype) == (other.site.shape, other.site.dtype)
    return same or _gist(step) == _gist(other)


def _gist(step: Step) -> str:
    # The repr: two fills that differ in the tenth digit differ, and the short text would not show it.
    return f"{step.fill!r} in {list(step.site.shape)} {str(step.site.dtype).removeprefix('torch.')}"
