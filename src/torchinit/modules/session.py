"""Sessions: one call of ``init_weights`` on a whole tree, and the record of who wrote which parameter."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from torchinit.core.fills import Fill
from torchinit.core.measures import measure
from torchinit.core.planner import make_plan
from torchinit.core.plans import Plan, Rule
from torchinit.core.reports import Record, Report
from torchinit.core.runs import run
from torchinit.core.sites import Site
from torchinit.modules.errors import InitCfgAssertionError
from torchinit.modules.log import dump, log
from torchinit.modules.survey import Spot, Survey
from torchinit.noise import Global, Keyed, Noise
from torchinit.tracing import Observer, Watch, is_unfilled

MARK = "_params_init_info"
"""The attribute that MMEngine's initializers look for; modules have it while their session is open, and no longer."""

_OPEN: ContextVar[tuple[Session, ...]] = ContextVar("torchinit_sessions", default=())


@final
class _Mark(MutableMapping[str, Any]):
    """What MMEngine's own ``update_init_info`` reads and writes of a parameter, answered by what has been seen.

    It compares ``tmp_mean_value`` with the mean as it is, and sets ``init_info`` where they differ.
    """

    def __init__(self, session: Session, parameter: nn.Parameter) -> None:
        self.session = session
        self.parameter = parameter

    def __getitem__(self, key: str) -> Any:
        if key == "init_info":
            return self.session.info(self.parameter)
        if key == "tmp_mean_value":
            return None if id(self.parameter) in self.session.unclaimed else self.parameter.data.mean().cpu()
        raise KeyError(key)

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "init_info":
            self.session.claim(id(self.parameter), value)

    def __delitem__(self, key: str) -> None:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(("init_info", "tmp_mean_value"))

    def __len__(self) -> int:
        return 2


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
        self.writers: dict[int, str] = {}
        self.fills: dict[int, Fill | None] = {}
        self.beaten: dict[int, list[str]] = defaultdict(list)
        self.unclaimed: set[int] = set()
        self.warned: dict[str, None] = {}
        self.marks: dict[nn.Parameter, _Mark] = {}
        self.host: Any = None
        self._marked: list[nn.Module] = []
        self._known = {id(parameter): parameter for parameter in top.parameters()}
        self._begun = frozenset(self._known)
        self._watch = Watch()
        self._survey: Survey | None = None
        self._labels: list[str] = []

    # --- whose turn it is ----------------------------------------------------------------------------------

    def mark(self) -> None:
        """Lets the modules of the tree be known as this session's."""
        for parameter in self._known.values():
            self.marks[parameter] = _Mark(self, parameter)
        self.host = vars(self.top).get(MARK)
        self._marked = [] if self.hosted else list(self.top.modules())
        for module in self._marked:
            module.__dict__[MARK] = self.marks

    @property
    def hosted(self) -> bool:
        """Whether the tree is part of one that MMEngine itself initializes; then the marks and the log are its own."""
        return self.host is not None

    def info(self, parameter: nn.Parameter) -> str:
        """How a parameter was set, as the log says it."""
        unwritten = f"The value is the same before and after calling `init_weights` of {type(self.top).__name__} "
        return self.writers.get(id(parameter), unwritten)

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
        with self._unobserved():
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
        return Prepared(plan, known)

    def carry_out(self, prepared: Prepared) -> Report:
        """Writes what has been prepared, and records it."""
        plan, known = prepared.plan, prepared.groups
        for rule, hint in plan.unused:
            self.warn(f"{rule}: {hint}")
        with self._unobserved():
            shards = {step.site.name: known[step.site.name][0].shard for step in plan.steps}
            report = run(plan, shards, self.noise, stats=False)
        for step in plan.steps:
            group = known[step.site.name]
            for key in set().union(*(spot.holders for spot in group)):
                self.claim(key, str(step.rule), step.fill)
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

    # --- the record ----------------------------------------------------------------------------------------

    def claim(self, key: int, text: str, fill: Fill | None = None) -> None:
        """Notes that a parameter has been written, by whom and with what."""
        if key in self._known:
            if key in self.writers and self.writers[key] != text:
                self.beaten[key].append(self.writers[key].strip())
            self.writers[key] = text
            self.fills[key] = fill
            self.unclaimed.discard(key)

    def claim_written(self, module: nn.Module, text: str) -> None:
        """Gives a text to what foreign code wrote in a module and nobody has given a text to yet."""
        for key in [id(parameter) for parameter in module.parameters()]:
            if key in self.unclaimed:
                self.claim(key, text)

    def check_parameters(self, module: nn.Module) -> None:
        """Raises AssertionError for a parameter that the module did not have when the session began."""
        for name, parameter in module.named_parameters():
            if id(parameter) not in self._begun:
                raise InitCfgAssertionError(
                    f"Find a new :obj:`Parameter` named `{name}` during executing the `init_weights` of"
                    f" `{type(module).__name__}`. Change its values instead: parameters must not be added or replaced"
                )

    @contextmanager
    def foreign(self, module: nn.Module, text: str = "") -> Iterator[None]:
        """Runs other people's code; what it writes goes to the module's ``init_weights``, or to ``text``."""
        self._labels.append(text or f"Initialized by user-defined `init_weights` in {type(module).__name__} ")
        try:
            with ExitStack() as stack:
                if len(self._labels) == 1:
                    stack.enter_context(self._observer())
                    stack.enter_context(self._own_generator(module))
                yield
        finally:
            self._labels.pop()

    @contextmanager
    def _unobserved(self) -> Iterator[None]:
        """What torchinit itself does is known, and needs no observer to slow it down."""
        if not self._labels:
            yield
            return
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            yield

    def _observer(self) -> Observer:
        self._watch = Watch()
        for key, parameter in self._known.items():
            self._watch.add(key, parameter)
        return Observer(self._watch, self._told, self._registered)

    def _told(self, key: int) -> None:
        self.claim(key, self._labels[-1])
        self.unclaimed.add(key)

    def _registered(self, module: nn.Module, name: str, value: object) -> None:
        self._survey = None
        if isinstance(value, nn.Parameter) and id(value) not in self._known:
            self._known[id(value)] = value
            self._watch.add(id(value), value)
            self.marks[value] = _Mark(self, value)

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
        empty = [name for name, p in self.top.named_parameters() if id(p) not in self.writers and is_unfilled(p)]
        for name in empty:
            self.warn(f"nobody has written {name}: it holds whatever its memory held before")
        if self.hosted:
            self._tell_host()
        else:
            dump((name, p, self.info(p)) for name, p in self.top.named_parameters())

    def _tell_host(self) -> None:
        """Enters into MMEngine's own record who wrote what, with the mean by which it would find that out."""
        for key, text in self.writers.items():
            parameter = self._known[key]
            if parameter in self.host:
                self.host[parameter].update(init_info=text, tmp_mean_value=parameter.data.mean().cpu())

    def report(self, *, stats: bool = False) -> Report:
        """What happened, a record a parameter."""
        named = list(self.top.named_parameters())
        written = [(name, parameter) for name, parameter in named if id(parameter) in self.writers]
        return Report(
            tuple(self._record(name, parameter, stats) for name, parameter in written),
            tuple(name for name, parameter in named if id(parameter) not in self.writers),
            unused=tuple(self.warned),
            noise=str(self.noise),
        )

    def _record(self, name: str, parameter: nn.Parameter, stats: bool) -> Record:
        key, shape = id(parameter), tuple(parameter.shape)
        fill = self.fills.get(key)
        return Record(
            name,
            shape,
            str(parameter.dtype).removeprefix("torch."),
            fill="" if fill is None else str(fill),
            rule=self.writers[key].strip(),
            expected=fill.moments(shape) if fill is not None and not parameter.is_complex() else None,
            measured=measure(parameter.detach()) if stats else None,
            over=tuple(self.beaten[key]) if key in self.beaten else (),
            bytes=parameter.numel() * parameter.element_size(),
        )


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
    return next((session for session in reversed(_OPEN.get()) if session.marks is marks or session.host is marks), None)


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
