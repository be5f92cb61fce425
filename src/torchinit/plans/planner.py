"""Planner: matches rules with the sites of a model and makes a plan of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, Final, Literal, TypeAlias

import torch

import torchinit._limits as limits
from torchinit._frozen import collector_paused, made
from torchinit._text import count
from torchinit.errors import FanError
from torchinit.initializers.base import Fill
from torchinit.initializers.composed import Padded
from torchinit.initializers.load_report import LoadReport
from torchinit.initializers.source import Resolution, is_verbatim, looks_at, resolve_all
from torchinit.initializers.variance_scaling import asks_for_neutral
from torchinit.knowledge.neutral import looks_like_norm
from torchinit.model.sites import KnownSites, Site
from torchinit.plans.notes import Draft, Notes, StepNotes, collisions, disagreement, guessed, unlocked
from torchinit.plans.plan import FROZEN, Plan, Reach, Skipped, Step
from torchinit.rules.matching import FACTS, Matcher, explain_unmatched, is_ours, roles_asked
from torchinit.rules.rule import Rule

Ties: TypeAlias = Literal["agree", "last"]
_Views: TypeAlias = list[tuple[Site, Site]]
"""Sites as one of their modules sees them, each with the site itself."""

_NEITHER: Final[tuple[Fill | None, StepNotes]] = (None, None)
_NOTHING: Final = Resolution({})
_OF_KIND: Final = frozenset((*FACTS, "leaf", "owner", "layout"))

_NOT_KNOWN = (
    "it is called a norm, and at which value it would do nothing could not be found; give it a rule of its own, such as"
    ' type = "Constant" with val = 1, or val = 0 if it computes 1 + weight'
)


def make_plan(
    sites: Iterable[Site],
    rules: Sequence[Rule],
    *,
    ties: Ties = "agree",
    trainable: bool | None = None,
    notes: bool = True,
    leave: Mapping[str, str] | None = None,
) -> Plan:
    """The plan of rules on sites. Nothing is raised: what is wrong is in ``plan.problems``.

    Writes are ordered rule by rule, and within a rule as ``Module.apply`` visits the modules, which is the
    order in which MMEngine and hand-written code draw. Rules that give a tied tensor different values
    through different modules are a problem, unless ``ties`` lets the last write win. ``trainable`` leaves parameters
    alone that do not learn; None: rules of schemes do. Sites to ``leave`` are not written, each for the reason that is
    given with its name. Without ``notes`` the steps have none.

    >>> from torchinit.initializers.elementwise import Constant
    >>> plan = make_plan([Site("a.weight", (2, 2))], [Rule("a.*", Constant(1.0))])
    >>> plan["a.weight"].fill
    Constant(val=1.0)
    """
    known = sites if isinstance(sites, KnownSites) else KnownSites(sites)
    named = tuple(replace(rule, origin=rule.origin or f"rules[{n}]") for n, rule in enumerate(rules))
    skipped = {site.name: Skipped(site, FROZEN) for site in (known if trainable else ()) if site.frozen}
    problems = []
    if trainable and all(site.frozen for site in known if site.kind == "parameter"):
        all_frozen = f"all {len(skipped)} are (requires_grad is false)"
        problems.append(f"trainable=True leaves frozen parameters alone, and {all_frozen}")
    if leave:
        skipped |= {site.name: Skipped(site, leave[site.name]) for site in known if site.name in leave}
    # Checkpoints may be read for a long time, and their readers may leave cycles behind.
    with nullcontext() if any(is_verbatim(rule.init) for rule in named) else collector_paused():
        found = Notes() if notes else None
        return _Planner(known, named, frozenset(skipped), trainable is None, skipped, problems, found).plan(ties)


_aliases: Final = attrgetter("aliases")


@dataclass(slots=True)
class _Planner:
    """One pass over rules and sites; its findings are gathered here until the plan is whole."""

    known: KnownSites
    rules: tuple[Rule, ...]
    left: frozenset[str]
    spares: bool
    skipped: dict[str, Skipped]
    problems: list[str]
    notes: Notes | None
    writes: dict[str, Draft] = field(default_factory=dict)  # the last one of each site
    beaten: dict[str, list[Draft]] = field(default_factory=dict)  # those before it
    declined: dict[str, Skipped] = field(default_factory=dict)
    loads: list[Resolution] = field(default_factory=list)
    drafts: Sequence[Draft] = ()  # the last ones in their order
    turn: int = 0
    views: _Views = field(default_factory=list)
    kinds: Sequence[int] = ()  # of each view
    usual: dict[int, bool] = field(default_factory=dict)  # of each kind, whether a fill can be written to it

    def plan(self, ties: Ties) -> Plan:
        # Each site as each of its modules sees it, in the order of their turns.
        self.views, kinds = [(site, site) for site in self.known], self.known.kinds
        if not kinds or any(map(_aliases, self.known)):
            kinds = ()
            self.views = [(view, site) for site in self.known for view in (site.views if site.aliases else (site,))]
            self.views.sort(key=lambda pair: pair[0].position)
        matcher = Matcher([view for view, _ in self.views], kinds)
        self.kinds = matcher.kinds
        self.usual = {kind: _is_usual(self.views[numbers[0]][0]) for kind, numbers in matcher.members.items()}
        unused = [rule for rule in self.rules if not self._apply(rule, matcher) and not rule.optional]
        unused = self._without_roles(unused)
        sharing = [site for site in self.known if site.shares]
        several = [[*self.beaten[name], self.writes[name]] for name in self.writes if name in self.beaten]
        if (
            self.spares
            and self.skipped
            and not self.writes
            and all(skip.why == FROZEN for skip in self.skipped.values())
        ):
            them = count(len(self.skipped), "parameter")
            self.problems.append(f"schemes leave frozen ones alone, and all of {them} are; trainable=False writes them")
        if ties == "agree":
            self.problems += [text for writes in several if (text := disagreement(writes))]
            self.problems += collisions([site for site in sharing if site.name in self.writes])
        self.problems += unlocked(several)
        for site in sharing:
            written = [name for name in site.shares if name in self.writes]
            if written and site.name not in self.writes:
                self.skipped[site.name] = Skipped(site, f"lies in the memory of {written[0]!r}, which is written")
        writes, skipped = self.writes, self.skipped
        self.drafts = sorted(writes.values(), key=attrgetter("turn")) if several else [*writes.values()]
        left = [site for site in self.known if site.name not in writes and site.name not in skipped]
        plan = Plan(
            overwritten=tuple(
                sorted((write.step() for those in several for write in those[:-1]), key=attrgetter("turn"))
            ),
            untouched=tuple(left),
            declined=tuple(self.declined[site.name] for site in left if site.name in self.declined),
            skipped=tuple(skip for name, skip in skipped.items() if name not in writes),
            unused=tuple(self._explained(unused)),
            problems=tuple(self.problems),
            loads=tuple(self._accounts()),
            reach=tuple(self._reach()),
        )
        if all(is_ours(rule.init) for rule in self.rules):
            return plan.postponed("steps", self)
        return plan.updated(steps=self())  # who knows when somebody else's initializer changes

    def _without_roles(self, unused: Sequence[Rule]) -> list[Rule]:
        """The rules in vain but for those of schemes by roles, which are a problem: the scheme is for other models."""
        missing: dict[str, list[str]] = defaultdict(list)
        for rule in unused:
            if rule.scheme and (roles := " or ".join(roles_asked(rule.where))):
                missing[rule.scheme].append(roles)
        if not missing:
            return [*unused]
        known = {site.role for site in self.known if site.role and site.kind == "parameter"}
        have = ", ".join(sorted(role for role in known if not role.endswith(".bias"))) or "none"
        for scheme, needed in missing.items():
            self.problems.append(
                f"the scheme {scheme!r} needs parameters of {', of '.join(dict.fromkeys(needed))}, and this model has"
                f" none such; its roles are {have}. Choose another scheme, say which they are"
                " (torchinit.knowledge.register_roles), or let them be missing:"
                f' {{type = "scheme", name = "{scheme}", optional = true}}'
            )
        return [rule for rule in unused if not (rule.scheme and any(roles_asked(rule.where)))]

    def _explained(self, unused: Sequence[Rule]) -> Iterator[tuple[Rule, str]]:
        """The rules that match nothing, each with why; of many only the first ones with near names, which take long."""
        as_known = Matcher([view for site in self.known for view in site.views] if unused else ())
        for number, rule in enumerate(unused):
            near = explain_unmatched(rule, self.known, as_known) if number < limits.HINTS else ""
            yield rule, f"{rule.origin} {near or f'{rule.where} matches none'}"

    def _apply(self, rule: Rule, matcher: Matcher) -> bool:
        """Add the writes of one rule; return whether it matched anything."""
        # Rule by rule, not site by site: on torch's generator the order of writes is the order of draws, and MMEngine
        # and hand-written code go over the modules once for each entry. A site is met once for each module that holds
        # it, since ``Module.apply`` visits a shared module once for each parent, and so draws as often. But two names
        # that *one* parent has for a module are one visit: they share a position, and the first of them counts.
        # Frozen sites drop out after the match, so that their rule is not called unused.
        views, matched = self.views, matcher.matched(rule)
        if len(views) > len(self.known):
            first: dict[tuple[str, int], int] = {}
            for number in matched:
                view, site = views[number]
                first.setdefault((site.name, view.position), number)
            matched = [*first.values()]
        spares = self.spares and bool(rule.scheme) and not is_verbatim(rule.init)
        turns = matched
        if spares or self.left:
            sites = [(number, views[number][1]) for number in matched]
            frozen = [site for _, site in sites if spares and site.frozen and site.name not in self.left]
            self.skipped |= {site.name: Skipped(site, FROZEN) for site in frozen}
            turns = [number for number, site in sites if not (site.name in self.left or (spares and site.frozen))]
        ready, usual, kinds = turns, self.usual, self.kinds
        if not is_verbatim(rule.init):
            ready = [each for each in turns if usual[kinds[each]] or self._can_be_drawn(rule, *views[each])]
        before, why = (self.turn, len(self.problems)), ""
        if ready:
            why = self._resolve(rule, ready)
        if rule.fitting and turns and before == (self.turn, len(self.problems)):
            none = f"{rule.origin}: {rule.init} fits none of {count(len(turns), 'weight')}"
            self.problems.append(": ".join(filter(None, (none, why))))
        return bool(matched)

    def _resolve(self, rule: Rule, numbers: Sequence[int]) -> str:
        """Add the writes of the views that the rule has a fill for; note why it has none for the others.

        Returns why it does not fit the last that it does not.
        """
        views, kinds, writes, turn, why = self.views, self.kinds, self.writes, self.turn, ""
        of_kind = self._resolved_by_kind(rule, numbers)
        rest = [views[each] for each in numbers if kinds[each] not in of_kind]
        resolution = resolve_all(rule.init, rest, self.known) if rest or not of_kind else _NOTHING
        if resolution.account is not None:
            self.loads.append(resolution)
        for number in numbers:
            (view, site), kind = views[number], kinds[number]
            fill, notes = of_kind.get(kind, _NEITHER)
            if fill is None:
                error, fill = resolution.errors.get(view.name), resolution.fills.get(view.name)
                if error is not None and rule.fitting and not _fits(rule, view):
                    self.declined[site.name], why = Skipped(site, f"{rule.init} does not fit its shape"), str(error)
                    continue
                if problem := _problem(rule, view, error):
                    self.problems.append(problem)
                    continue
                if fill is None:
                    if asks_for_neutral(rule.init) and looks_like_norm(view):
                        self.declined[site.name] = Skipped(site, _NOT_KNOWN)
                    continue
                fill = _padded(rule, view, fill)
            name = site.name
            if name in writes:
                self.beaten.setdefault(name, []).append(writes[name])
            writes[name] = made(Draft, (view, site, fill, rule, turn, kind, notes))
            turn += 1
        self.turn = turn
        return why

    def _resolved_by_kind(self, rule: Rule, numbers: Sequence[int]) -> dict[int, tuple[Fill | None, StepNotes]]:
        """The fill of each kind among these views, where the initializer looks at nothing else, and the notes of both.

        A kind that it has no fill for, or a problem with, is left out: the text holds a name.
        """
        looked = looks_at(rule.init)
        if looked is None or not _OF_KIND.issuperset(looked):
            return {}
        first = {self.kinds[number]: self.views[number] for number in reversed(numbers)}
        fills = resolve_all(rule.init, [*first.values()], self.known).fills
        found: dict[int, tuple[Fill | None, StepNotes]] = {}
        for kind, (view, site) in first.items():
            if view.name in fills and not _problem(rule, view, None):
                fill = _padded(rule, view, fills[view.name])
                found[kind] = fill, self.notes.of_kind(site, fill, rule, kind) if self.notes and view is site else None
        return found

    @collector_paused()
    def __call__(self) -> tuple[Step, ...]:
        """The steps of the last writes, with the rules that they beat and the notes: the later rule wins."""
        steps = []
        for view, site, fill, rule, turn, kind, notes in self.drafts:
            if notes is None:
                notes = self.notes.of(site, fill, rule, view, kind) if self.notes else ()  # noqa: PLW2901
            over: tuple[Rule, ...] = ()
            if site.name in self.beaten:
                beaten = {id(write.rule): write.rule for write in self.beaten[site.name] if write.rule is not rule}
                over = tuple(dict.fromkeys(beaten.values()))
            steps.append(Step(site, fill, rule, over, turn, notes))
        return tuple(steps)

    def _reach(self) -> Iterator[Reach]:
        """The share of the model that the rules of each scheme are for."""
        # Beaten rules have reached, too: the question is whether the scheme is for this model. ``Rule.scheme`` takes no
        # part in what a rule equals, so that a scheme's rules and the same rules written out make equal plans.
        scoring = dict.fromkeys(rule.scheme for rule in self.rules if rule.scheme and " within " not in rule.scheme)
        if not scoring:
            return
        known = (site for site in self.known if site.name not in self.left)
        learning = [site for site in known if site.kind == "parameter" and site.numel and not site.frozen]
        elements = sum(site.numel for site in learning)
        for scheme in scoring:
            rules = {id(rule) for rule in self.rules if rule.scheme == scheme}
            last = {name for name, write in self.writes.items() if id(write.rule) in rules}
            names = last | {name for name, all_ in self.beaten.items() if any(id(each.rule) in rules for each in all_)}
            reached = [site.numel for site in learning if site.name in names]
            yield Reach(scheme, (len(reached), len(learning)), (sum(reached), elements))

    def _accounts(self) -> Iterator[LoadReport]:
        """The accounts, with what is missing and gets no values, and without what another rule takes of the file."""
        if not self.loads:
            return
        written = {view.name for site in self.known if site.name in self.writes for view in site.views}
        used: dict[Hashable, dict[str, int]] = defaultdict(dict)
        for resolution in self.loads:
            for source, sizes in resolution.used.items():
                known = used[source]  # once: a dict in memory is told by all of its tensors, which takes long to hash
                known |= {key: max(size, known.get(key, 0)) for key, size in sizes.items()}
        for resolution in self.loads:
            load, taken = resolution.account or LoadReport(""), dict[str, int]()
            for source in resolution.used:
                taken |= used[source]
            left: dict[str, Any] = {
                name: tuple(key for key in getattr(load, name) if key not in taken)
                for name in ("unexpected", "beside", "spare")
            }
            bare = tuple(name for name in load.missing if name not in written)
            elements = sum(taken.values()), load.file_elements[1]
            yield replace(load, uninitialized=bare, file_elements=elements, **left)

    def _can_be_drawn(self, rule: Rule, view: Site, site: Site) -> bool:
        """Whether a fill can be written to a site; if not it is skipped, or a problem."""
        # Skipped is what no rule could mean: rules match by name, and a counter or an empty tensor lies among the rest.
        # A skipped parameter is still without values (``Plan.without_values``), unless its layer's own numbers give it
        # no elements. A problem is what a rule does mean and cannot have: overlapping, inference and lazy tensors.
        if _is_usual(view):
            return True
        if view.state in ("integer", "quantized", "sparse") or not view.numel:
            self.skipped[site.name] = Skipped(site, view.why)
        else:
            self.problems.append(f"{rule.origin} matches {view.name!r}, which {view.why}")
        return False


def _is_usual(view: Site) -> bool:
    """Whether a fill can be written to a site and its like."""
    return view.state == "ready" and 0 not in view.shape


def _problem(rule: Rule, view: Site, error: ValueError | None) -> str:
    """The reason why a rule cannot be for a view that it matches; empty if it can."""
    if error is not None:
        place = rule.origin if isinstance(error, FanError) else f"{rule.origin} at {view.name!r}"
        return f"{place}: {error}{_instead(rule, str(error))}"
    is_odd = len(view.shape) > 2 and view.layout is None and not rule.scheme
    return f"{rule.origin} at {view.name!r}: {guess}" if is_odd and (guess := guessed(rule.init, view)) else ""


def _padded(rule: Rule, view: Site, fill: Fill) -> Fill:
    """The fill, which leaves the padding row at zero unless it copies what is there or the rule says otherwise."""
    if view.zero_row is None or not rule.padding or is_verbatim(rule.init):
        return fill
    return Padded(fill, view.zero_row)


def _instead(rule: Rule, error: str) -> str:
    """The arguments of a recipe that ask by default for the fact that a site lacks: who gives them asks for none."""
    asking = [name for name, value in rule.arguments.items() if f"there is no {value}:" in error]
    return f". Or give {' and '.join(asking)} of {rule.scheme or 'the recipe'} as a number" if asking else ""


def _fits(rule: Rule, view: Site) -> bool:
    """Whether the rule has values for this shape, in a dtype that holds all of them."""
    try:
        rule.init.resolve(replace(view, dtype=torch.float64))
    except ValueError:
        return False
    return True
