"""Plans: what will be written where, and why, worked out before any memory is touched; and how two plans differ."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from torchinit._folding import Column, Row, RowGroup, fold, fold_names, large, starts_as
from torchinit._frozen import Postponable, quickly_made
from torchinit._tables import Table, Tabular
from torchinit._text import (
    abbreviate,
    by_reason,
    count,
    did_you_mean,
    dtype_name,
    percentage,
    shape_text,
    shortened,
)
from torchinit.errors import CheckpointError, PlanError
from torchinit.initializers.elementwise import Fill
from torchinit.initializers.load_report import LoadReport, by_field
from torchinit.initializers.statistics import Moments
from torchinit.model.sites import Site
from torchinit.plans.diff import Diff
from torchinit.rules.rule import SCHEMA, Rule, Value
from torchinit.serialization.schema import parse

FROZEN: Final = "frozen: requires_grad is false"
"""The note of a step that writes a parameter which does not learn, and why one is left alone."""

LEFT: Final = "left alone: only= names others"
LOADED: Final = "was loaded, as transformers marks it (_is_hf_initialized)"
"""Why a site is left alone that a rule may match: it has its values."""

UNKNOWN: Final = "what follows this layer is not known: gain 1"
"""The note of a step whose gain should be that of the next nonlinearity, where no structure shows one."""

Strict: TypeAlias = bool | Literal["model"]
"""Whether a rule that matches nothing and a site that a checkpoint lacks are errors; True: a key nobody takes, too."""

_FORMAT: Final = "torchinit-plan-1"
_WORTH_A_LINE: Final = 1 << 20
"""Bytes of working memory from which a plan's summary speaks of them."""


