"""Sessions: one call of ``init_weights`` on a whole tree, and the record of who wrote which parameter."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchinit._frozen import changed, collector_paused
from torchinit._text import abbreviate
from torchinit.distributed.consensus import check_start
from torchinit.distributed.own_code import is_tried
from torchinit.distributed.wholes import Exchange, WholeTensors, is_spread
from torchinit.errors import PlanError, RunError
from torchinit.initializers.load_report import LoadReport
from torchinit.initializers.variance_scaling import asks_for_neutral, asks_for_weight, asks_what_follows
from torchinit.knowledge.attention import with_attention
from torchinit.knowledge.exits import with_exits
from torchinit.knowledge.following import with_activations
from torchinit.knowledge.neutral import with_neutral
from torchinit.knowledge.role_rules import with_roles
from torchinit.mmengine.log import dump, log
from torchinit.mmengine.provenance import HeldAtEnd, Kept, Provenance
from torchinit.mmengine.tree import ModuleIndex, Spot, configs_of, explain_unused_layers
from torchinit.model.modules import modules_of, part_ids
from torchinit.model.sandbox import refuse_fakes
from torchinit.model.shards import Shard
from torchinit.model.sites import with_weights
from torchinit.model.traversal import Walk
from torchinit.noise import Global, Keyed, Noise
from torchinit.plans.observers import noise_in_use, observing_runs, run_observers, unobserved
from torchinit.plans.only import refuse_while_built
from torchinit.plans.plan import Plan, Step
from torchinit.plans.planner import make_plan
from torchinit.plans.report import Record, Report, Texts
from torchinit.plans.run import Progress, run
from torchinit.rules.matching import asks_for_attention, asks_for_exits, asks_for_roles
from torchinit.rules.rule import Rule
from torchinit.tracing import Event, line_of_user
from torchinit.tracing.observer import name_of
from torchinit.tracing.recorder import Recorder, TracedTensor
from torchinit.tracing.regions import Snapshot, storage_of
from torchinit.tracing.seeded import Seeded, working_on
from torchinit.tracing.source_lines import frame_of_user
from torchinit.tracing.uninitialized import unstamp, watching

MARK = "_params_init_info"
"""The attribute that MMEngine's initializers look for; modules have it while their session is open, and no longer."""

