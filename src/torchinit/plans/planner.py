"""Planner: rules brought to the sites of a model, which makes a plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch

from torchinit._text import some
from torchinit.errors import FanError, count
from torchinit.initializers.composed import Padded
from torchinit.initializers.elementwise import Constant, Fill
from torchinit.initializers.load_report import LoadReport
from torchinit.initializers.source import is_verbatim, resolve_all
from torchinit.initializers.variance_scaling import asks_for_neutral, asks_what_follows
from torchinit.knowledge.neutral import looks_like_norm, neutrality
from torchinit.model.sites import Site
from torchinit.plans.plan import FROZEN, UNKNOWN, Plan, Skipped, Step
from torchinit.plans.reach import Reach
from torchinit.rules.rule import Rule
from torchinit.rules.unmatched import nothing

Ties: TypeAlias = Literal["agree", "last"]


def make_plan(found: Iterable[Site], rules: Sequence[Rule], *, ties: Ties = "agree", trainable: bool = False) -> Plan:
    """The plan of rules on sites. Nothing is raised: what is wrong is in ``plan.problems``.

    Writes are ordered rule by rule, and within a rule as ``Module.apply`` visits the modules, which is the
    order in which MMEngine and hand-written code draw. Rules that give a tied tensor different values
    through different modules are a problem, unless ``ties`` lets the last write win. ``trainable`` leaves parameters
    alone that do not learn.

    >>> from torchinit.initializers.elementwise import Constant
    >>> from torchinit.rules.selectors import Name
    >>> plan = make_plan([Site("a.weight", (2, 2))], [Rule(Name("a.*"), Constant(1.0))])
    >>> plan["a.weight"].fill
    Constant(val=1.0)
    """
    named = tuple(replace(rule, origin=rule.origin or f"rules[{n}]") for n, rule in enumerate(rules))
    return _Planner(tuple(found), named, ties, trainable).plan()


@dataclass(frozen=True, slots=True)
class _Write:
    """A step in the making, with the module's view of the site that the rule matched."""

    view: Site
    step: Step


