"""Sessions: one call of ``init_weights`` on a whole tree, and the record of who wrote which parameter."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
from torch import nn

from torchinit._text import some
from torchinit.distributed.own_code import is_tried
from torchinit.distributed.wholes import Exchange, Wholes, is_spread
from torchinit.errors import PlanError, RunError
from torchinit.initializers.load_report import LoadReport
from torchinit.initializers.variance_scaling import asks_for_neutral, asks_what_follows
from torchinit.knowledge.following import with_activations
from torchinit.knowledge.neutral import with_neutral
from torchinit.mmengine.foreign import Drawing, Watching
from torchinit.mmengine.log import dump, in_vain, log
from torchinit.mmengine.provenance import Provenance
from torchinit.mmengine.tree import ModuleIndex, Spot
from torchinit.model.shards import Shard
from torchinit.model.sites import Site
from torchinit.noise import Global, Keyed, Noise
from torchinit.plans.plan import Plan, Step
from torchinit.plans.planner import make_plan
from torchinit.plans.report import Record, Report
from torchinit.plans.run import Progress, present, run, unobserved, witnesses
from torchinit.rules.rule import Rule
from torchinit.tracing import MemoryIndex
from torchinit.tracing.uninitialized import unstamp, watching

MARK = "_params_init_info"
"""The attribute that MMEngine's initializers look for; modules have it while their session is open, and no longer."""