_OPEN: ContextVar[tuple[Session, ...]] = ContextVar("torchinit_sessions", default=())


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
        self.containers: bool = containers
        self.strict: bool = strict
        self.stats: bool = stats
        self.progress: Progress | None = progress
        # Seen from here on, by everybody, until the session ends.
        self.wholes: WholeTensors | None = WholeTensors(top, exchange) if seed is not None and is_spread(top) else None
        self._modules = modules_of(top)
        self.provenance: Provenance = Provenance(top, self._modules, buffers=buffers)
        self.kept: Kept = Kept(top, self._modules)
        self.warned: dict[str, None] = {}
        self.loads: list[LoadReport] = []
        # Where the tree is part of one that MMEngine itself initializes, the marks and the log are MMEngine's.
        self.host: Any = vars(top).get(MARK)
        self._recorder: _ForeignCode | None = None
        self._index: ModuleIndex | None = None
        self.walked: tuple[list[int], Walk] | None = None
        self._labels: list[str] = []
        self._collects = True

    def check_memory(self, init_cfg: Any = None) -> None:
        """Raise RunError for parameters on the meta device, unless code is only looked at, which needs no memory.

        An ``init_cfg`` that is given, and not the modules' own, may be for those that have memory.
        """
        refuse_fakes()
        if not any(parameter.is_meta for parameter in self.provenance.marks):
            return
        named = list(self.top.named_parameters())
        meta = [name for name, parameter in named if parameter.is_meta]
        is_all = len(meta) == len(named)
        is_looked_at = is_tried() or any(not isinstance(each, (_ForeignCode, WholeTensors)) for each in run_observers())
        if not meta or is_looked_at or not (is_all or init_cfg is None):
            return
        refuse_while_built("init_weights")
        move = "" if is_all else "move all of it there, model.to('meta'), and "
        call = "materialize(model, " if init_cfg is None else "mmengine.materialize(module, init_cfg, "
        raise RunError(
            f"{abbreviate(meta, 3)} of {type(self.top).__name__}: on the meta device, where init_weights has nothing to"
            f" write to; {move}call torchinit.{call}device=..., seed=...), which carries it out"
        )

    @contextmanager
    def opened(self) -> Iterator[Session]:
        """Let the modules of the tree be known as this session's; nothing is left on them."""
        token = _OPEN.set((*_OPEN.get(), self))
        marked = self._modules if self.host is None else []
        try:
            self.check_memory()
            for module in marked:
                module.__dict__[MARK] = self.provenance.marks
            # Other people's code and checkpoints have the collector as it was.
            with collector_paused() as self._collects, self.collecting() if self.progress else nullcontext():
                yield self
            self.kept.check(self.provenance.written())
        finally:
            for module in marked:
                module.__dict__.pop(MARK, None)
            _OPEN.reset(token)

    @contextmanager
    def asked(self, *, seed: int | None, **options: Any) -> Iterator[None]:
        """Set the options of a call within the session, while it lasts; a seed is that of its rules."""
        before = {name: getattr(self, name) for name in ("noise", *options)}
        vars(self).update(options, noise=self.noise if seed is None else Keyed(seed))
        try:
            yield
        finally:
            vars(self).update(before)

    # --- rules ---------------------------------------------------------------------------------------------

    def prepare(
        self,
        module: nn.Module,
        rules: Sequence[Rule],
        *,
        through: bool = False,
        above: nn.Module | None = None,
        records: bool = True,
    ) -> Callable[[], Report]:
        """Plan rules on a module and all below it, and return a function that carries the plan out.

        In rules names are counted from the module, in the report from the one ``above``. A tensor that its module
        computes is drawn and lost, as in MMEngine, unless ``through``: then what it is computed from gets the values.
        Without ``records`` the report says nothing of the sites that were written. Raises PlanError with what is
        wrong, in a strict session also for a rule that matches nothing.
        """
        with unobserved(watched=bool(self._labels)):
            index = self._current_index(module)
            prefix, above_prefix = (index.prefix(each) for each in (module, above or module))
            sites, by_name = index.grouped(module, None if through else rules)
            if asks_for_roles(rules):
                sites = with_roles(module, with_neutral(module, sites))
            elif any(asks_for_neutral(rule.init) for rule in rules):
                sites = with_neutral(module, sites)
            if asks_for_exits(rules):
                sites = with_exits(module, sites)
            if asks_for_attention(rules):
                sites = with_attention(module, sites)
            if any(asks_what_follows(rule.init) for rule in rules):
                sites = with_activations(module, sites)
            if any(asks_for_weight(rule.init) for rule in rules):
                sites = with_weights(sites)
            is_read = records or self.progress is not None or bool(run_observers())
            why = self.kept.why
            holders = ((name, key) for name, each in by_name.items() for key in each[0].holders) if why else ()
            leave = {name: why[key] for name, key in holders if key in why}
            plan = make_plan(sites, rules, ties="last", notes=is_read, leave=leave).check(strict=self.strict)
            texts = list(explain_unused_layers(index, module, rules))
            if self.strict and texts and not plan.steps:
                raise PlanError(texts[0])
            self.warn(*texts)
            above_all = prefix.removeprefix(above_prefix) if records else None
            return partial(self._carry_out, plan, by_name, above_all, index.keys)

    def _carry_out(
        self, plan: Plan, groups: Mapping[str, list[Spot]], prefix: str | None, saved: Collection[int]
    ) -> Report:
        """Write what has been planned, and record it; ``groups`` are the tensors of each site."""
        self.loads += plan.loads
        self.warn(*(account.headline() for account in plan.loads if account.found < account.wanted))
        self.warn(*(f"{rule}: {hint}" for rule, hint in plan.unused))
        with unobserved(watched=bool(self._labels)):
            shards = {step.site.name: groups[step.site.name][0].shards for step in plan.steps}
            records = prefix is not None
            report = run(plan, shards, self.noise, stats=self.stats, records=records, progress=self.progress)
        if self._recorder is not None:  # writing computed weights may give those behind them other memory
            computed = [spot for group in groups.values() for spot in group if spot.computed]
            for key in {key for spot in computed for key in spot.holders} & self.provenance.known.keys():
                self._recorder.index.follow(self.provenance.known[key])
        texts, recorded = Texts(), list[Record]()
        for number, step in enumerate(plan.steps):
            holders = self._claim(step, texts.of(step.rule), groups[step.site.name], saved)
            if prefix is not None:
                recorded.append(self._named(report.records[number], holders, prefix))
        skipped = tuple((f"{prefix}{name}", why) for name, why in report.skipped)
        return report if prefix is None else replace(report, records=tuple(recorded), skipped=skipped)

    def _claim(self, step: Step, rule: str, group: Sequence[Spot], saved: Collection[int]) -> frozenset[int]:
        """Note who wrote a site, and return the tensors that hold it, by id."""
        holders = group[0].holders if len(group) == 1 else frozenset().union(*(spot.holders for spot in group))
        for key in holders:
            self.provenance.claim(key, rule, step.fill)
        if holders.isdisjoint(saved):
            self.warn(
                f"{group[0].first} is neither a parameter nor a buffer: what {step.rule} draws for it is not"
                " saved, and lost where its module computes it anew"
            )
        return holders

    def _named(self, record: Record, holders: frozenset[int], prefix: str) -> Record:
        """The record under the names that the report has, with what came before."""
        before = [text for key in holders for text in self.provenance.over(key)]
        return changed(
            record,
            name=f"{prefix}{record.name}",
            aliases=tuple(f"{prefix}{alias}" for alias in record.aliases),
            over=tuple(dict.fromkeys([*before, *record.over])),
        )

    def _current_index(self, module: nn.Module) -> ModuleIndex:
        """Return the index that a module is in, a new one where other tensors are in place by now."""
        if self._index is None or not self._index.is_current(module):
            index = ModuleIndex(self.top, self.walk())
            self._index = index if module in index else ModuleIndex(module, Walk.over(module))
        return self._index

    def walk(self) -> Walk:
        """A walk over the tree as it is: the last one if nothing has been put into it, or given other memory, since."""
        parts = part_ids(self.top)
        if self.walked is None or self.walked[0] != parts:
            self.walked = parts, Walk.over(self.top)
        return self.walked[1]

    # --- other people's code -------------------------------------------------------------------------------

    def collecting(self) -> AbstractContextManager[object]:
        """The collector of cycles as it was before the session."""
        return collector_paused(not self._collects)

    @contextmanager
    def foreign(self, module: nn.Module, text: str = "") -> Iterator[None]:
        """Run other people's code; what it writes goes to the module's ``init_weights``, or to ``text``.

        With a seed every number that it draws belongs to a name, as under :func:`torchinit.seeded`.
        """
        self._labels.append(text or f"Initialized by user-defined `init_weights` in {type(module).__name__} ")
        try:
            with ExitStack() as stack, self.collecting():
                if len(self._labels) == 1:
                    if self.wholes is None:  # which have memory only while they are worked on
                        stack.callback(stack.enter_context(watching()), self.top)
                    # Made once, since what comes or moves later is followed as it does.
                    recorder = self._recorder = self._recorder or _ForeignCode.of(self)
                    stack.enter_context(recorder.observer)
                    if self.seed is not None:  # which the code may seed, too
                        stack.enter_context(torch.random.fork_rng(devices=[]))
                    if self.wholes is not None:
                        stack.enter_context(self.wholes.working(recorder.index))
                    stack.enter_context(observing_runs(recorder))
                stack.enter_context(working_on(module))
                yield
        finally:
            self._labels.pop()

    def saw_write(self, tensor: Tensor, line: str, operation: str) -> None:
        """Note a write by foreign code."""
        self.provenance.observed(id(tensor), self._labels[-1], line, operation)

    def saw_registration(self, value: object) -> None:
        """Note that something has been put into a module."""
        self._index = self.walked = None
        if isinstance(value, nn.Parameter) and id(value) not in self.provenance.known:
            self.provenance.add(value)

    # --- the end -------------------------------------------------------------------------------------------

    def warn(self, *texts: str) -> None:
        """Log warnings, each once."""
        for text in texts:
            if text not in self.warned:
                self.warned[text] = None
                log(logging.WARNING, "%s", text)

    def finish(self, unreached: Sequence[str], remedy: str = "init_weights(containers=True) does") -> HeldAtEnd:
        """Log how each parameter was set, and warn of those that nobody set and of modules ``unreached``."""
        held = self.provenance.held()
        self.warn(
            *(
                f"init_weights of {type(self.top).__name__} does not reach {name}, which stands below a plain"
                f" container; {remedy}"
                for name in unreached
            ),
            *self.provenance.findings(held),
        )
        unstamp(tensor for _, tensor in (*held.parameters, *held.buffers))
        if self.host is None:
            dump((name, p, self.provenance.info(p)) for name, p in held.parameters)
        # MMEngine finds out who wrote by the mean, which is entered with it.
        for parameter, text in self.provenance.written():
            if parameter in (self.host or ()):
                self.host[parameter].update(init_info=text, tmp_mean_value=parameter.data.mean().cpu())
        return held

    def report(self, held: HeldAtEnd | None = None, *, stats: bool = False) -> Report:
        """Return what happened, a record a parameter; ``held`` is what :meth:`finish` has found just before."""
        held, noise = held or self.provenance.held(), str(noise_in_use(self.noise))
        report = self.provenance.report(held, stats=stats, unused=tuple(self.warned), noise=noise)
        return self.kept.noted(report.updated(loads=tuple(self.loads)))