class _Planner:
    """One pass over rules and sites; what it finds is gathered here until the plan is whole."""

    def __init__(self, known: tuple[Site, ...], rules: tuple[Rule, ...], ties: Ties, trainable: bool) -> None:
        self.known = known
        self.rules = rules
        self.ties = ties
        self.problems: list[str] = []
        self.writes: dict[str, list[_Write]] = {}
        frozen = [site for site in known if site.frozen] if trainable else []
        self.skipped = {site.name: Skipped(site, FROZEN) for site in frozen}
        self.frozen = frozenset(self.skipped)
        if trainable and all(site.frozen for site in known if site.kind == "parameter"):
            text = f"trainable=True leaves frozen parameters alone, and all {len(frozen)} are (requires_grad is false)"
            self.problems.append(text)
        self.declined: dict[str, Skipped] = {}
        self.loads: list[LoadReport] = []
        self.turn = 0

    def plan(self) -> Plan:
        pairs = self._pairs()
        unused = [rule for rule in self.rules if not self._apply(rule, pairs) and not rule.optional]
        if self.ties == "agree":
            self.problems += [text for writes in self.writes.values() if (text := _disagreement(writes))]
            self.problems += _collisions([writes[0].step.site for writes in self.writes.values()])
        self.problems += _unlocked(self.writes.values())
        self._skip_what_is_written_as_another()
        steps = [write.step for writes in self.writes.values() for write in writes[:-1]]
        left = [site for site in self.known if site.name not in self.writes and site.name not in self.skipped]
        return Plan(
            steps=_in_turn(map(_final, self.writes.values())),
            overwritten=_in_turn(steps),
            untouched=tuple(left),
            declined=tuple(self.declined[site.name] for site in left if site.name in self.declined),
            skipped=tuple(skip for name, skip in self.skipped.items() if name not in self.writes),
            unused=tuple((rule, f"{rule.origin} {nothing(rule, self.known)}") for rule in unused),
            problems=tuple(self.problems),
            loads=tuple(map(self._with_uninitialized, self.loads)),
            reach=tuple(self._reach()),
        )

    def _pairs(self) -> list[tuple[Site, Site]]:
        """Each site as each of its modules sees it, in the order of their turns."""
        pairs = [(view, site) for site in self.known for view in site.views]
        return sorted(pairs, key=lambda pair: pair[0].position)

    def _skip_what_is_written_as_another(self) -> None:
        for site in self.known:
            written = [name for name in site.shares if name in self.writes]
            if written and site.name not in self.writes:
                self.skipped[site.name] = Skipped(site, f"lies in the memory of {written[0]!r}, which is written")

    def _apply(self, rule: Rule, pairs: list[tuple[Site, Site]]) -> bool:
        """Adds the writes of one rule; whether it matched anything."""
        # Two names that one parent has for a module share one turn.
        matched = {(site.name, view.position): (view, site) for view, site in reversed(pairs) if rule.matches(view)}
        turns = [(view, site) for view, site in reversed(matched.values()) if site.name not in self.frozen]
        ready = [pair for pair in turns if is_verbatim(rule.init) or self._can_be_drawn(rule, *pair)]
        before = self.turn, len(self.problems)
        for view, site, fill in self._resolved(rule, ready) if ready else ():
            step = Step(site, _padded(rule, view, fill), rule, turn=self.turn)
            self.writes.setdefault(site.name, []).append(_Write(view, step))
            self.turn += 1
        if rule.fitting and turns and before == (self.turn, len(self.problems)):
            self.problems.append(f"{rule.origin}: {rule.init} fits none of {count(len(turns), 'weight')}")
        return bool(matched)

    def _resolved(self, rule: Rule, pairs: list[tuple[Site, Site]]) -> Iterator[tuple[Site, Site, Fill]]:
        """The pairs that the rule has a fill for, with the fill."""
        found = resolve_all(rule.init, pairs, self.known)
        if found.account is not None:
            self.loads.append(found.account)
        for view, site in pairs:
            error, fill = found.errors.get(view.name), found.fills.get(view.name)
            if error is not None and rule.fitting and not _fits(rule, view):
                self.declined[site.name] = Skipped(site, f"{rule.init} does not fit its shape")
            elif error is not None:
                place = rule.origin if isinstance(error, FanError) else f"{rule.origin} at {view.name!r}"
                self.problems.append(f"{place}: {error}")
            elif fill is not None:
                yield view, site, fill
            elif asks_for_neutral(rule.init) and looks_like_norm(view):
                self.declined[site.name] = Skipped(site, _NOT_KNOWN)

    def _reach(self) -> Iterator[Reach]:
        """How much of the model the rules of each scheme are for."""
        learning = [site for site in self.known if site.kind == "parameter" and site.numel and not site.frozen]
        elements = sum(site.numel for site in learning)
        for scheme in dict.fromkeys(rule.scheme for rule in self.rules if rule.scheme):
            reached = [
                site.numel
                for site in learning
                if any(write.step.rule.scheme == scheme for write in self.writes.get(site.name, ()))
            ]
            yield Reach(scheme, (len(reached), len(learning)), (sum(reached), elements))

    def _with_uninitialized(self, account: LoadReport) -> LoadReport:
        """The account with what is missing and gets no values from another rule."""
        names = {view.name for site in self.known if site.name in self.writes for view in site.views}
        return replace(account, uninitialized=tuple(name for name in account.missing if name not in names))

    def _can_be_drawn(self, rule: Rule, view: Site, site: Site) -> bool:
        """Whether a fill can be written to a site; one that takes none is skipped, or a problem."""
        if view.state in ("integer", "quantized", "sparse") or not view.numel:
            self.skipped[site.name] = Skipped(site, view.why)
        elif view.state != "ready":
            self.problems.append(f"{rule.origin} matches {view.name!r}, which {view.why}")
        else:
            return True
        return False