_OPEN: ContextVar[tuple[Session, ...]] = ContextVar("torchinit_sessions", default=())


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan that is ready to be carried out, and where the tensors of its sites are held, by site name.

    With ``prefix`` in front the names of its sites are those that its report has.
    """

    plan: Plan
    groups: dict[str, list[Spot]]
    prefix: str


class Session:
    """One initialization of the tree below ``top``: its noise, and for each parameter its last writer.

    Writes of torchinit's own are recorded as they are planned; while other people's code runs
    (:meth:`foreign`) an observer tells which parameters it writes.
    """

    def __init__(
        self,
        top: nn.Module,
        seed: int | None = None,
        *,
        containers: bool = False,
        buffers: bool = False,
        strict: bool = False,
        stats: bool = False,
        progress: Progress | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        self.top = top
        self.noise: Noise = Global(truncation="inverse_cdf") if seed is None else Keyed(seed)
        self.seed = seed
        self.containers = containers
        self.strict: bool = strict
        self.stats: bool = stats
        self.progress: Progress | None = progress
        # Seen from here on, by everybody, until the session ends.
        self.wholes: Wholes | None = Wholes(top, exchange) if seed is not None and is_spread(top) else None
        self.provenance: Provenance = Provenance(top, buffers=buffers)
        self.warned: dict[str, None] = {}
        self.loads: list[LoadReport] = []
        self.host: Any = None
        self._marked: list[nn.Module] = []
        self._watching: Watching | Drawing | None = None
        self._index: ModuleIndex | None = None
        self._labels: list[str] = []

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.wholes is not None:
            self.wholes.take_out(failed=kind is not None)

    # --- whose turn it is ----------------------------------------------------------------------------------

    def attach_markers(self) -> None:
        """Let the modules of the tree be known as this session's."""
        self.host = vars(self.top).get(MARK)
        self._marked = [] if self.hosted else list(self.top.modules())
        for module in self._marked:
            module.__dict__[MARK] = self.provenance.marks

    def check_memory(self, init_cfg: Any = None) -> None:
        """Raise RunError for parameters on the meta device, unless code is only looked at, which needs no memory.

        An ``init_cfg`` that is given, and not the modules' own, may be for those that have memory.
        """
        named = list(self.top.named_parameters())
        meta = [name for name, parameter in named if parameter.is_meta]
        is_all = len(meta) == len(named)
        is_looked_at = is_tried() or any(not isinstance(one, (Session, Wholes)) for one in witnesses())
        if not meta or is_looked_at or not (is_all or init_cfg is None):
            return
        whole = "" if is_all else "move all of it there, model.to('meta'), and "
        call = "materialize(model, " if init_cfg is None else "mmengine.materialize(module, init_cfg, "
        raise RunError(
            f"{some(meta, 3)} of {type(self.top).__name__}: on the meta device, where init_weights has nothing to"
            f" write to; {whole}call torchinit.{call}device=..., seed=...), which carries it out"
        )

    @property
    def hosted(self) -> bool:
        """Whether the tree is part of one that MMEngine itself initializes; then the marks and the log are its own."""
        return self.host is not None

    def remove_markers(self) -> None:
        """Leave nothing on the modules."""
        for module in self._marked:
            module.__dict__.pop(MARK, None)

    # --- writing -------------------------------------------------------------------------------------------

    @contextmanager
    def asked(self, *, seed: int | None, strict: bool, stats: bool, progress: Progress | None) -> Iterator[None]:
        """What a call within the session asks for, while it lasts; a seed is that of its rules."""
        before = self.noise, self.strict, self.stats, self.progress
        self.noise = self.noise if seed is None else Keyed(seed)
        self.strict, self.stats, self.progress = strict, stats, progress
        try:
            yield
        finally:
            self.noise, self.strict, self.stats, self.progress = before

    def prepare(
        self, module: nn.Module, rules: Sequence[Rule], *, through: bool = False, above: nn.Module | None = None
    ) -> Prepared:
        """The plan of rules on a module and all below it, in which names are counted from the module.

        In its report they are counted from the one ``above``. A tensor that its module computes is drawn and lost, as
        in MMEngine, unless ``through``: then what it is computed from gets the values. Raises PlanError with what is
        wrong with it, in a strict session also for a rule that matches nothing.
        """
        with unobserved(watched=bool(self._labels)):
            return self._prepare(module, rules, through, above or module)

    def _prepare(self, module: nn.Module, rules: Sequence[Rule], through: bool, above: nn.Module) -> Prepared:
        index = self._current(module)
        spots = index.below(module) if through else index.mmengine_view(module, rules)
        prefix = _as_prefix(index.name(module))
        groups: dict[int, list[Spot]] = defaultdict(list)
        for spot in spots:
            groups[spot.key].append(spot)
        sites = tuple(_site(group, prefix) for group in groups.values())
        known = {site.name: group for site, group in zip(sites, groups.values(), strict=True)}
        if any(asks_for_neutral(rule.init) for rule in rules):
            sites = with_neutral(module, sites)
        if any(asks_what_follows(rule.init) for rule in rules):
            sites = with_activations(module, sites)
        plan = make_plan(sites, rules, ties="last").check(strict=self.strict)
        vain = list(in_vain(index, module, rules))
        if self.strict and vain and not plan.steps:
            raise PlanError(vain[0])
        for text in vain:
            self.warn(text)
        return Prepared(plan, known, prefix.removeprefix(_as_prefix(index.name(above)) if above in index else prefix))

    def carry_out(self, prepared: Prepared) -> Report:
        """Write what has been prepared, and record it."""
        plan, known = prepared.plan, prepared.groups
        self.loads += plan.loads
        for account in plan.loads:
            if account.found < account.wanted:
                self.warn(account.headline())
        for rule, hint in plan.unused:
            self.warn(f"{rule}: {hint}")
        with unobserved(watched=bool(self._labels)):
            shards = {step.site.name: known[step.site.name][0].shards for step in plan.steps}
            report = run(plan, shards, self.noise, stats=self.stats, progress=self.progress)
        self._follow(spot for group in known.values() for spot in group if spot.computed)
        records = [
            self._recorded(step, record, prepared) for step, record in zip(plan.steps, report.records, strict=True)
        ]
        skipped = tuple((f"{prepared.prefix}{name}", why) for name, why in report.skipped)
        return replace(report, records=tuple(records), skipped=skipped)

    def _recorded(self, step: Step, record: Record, prepared: Prepared) -> Record:
        """Note who wrote a site, and say in its record what came before."""
        group = prepared.groups[step.site.name]
        holders = frozenset().union(*(spot.holders for spot in group))
        for key in holders:
            self.provenance.claim(key, record.rule, step.fill)
        if holders.isdisjoint(self._index_of(group[0].module).keys):
            self.warn(
                f"{group[0].first} is neither a parameter nor a buffer: what {step.rule} draws for it is not"
                " saved, and lost where its module computes it anew"
            )
        before = [text for key in holders for text in self.provenance.over(key)]
        return replace(
            record,
            name=f"{prepared.prefix}{record.name}",
            aliases=tuple(f"{prepared.prefix}{alias}" for alias in record.aliases),
            over=tuple(dict.fromkeys([*before, *record.over])),
        )

    def _index_of(self, module: nn.Module) -> ModuleIndex:
        if self._index is None or module not in self._index:
            index = ModuleIndex(self.top)
            self._index = index if module in index else ModuleIndex(module)
        return self._index

    def _current(self, module: nn.Module) -> ModuleIndex:
        """The index that a module is in, a new one where other tensors are in place by now."""
        spots = self._index_of(module).below(module)
        if any(getattr(spot.module, spot.site.leaf, None) is not spot.tensor for spot in spots if not spot.computed):
            self._index = None
        return self._index_of(module)

    @contextmanager
    def foreign(self, module: nn.Module, text: str = "") -> Iterator[None]:
        """Run other people's code; what it writes goes to the module's ``init_weights``, or to ``text``.

        With a seed every number that it draws belongs to a name, as under :func:`torchinit.seeded`.
        """
        self._labels.append(text or f"Initialized by user-defined `init_weights` in {type(module).__name__} ")
        try:
            with ExitStack() as stack:
                if len(self._labels) == 1:
                    if self.wholes is None:  # which have memory only while they are worked on
                        stack.callback(stack.enter_context(watching()), self.top)
                    watched = self._watched()
                    stack.enter_context(watched.observer)
                    if self.seed is not None:  # which the code may seed, too
                        stack.enter_context(torch.random.fork_rng(devices=[]))
                    stack.enter_context(self.working(watched.index))
                    stack.enter_context(present(self))
                yield
        finally:
            self._labels.pop()

    def working(self, index: MemoryIndex) -> AbstractContextManager[None]:
        """Let code work on distributed tensors that stand whole in the model: :meth:`Wholes.working`."""
        return nullcontext() if self.wholes is None else self.wholes.working(index)

    def _watched(self) -> Watching | Drawing:
        """Who watches foreign code; made once, since what comes or moves later is followed as it does."""
        if self._watching is None:
            self._watching = (
                Watching(self.provenance.known, self._wrote, self._registered)
                if self.seed is None
                else Drawing(self.top, self.seed, self._wrote, self._registered)
            )
        return self._watching

    def _follow(self, spots: Iterable[Spot]) -> None:
        """Look again where the parameters behind computed weights are: writing those may give them other memory."""
        if self._watching is None:
            return
        for key in {key for spot in spots for key in spot.holders} & self.provenance.known.keys():
            self._watching.follow(self.provenance.known[key])

    def _wrote(self, key: int, line: str, operation: str) -> None:
        self.provenance.observed(key, self._labels[-1], line, operation)

    def _registered(self, module: nn.Module, name: str, value: object) -> None:
        self._index = None
        if isinstance(value, nn.Parameter) and id(value) not in self.provenance.known:
            self.provenance.add(value)
            if self._watching is not None:
                self._watching.follow(value)

    def announced(self, step: Step, parts: Sequence[Shard]) -> None:
        """Nothing: what a recipe will write that foreign code runs, is of no concern before it has."""

    def written(self, step: Step, parts: Sequence[Shard]) -> None:
        """Note what a recipe has written that foreign code runs."""
        for key in self._watched().lying_in(parts):
            self.provenance.claim(key, str(step.rule), step.fill)

    def warn(self, text: str) -> None:
        """Log a warning, once."""
        if text not in self.warned:
            self.warned[text] = None
            log(logging.WARNING, "%s", text)

    # --- the end -------------------------------------------------------------------------------------------

    def finish(self, unreached: Sequence[str], way: str = "init_weights(containers=True) does") -> None:
        """Log how each parameter was set, and warn of those that nobody set; ``way`` leads to modules unreached."""
        for name in unreached:
            self.warn(
                f"init_weights of {type(self.top).__name__} does not reach {name}, which stands below a plain"
                f" container; {way}"
            )
        for text in self.provenance.findings():
            self.warn(text)
        unstamp(self.top)
        if self.hosted:
            self._tell_host()
        else:
            dump((name, p, self.provenance.info(p)) for name, p in self.top.named_parameters())

    def _tell_host(self) -> None:
        """Enter into MMEngine's own record who wrote what, with the mean by which it would find that out."""
        for parameter, text in self.provenance.written():
            if parameter in self.host:
                self.host[parameter].update(init_info=text, tmp_mean_value=parameter.data.mean().cpu())

    def report(self, *, stats: bool = False) -> Report:
        """What happened, a record a parameter."""
        made = self.provenance.report(stats=stats, unused=tuple(self.warned), noise=str(self.noise))
        return replace(made, loads=tuple(self.loads))


def _as_prefix(name: str) -> str:
    return f"{name}." if name else ""


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
    opened = [] if marks is None else reversed(_OPEN.get())
    return next((one for one in opened if one.provenance.marks is marks or one.host is marks), None)


@contextmanager
def session_of(top: nn.Module, seed: int | None, **options: Any) -> Iterator[tuple[Session, bool]]:
    """The session that a module is part of, or a new one with these options; and whether it is new."""
    session = current(top)
    if session is not None:
        yield session, False
        return
    with Session(top, seed, **options) as session:
        token = _OPEN.set((*_OPEN.get(), session))
        try:
            session.check_memory()
            session.attach_markers()
            yield session, True
        finally:
            session.remove_markers()
            _OPEN.reset(token)