class _ForeignCode(Recorder):
    """Tells a session what foreign code writes. Locks mean nothing here: MMEngine lets it write after a checkpoint."""

    _session: Session

    @staticmethod
    def of(session: Session) -> _ForeignCode:
        recorder = _ForeignCode(session.top) if session.seed is None else _SeededForeignCode(session.top, session.seed)
        recorder._session = session
        recorder.observer.before_write = lambda _: None
        recorder.observer.is_brief = session.seed is None
        recorder.begin(frame_of_user(), session.walk)
        return recorder

    def _snapshots(self, site: TracedTensor) -> list[Snapshot]:
        return []  # nobody looks for writes that were not seen

    def _on_write(self, event: Event) -> None:
        if event.operation == "data =" or name_of(event.operation) == "set_":
            self._session.walked = None  # a tensor gets other memory
        if event.operation == "data =" and storage_of(event.args[1]) in self._moved:
            return  # a module moves its tensors
        tensors, line, what = self.sites[event.key].tensors, line_of_user(), event.what
        for tensor in tensors:  # several where the site is computed from them
            if len(tensors) == 1 or storage_of(tensor) == storage_of(event.target):
                self._session.saw_write(tensor, line, what)

    def before_run(self, step: Step, parts: Sequence[Shard]) -> None:
        pass  # a recipe that foreign code runs is of no concern before it has written

    def written(self, step: Step, parts: Sequence[Shard]) -> None:
        for tensor in [tensor for site in self._lying_in(parts) for tensor in site.tensors]:
            self._session.provenance.claim(id(tensor), str(step.rule), step.fill)

    def _on_registration(self, module: nn.Module, name: str, value: object) -> None:
        super()._on_registration(module, name, value)
        self._session.saw_registration(value)


class _SeededForeignCode(_ForeignCode, Seeded):
    """Draws in its place, too: the same values for any order of modules.

    Draws are counted by name for as long as it lives, so that code that draws for a site after other code gets others.
    """


def current(module: nn.Module) -> Session | None:
    """The session that the module is part of, if one is open."""
    marks = module.__dict__.get(MARK)
    sessions = () if marks is None else reversed(_OPEN.get())
    return next((each for each in sessions if each.provenance.marks is marks or each.host is marks), None)


@contextmanager
def session_of(top: nn.Module, seed: int | None, **options: Any) -> Iterator[tuple[Session, bool]]:
    """The session that a module is part of, or a new one with these options; and whether it is new."""
    session = current(top)
    if session is not None:
        yield session, False
        return
    is_compared = "exchange" in options  # whoever brings one has compared all that ranks are told
    with nullcontext() if is_compared else check_start(top, seed, "init_weights", partial(configs_of, top)):
        session = Session(top, seed, **options)
        with session.wholes or nullcontext(), session.opened():
            yield session, True