@quickly_made
@dataclass(frozen=True, slots=True)
class Step:
    """One site and the fill it gets; ``rule`` says why, ``over`` which earlier rules it beat.

    ``turn`` is the step's place among all writes, the overwritten ones included; ``notes`` are for readers of the plan.

    >>> from torchinit.initializers.elementwise import Constant
    >>> Step(Site("a.weight", (2, 2)), Constant(1.0), Rule("a.weight", Constant(1.0))).over
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


@dataclass(frozen=True, slots=True)
class Reach:
    """The numbers of a model's parameters and of their elements that the rules of a scheme reach, each of the total.

    Counted are the parameters that learn (``requires_grad``), a tied one once, whether or not a later rule gives them
    other values. ``better`` are the schemes that reach more, where this one reaches less than a half of the model.

    >>> print(Reach("llama", parameters=(2, 28), elements=(40, 10_000)))
    scheme 'llama' reached 2 of 28 parameters, 0.4 % of the elements
    """

    scheme: str
    parameters: tuple[int, int]
    elements: tuple[int, int]
    better: tuple[Reach, ...] = ()

    def __str__(self) -> str:
        reached, total = self.parameters
        elements = percentage(*self.elements)
        return f"scheme {self.scheme!r} reached {reached} of {count(total, 'parameter')}, {elements} % of the elements"

    @property
    def share(self) -> float:
        """The share of the parameters or that of their elements, the smaller one; 1 where there are none."""
        return min(reached / total if total else 1.0 for reached, total in (self.parameters, self.elements))

    @property
    def is_low(self) -> bool:
        """Whether less than a half is reached, of the parameters or of their elements."""
        return self.share < 0.5

    def summary(self) -> str:
        """The reach, and if it is low, the schemes that reach more."""
        if not self.is_low:
            return str(self)
        more = ", ".join("{!r} ({} of {})".format(other.scheme, *other.parameters) for other in self.better[:3])
        none = "No scheme that comes with torchinit reaches more of it: give the rest rules of their own"
        return f"{self}, less than a half of the model. {f'Schemes that reach more of it: {more}' if more else none}"


@dataclass(frozen=True, slots=True, repr=False)
class Plan(Postponable, Tabular):
    """The resolved steps of a recipe on a model, and what was left out.

    ``steps`` has one step a site, in the order in which they are written. ``overwritten`` has the writes that a later
    rule replaces; they are made only where they must draw (torch's global generator). ``untouched`` are the sites
    without a step, ``skipped`` those that cannot be written, ``unused`` the rules that matched nothing, with a hint
    each, ``declined`` the untouched sites that a rule matches and has no values for. ``loads`` tell what is taken from
    checkpoints, ``reach`` how much of the model each scheme's rules are for. ``problems`` make :meth:`check` fail.

    >>> from torchinit.initializers.elementwise import Constant
    >>> from torchinit.plans.planner import make_plan
    >>> plan = make_plan([Site("a.weight", (2,)), Site("a.bias", (2,))], [Rule("**.weight", Constant(1.0))])
    >>> len(plan), [site.name for site in plan.untouched], Plan.from_json(plan.to_json()) == plan
    (1, ['a.bias'], True)
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
        steps = {view.name: step for step in self.steps for view in step.site.views}
        if name not in steps:
            raise KeyError(f"no step for {name!r}{did_you_mean(name, steps)}")
        return steps[name]

    def _table(self, *, full: bool = False) -> Table:
        shorten = shortened([load.source for load in self.loads])
        steps = self.steps if full else sorted(self.steps, key=_position)
        rows = (_row(step, shorten, full=full) for step in steps)
        groups = fold(rows, _COLUMNS, among=[site.name for site in self.sites], full=full)
        elements, dtypes = sum(step.site.numel for step in steps), {dtype_name(step.site.dtype) for step in steps}
        title = f"{count(len(steps), 'site')} to write: {sized(groups, elements, dtypes)}"
        rest = self.summary().split("\n")[1:]
        if self.steps and not (rest or self.problems):
            rest = ["every parameter has a rule; nothing is written yet"]
        return Table("tensor", _COLUMNS, groups, title, tuple(rest), tree=not full)

    def _headline(self, groups: Sequence[RowGroup]) -> str:
        sites = sized(groups, sum(step.site.numel for step in self.steps))
        return f"Plan of {count(len(self), 'site')}: {sites}, {count(len(self.problems), 'problem')}"

    def summary(self) -> str:
        """The plan in a few lines: the sites that will be written and those that will not."""
        elements = sum(step.site.numel for step in self.steps)
        lines = [f"{count(len(self.steps), 'site')} to write: {elements:,} elements"]
        name, most = self.scratch
        if most >= _WORTH_A_LINE:
            lines.append(f"{name} is computed whole, which takes {most / 2**20:,.1f} MiB beside the model for a moment")
        for kind in ("parameter", "buffer"):
            lines += counted([site.name for site in self.untouched if site.kind == kind], kind, "untouched")
        lines += self.left_alone
        lines += by_reason("skipped", ((skip.site.name, skip.why) for skip in self.skipped))
        frozen = [step.site.name for step in self.steps if FROZEN in step.notes]
        lines += counted(frozen, "frozen parameter", "to write")
        lines += [f"unused: {hint}" for _, hint in self.unused]
        lines += [reach.summary() for reach in self.reach]
        lines += told(self.arguments)
        lines += not_followed(step.site.name for step in self.steps if UNKNOWN in step.notes)
        lines += [load.summary() for load in self.loads]
        lines += [f"problem: {problem}" for problem in self.problems]
        return "\n".join(lines)

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites of the model: those of the steps, the untouched and the skipped ones."""
        return (*(step.site for step in self.steps), *self.untouched, *(skip.site for skip in self.skipped))

    @property
    def drafts(self) -> Collection[Any]:
        """The steps, or until somebody asks for them, what has the same sites, fills and rules in that order."""
        maker = self.maker_of("steps")
        return self.steps if maker is None else maker.drafts  # type: ignore[attr-defined]  # the planner's

    @property
    def left_alone(self) -> list[str]:
        """The sites that a rule matches and has no values for, a line for each reason."""
        return by_reason("left alone", ((skip.site.name, skip.why) for skip in self.declined))

    @property
    def arguments(self) -> dict[str, Mapping[str, Value]]:
        """The arguments of each scheme, and of the ``"recipe"``, as they were."""
        rules = (*(step.rule for step in (*self.drafts, *self.overwritten)), *(rule for rule, _ in self.unused))
        return {rule.scheme or "recipe": rule.arguments for rule in rules if rule.arguments}

    @property
    def writes(self) -> tuple[Step, ...]:
        """All writes in order, the overwritten ones included."""
        return tuple(sorted((*self.steps, *self.overwritten), key=lambda step: step.turn))

    @property
    def without_values(self) -> tuple[Site, ...]:
        """The parameters that should have values and get none: no rule matches them, or no fill can be written."""
        left = [site for site in self.untouched if site.kind == "parameter" and (site.lack or site.numel)]
        return (
            *left,
            *(skip.site for skip in self.skipped if skip.site.lack and skip.why not in (FROZEN, LEFT, LOADED)),
        )

    @property
    def scratch(self) -> tuple[str, int]:
        """The site whose write takes the most memory beside the model's own, and the bytes of it."""
        needs = ((step.site.name, step.fill.scratch(step.site.shape)) for step in self.steps)
        return max(needs, key=lambda need: need[1], default=("", 0))

    def to_dict(self) -> dict[str, object]:
        """The plan as plain data; raises ConfigError for a rule whose initializer's class is not registered."""
        return {"format": _FORMAT, **SCHEMA.encode(self, Plan), "loads": [load.to_dict() for load in self.loads]}

    def to_json(self, *, indent: int | None = 2) -> str:
        """The plan as JSON; :meth:`from_json` reads it back."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that :meth:`to_json` wrote; raises ConfigError with every mistake if it did not."""
        data = parse(text, "a plan", _FORMAT, object_hook=_renamed)
        if isinstance(data.get("loads"), list):
            data["loads"] = [*map(by_field, data["loads"])]
        plan: Plan = SCHEMA.decode(data, Plan, "the plan")
        return plan

    def check(self, *, complete: bool = False, strict: Strict = False) -> Plan:
        """The plan itself, if nothing is wrong with it; else PlanError with every problem.

        ``complete`` makes a parameter without a step a problem; ``strict`` a rule that matches nothing, a site that a
        checkpoint lacks, and a key of a checkpoint that nobody takes, which ``strict="model"`` lets pass. Where all
        problems are with checkpoints it is a CheckpointError.
        """
        if not isinstance(strict, bool) and strict != "model":
            raise ValueError(f"strict must be true, false or 'model', but got {strict!r}")
        loading = [text for load in self.loads for text in load.problems_of(strict)]
        problems = [*loading, *self.problems]
        if strict:
            problems += [f"{hint}\n    If that is intended, set optional = true." for _, hint in self.unused]
        if complete:
            problems += self._gaps()
        if len(problems) > len(loading):
            raise PlanError(f"{count(len(problems), 'problem')} in the plan; nothing was written", problems)
        if len(loading) == 1:
            raise CheckpointError(*loading)
        if loading:
            raise CheckpointError(f"{count(len(loading), 'problem')} with checkpoints", loading)
        return self

    def _gaps(self) -> Iterator[str]:
        """A text for each parameter without values, but for those that a checkpoint's own failure explains."""
        failed = {name for load in self.loads for name in load.failed_sites}
        why = {skip.site.name: f": {skip.why}" for skip in self.declined}
        for site in self.without_values:
            if failed.isdisjoint(view.name for view in site.views):
                yield f"{site.name} {site.lack}" if site.lack else f"no rule for {site.name}{why.get(site.name, '')}"

    def diff(self, other: Plan) -> Diff:
        """The steps that ``other`` adds, removes and changes, by site."""
        ordered = (sorted(plan.steps, key=_position) for plan in (self, other))
        before, after = ({step.site.name: step for step in steps} for steps in ordered)
        return Diff.between(before, after, agree=_agree, facts=_facts, why=_why(self, other))


def _renamed(data: dict[str, Any]) -> dict[str, Any]:
    """A table of a plan under today's names; older plans have others."""
    match data:
        case {"type": "Any", "of": of}:
            return {"type": "AnyOf", "of": of}
        case {"type": "Roles", "roles": kinds}:
            return {"type": "Kinds", "kinds": kinds}
        case {"owner": _, "role": "weight" | "bias" | "other" as kind, **rest} if "parameter_kind" not in rest:
            return {**rest, "owner": data["owner"], "parameter_kind": kind}
    return data


def _position(step: Step) -> int:
    return step.site.position


def _agree(step: Step, other: Step) -> bool:
    """Whether two steps do the same: as values, since 1 is 1.0, or as texts, since NaN is not NaN."""
    same = step.fill == other.fill and (step.site.shape, step.site.dtype) == (other.site.shape, other.site.dtype)
    return same or _facts(step) == _facts(other)


def _facts(step: Step) -> tuple[str, ...]:
    # The repr: two fills that differ in the tenth digit differ, and the short text would not show it.
    return repr(step.fill), f"in {list(step.site.shape)}", dtype_name(step.site.dtype)


def _why(before: Plan, after: Plan) -> Callable[[str], str]:
    """The function that says of a changed site by which rule it is what it is, and whether a tie came or went."""
    steps, ties = ({step.site.name: step for step in (*before.steps, *after.steps)}, [])
    for plan in (before, after):
        ties.append({view.name: step.site.name for step in plan.steps for view in step.site.aliases})

    def why(name: str) -> str:
        news = [f"no longer tied to {ties[0][name]}"] if name in ties[0] and name not in ties[1] else []
        news += [f"now tied to {ties[1][name]}"] if name in ties[1] and name not in ties[0] else []
        return ", ".join([_called(steps[name].rule), *news])

    return why


_COLUMNS: Final = (
    Column("shape", spare=1),
    Column("dtype", spare=3, once=True),
    Column("starts as", "range"),
    Column("mean", "range", spare=7),
    Column("std", "range", spare=5),
    Column("elements", "sum", spare=6, right=True),
    Column("rule", spare=1),
    Column("over", spare=4),
)


def _row(step: Step, shorten: Callable[[str], str], *, full: bool) -> Row:
    site = step.site
    moments = step.fill.moments(site.shape) or Moments()
    if site.dtype.is_complex and (parts := step.fill.parts(site.shape)) and not parts.mean:
        moments = parts.shrunk(math.sqrt(2))
    text = _whole if full else _called
    fill, rule, over = starts_as(str(step.fill)), text(step.rule), ", ".join(map(text, step.over))
    facts = (shape_text(site.shape), dtype_name(site.dtype), shorten(fill), moments.mean, moments.std, site.numel)
    notes = remarks([view.name for view in site.aliases], step.notes, full=full)
    return Row(site.name, (*facts, shorten(rule), over), notes)


def _whole(rule: Rule) -> str:
    return " ".join(filter(None, (rule.origin, str(rule))))


def told(arguments: Mapping[str, Mapping[str, Value]]) -> list[str]:
    """A line with the arguments of each recipe."""
    return [
        f"arguments of {name}: {', '.join(f'{key}={value}' for key, value in values.items())}"
        for name, values in arguments.items()
    ]


def _called(rule: Rule) -> str:
    return rule.label or str(rule.where)


def remarks(aliases: Sequence[str], notes: Sequence[str], *, full: bool) -> tuple[str, ...]:
    """The other names of a tensor and what else is to be known of it, but for what stands below a table."""
    told = [f"also {abbreviate(aliases, 3)}"] if aliases else []
    return (*told, *(note for note in notes if full or note != UNKNOWN))


def not_followed(names: Iterable[str]) -> list[str]:
    """A line with the layers whose gain should be that of what follows, where that is not known; no line for none."""
    unknown = [*names]
    text = f"what follows is not known of {count(len(unknown), 'layer')}, gain 1: {abbreviate(fold_names(unknown))}"
    return [text] if unknown else []


def sized(groups: Sequence[RowGroup], elements: int, dtypes: Collection[str] = ()) -> str:
    """The numbers of kinds and elements, and the dtype if all have one."""
    (*dtype,) = dtypes
    return ", ".join([count(len(groups), "kind"), f"{large(elements)} elements", *(dtype if len(dtype) == 1 else [])])


def counted(names: Sequence[str], noun: str, verb: str) -> list[str]:
    """A line with the number of names and the first few of them; no line for none."""
    return [f"{count(len(names), noun)} {verb}: {abbreviate(fold_names(names))}"] if names else []