def _padded(rule: Rule, view: Site, fill: Fill) -> Fill:
    """The fill with the padding row zero, unless the rule says otherwise or takes the tensor as it is."""
    if view.zero_row is None or not rule.padding or is_verbatim(rule.init):
        return fill
    return Padded(fill, view.zero_row)


def _fits(rule: Rule, view: Site) -> bool:
    """Whether a tensor of this shape can be given what a rule has for it, were it of a dtype that holds all of it."""
    try:
        rule.init.resolve(replace(view, dtype=torch.float64))
    except ValueError:
        return False
    return True


def _in_turn(steps: Iterable[Step]) -> tuple[Step, ...]:
    return tuple(sorted(steps, key=lambda step: step.turn))


def _final(writes: list[_Write]) -> Step:
    last = writes[-1]
    step = last.step
    beaten = dict.fromkeys(write.step.rule for write in writes[:-1] if write.step.rule is not step.rule)
    notes = (
        *_norm_notes(step),
        *fan_notes(step),
        *([FROZEN] if step.site.frozen else []),
        *([UNKNOWN] if asks_what_follows(step.rule.init) and not last.view.activation else []),
    )
    return replace(step, over=tuple(beaten), notes=notes) if beaten or notes else step


_NOT_KNOWN = (
    "it is called a norm, and at which value it would do nothing could not be found; give it a rule of its own, such as"
    ' type = "Constant" with val = 1, or val = 0 if it computes 1 + weight'
)


def _norm_notes(step: Step) -> tuple[str, ...]:
    """What a reader should know of a norm: that it starts off its neutral value."""
    site, fill = step.site, step.fill
    off = site.neutral is not None and isinstance(fill, Constant) and fill.val not in (site.neutral, 0.0)
    return (neutrality(site),) if off else ()


def fan_notes(step: Step) -> tuple[str, ...]:
    """What a reader should know of the fans: the two ways to count connections differ here."""
    convention = getattr(step.rule.init, "fans", None)
    if convention is None or len(step.site.shape) < 2:
        return ()
    torch, true = step.site.fans("torch"), step.site.fans("true")
    if torch == true:
        return ()
    text = "fans by torch's count {:g} in, {:g} out; true {:g} in, {:g} out; used: {}"
    return (text.format(*torch, *true, convention),)


def _unlocked(writes: Iterable[list[_Write]]) -> Iterator[str]:
    """The sites that one rule loads from a checkpoint and another one writes after it, a text for each two rules."""
    found: dict[tuple[str, str], tuple[Rule, list[str]]] = {}
    for several in writes:
        last = several[-1].step.rule
        for write in several[:-1]:
            if write.step.fill.locked and write.step.rule is not last:
                found.setdefault((write.step.rule.origin, last.origin), (last, []))[1].append(write.step.site.name)
                break
    for (first, later), (rule, names) in found.items():
        them = "it" if len(names) == 1 else "them"
        yield (
            f"{first} loads {count(len(names), 'site')}, and {later} ({rule}) would write over {them}: {some(names)}."
            f" Put {first} last, exclude {them} from {later}, or say lock = false in {first}"
        )


def _disagreement(writes: list[_Write]) -> str | None:
    """A tied tensor that gets different values through the different modules that hold it."""
    last = {write.view.name: write.step for write in writes}
    fills = {step.fill: (name, step) for name, step in reversed(last.items())}
    if len(fills) < 2:
        return None
    said = " and ".join(f"{step.rule.origin} gives {name!r} {fill}" for fill, (name, step) in reversed(fills.items()))
    names = ", ".join(repr(view.name) for view in writes[0].step.site.views)
    return f"tied weights: {said}, but they are one tensor. Add a rule that matches all of {names}"


def _collisions(written: Sequence[Site]) -> list[str]:
    """Sites that lie in one memory under different shapes, so that each write spoils another."""
    names = {site.name for site in written}
    pairs = {tuple(sorted((site.name, other))) for site in written for other in site.shares if other in names}
    text = "shared memory: {!r} and {!r} are views of one memory, and what is written to one changes the other. "
    return [text.format(*pair) + "Let the rules match one of them" for pair in sorted(pairs)]
