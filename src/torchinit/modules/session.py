"""Sessions: one call of ``init_weights`` on a whole tree, and the record of who wrote which parameter."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from torchinit.core.accounts import Account as Loads
from torchinit.core.planner import make_plan
from torchinit.core.plans import Plan, Rule
from torchinit.core.reports import Report
from torchinit.core.runs import run
from torchinit.core.sites import Site
from torchinit.core.witnesses import unobserved
from torchinit.modules.account import Account
from torchinit.modules.layers import in_vain
from torchinit.modules.log import dump, log
from torchinit.modules.survey import Spot, Survey
from torchinit.noise import Global, Keyed, Noise
from torchinit.tracing import Event, Observer, Watch, line_of_user
from torchinit.tracing.unfilled import unstamp, watching

MARK = "_params_init_info"
"""The attribute that MMEngine's initializers look for; modules have it while their session is open, and no longer."""

_OPEN: ContextVar[tuple[Session, ...]] = ContextVar("torchinit_sessions", default=())


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan that is ready to be carried out, and where the tensors of its sites are held, by site name."""

    plan: Plan
    groups: dict[str, list[Spot]]


class Session:
    """One initialization of the tree below ``top``: its noise, and for each parameter its last writer.

    Writes of torchinit's own are recorded as they are planned; while other people's code runs
    (:meth:`foreign`) an observer tells which parameters it writes.
    """

    def __init__(self, top: nn.Module, seed: int | None = None, *, containers: bool = False) -> None:
        self.top = top
        self.noise: Noise = Global(truncation="inverse_cdf") if seed is None else Keyed(seed)
        self.seed = seed
        self.containers = containers
        self.account = Account(top)
        self.warned: dict[str, None] = {}
        self.loads: list[Loads] = []
        self.host: Any = None
        self._marked: list[nn.Module] = []
        self._watch: Watch | None = None
        self._survey: Survey | None = None
        self._labels: list[str] = []

    # --- whose turn it is ----------------------------------------------------------------------------------

    def mark(self) -> None:
        """Lets the modules of the tree be known as this session's."""
        self.host = vars(self.top).get(MARK)
        self._marked = [] if self.hosted else list(self.top.modules())
        for module in self._marked:
            module.__dict__[MARK] = self.account.marks

    @property
    def hosted(self) -> bool:
        """Whether the tree is part of one that MMEngine itself initializes; then the marks and the log are its own."""
        return self.host is not None

    def unmark(self) -> None:
        """Leaves nothing on the modules."""
        for module in self._marked:
            module.__dict__.pop(MARK, None)

    # --- writing -------------------------------------------------------------------------------------------

    def write(self, module: nn.Module, rules: Sequence[Rule]) -> Report:
        """Carries out rules on a module and all below it; names in them are counted from the module."""
        return self.carry_out(self.prepare(module, rules))

    def prepare(self, module: nn.Module, rules: Sequence[Rule], *, through: bool = False) -> Prepared:
        """The plan of rules on a module and all below it; raises PlanError with what is wrong with it.

        A tensor that its module computes is drawn and lost, as in MMEngine, unless ``through``: then what it
        is computed from gets the values.
        """
        with unobserved(watched=bool(self._labels)):
            return self._prepare(module, rules, through)

    def _prepare(self, module: nn.Module, rules: Sequence[Rule], through: bool) -> Prepared:
        spots = self._spots(module) if through else self._current(module).as_mmengine(module, rules)
        name = self._survey_of(module).name(module)
        prefix = f"{name}." if name else ""
        groups: dict[int, list[Spot]] = defaultdict(list)
        for spot in spots:
            groups[spot.key].append(spot)
        sites = [_site(group, prefix) for group in groups.values()]
        known = {site.name: group for site, group in zip(sites, groups.values(), strict=True)}
        plan = make_plan(sites, rules, ties="last").check()
        for text in () if through else in_vain(self._survey_of(module), module, rules):
            self.warn(text)
        return Prepared(plan, known)

    def carry_out(self, prepared: Prepared) -> Report:
        """Writes what has been prepared, and records it."""
        plan, known = prepared.plan, prepared.groups
        for rule, hint in plan.unused:
            self.warn(f"{rule}: {hint}")
        with unobserved(watched=bool(self._labels)):
            shards = {step.site.name: known[step.site.name][0].shards for step in plan.steps}
            report = run(plan, shards, self.noise, stats=False)
        self._follow(spot for group in known.values() for spot in group if spot.computed)
        for step in plan.steps:
            group = known[step.site.name]
            for key in set().union(*(spot.holders for spot in group)):
                self.account.claim(key, str(step.rule), step.fill)
            if not any(key in self._survey_of(group[0].module).keys for spot in group for key in spot.holders):
                self.warn(
                    f"{group[0].first} is neither a parameter nor a buffer: what {step.rule} draws for it is not"
                    " saved, and lost where its module computes it anew"
                )
        return report

    def _survey_of(self, module: nn.Module) -> Survey:
        if self._survey is None or module not in self._survey:
            survey = Survey(self.top)
            self._survey = survey if module in survey else Survey(module)
        return self._survey

    def _spots(self, module: nn.Module) -> list[Spot]:
        return self._current(module).below(module)

    def _current(self, module: nn.Module) -> Survey:
        """The survey that a module is in, a new one where other tensors are in place by now."""
        spots = self._survey_of(module).below(module)
        if any(getattr(spot.module, spot.site.leaf, None) is not spot.tensor for spot in spots if not spot.computed):
            self._survey = None
        return self._survey_of(module)

    @contextmanager
    def foreign(self, module: nn.Module, text: str = "") -> Iterator[None]:
        """Runs other people's code; what it writes goes to the module's ``init_weights``, or to ``text``."""
        self._labels.append(text or f"Initialized by user-defined `init_weights` in {type(module).__name__} ")
        try:
            with ExitStack() as stack:
                if len(self._labels) == 1:
                    stack.callback(stack.enter_context(watching()), self.top)
                    stack.enter_context(self._observer())
                stack.enter_context(self._own_generator(module))
                yield
        finally:
            self._labels.pop()

    def _observer(self) -> Observer:
        if self._watch is None:  # once: what comes or moves later is added as it does
            self._watch = Watch()
            for key, parameter in self.account.known.items():
                self._watch.add(key, parameter)
        return Observer(self._watch, self._told, self._registered)

    def _follow(self, spots: Iterable[Spot]) -> None:
        """Looks again where the parameters behind computed weights are: writing those may give them other memory."""
        if self._watch is None:
            return
        for key in {key for spot in spots for key in spot.holders} & self.account.known.keys():
            self._watch.add(key, self.account.known[key])

    def _told(self, event: Event) -> None:
        self.account.observed(event.key, self._labels[-1], line_of_user(2), event.what)

    def _registered(self, module: nn.Module, name: str, value: object) -> None:
        self._survey = None
        if isinstance(value, nn.Parameter) and id(value) not in self.account.known:
            self.account.add(value)
            if self._watch is not None:
                self._watch.add(id(value), value)

    @contextmanager
    def _own_generator(self, module: nn.Module) -> Iterator[None]:
        """With a seed, foreign code draws from torch's generator as that seed and the module's name set it."""
        if self.seed is None:
            yield
            return
        survey = self._survey_of(module)
        digest = hashlib.blake2b(f"{self.seed}\0{survey.name(module)}".encode(), digest_size=7).digest()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int.from_bytes(digest, "little"))
            yield

    def warn(self, text: str) -> None:
        """Logs a warning, once."""
        if text not in self.warned:
            self.warned[text] = None
            log(logging.WARNING, "%s", text)

    # --- the end -------------------------------------------------------------------------------------------

    def finish(self, unreached: Sequence[str]) -> None:
        """Logs how each parameter was set, and warns of those that nobody set."""
        for name in unreached:
            self.warn(
                f"init_weights of {type(self.top).__name__} does not reach {name}, which stands below a plain"
                " container; init_weights(containers=True) does"
            )
        for text in self.account.findings():
            self.warn(text)
        unstamp(self.top)
        if self.hosted:
            self._tell_host()
        else:
            dump((name, p, self.account.info(p)) for name, p in self.top.named_parameters())

    def _tell_host(self) -> None:
        """Enters into MMEngine's own record who wrote what, with the mean by which it would find that out."""
        for parameter, text in self.account.written():
            if parameter in self.host:
                self.host[parameter].update(init_info=text, tmp_mean_value=parameter.data.mean().cpu())

    def report(self, *, stats: bool = False) -> Report:
        """What happened, a record a parameter."""
        made = self.account.report(stats=stats, unused=tuple(self.warned), noise=str(self.noise))
        return replace(made, loads=tuple(self.loads))


def _site(group: list[Spot], prefix: str) -> Site:
    """The site of the spots of one tensor, under names that begin at the module."""
    first, *others = (_renamed(spot.site, prefix) for spot in group)
    return replace(first, aliases=tuple(others)) if others else first


def _renamed(site: Site, prefix: str) -> Site:
    if not prefix and not site.aliases:
        return site
    return replace(site, name=site.name.removeprefix(prefix), aliases=())


def current(module: nn.Module) -> Session | None:
    """The session that the module is part of, if one is open."""
    marks = module.__dict__.get(MARK)
    if marks is None:
        return None
    return next(
        (session for session in reversed(_OPEN.get()) if session.account.marks is marks or session.host is marks), None
    )


@contextmanager
def session_of(top: nn.Module, make: Callable[[], Session]) -> Iterator[tuple[Session, bool]]:
    """The session that a module is part of, or a new one; and whether it is new."""
    session = current(top)
    if session is not None:
        yield session, False
        return
    session = make()
    token = _OPEN.set((*_OPEN.get(), session))
    try:
        session.mark()
        yield session, True
    finally:
        session.unmark()
        _OPEN.reset(token)
