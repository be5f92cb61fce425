"""Materialization: memory and first values for a model that has neither, on one rank or on many."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar

import torch
from torch import nn

from torchinit._text import count, dtype_name
from torchinit.distributed.allocation import (
    Allocation,
    ModuleTensor,
    allocate,
    check_device,
    check_meta,
    check_ranks,
    check_styles,
    module_tensors,
    unwritten,
)
from torchinit.distributed.collectives import Spread, is_shared, over_group, run_collectively
from torchinit.distributed.consensus import RankIntent, check_consensus, check_parts, compare_replicas, intent_of
from torchinit.distributed.own_code import MATERIALIZE, OwnCodeResult, make_buffers
from torchinit.errors import RunError
from torchinit.initializers.elementwise import Drawn
from torchinit.initializers.statistics import measure
from torchinit.model.dtensor import is_distributed, local_part
from torchinit.noise import Keyed, Noise
from torchinit.plans.observers import noise_in_use
from torchinit.plans.only import prove
from torchinit.plans.origin import steps_of
from torchinit.plans.plan import FROZEN, Plan
from torchinit.plans.report import Record, Report
from torchinit.plans.run import Progress, local_shards, run

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_T = TypeVar("_T")
OWN_CODE: Final = "own code"
"""The rule of a record of what a module's own code has made."""


class Start(Protocol):
    """The source of a model's first values. Nothing of it touches the model before :meth:`write`.

    ``intent`` is what the ranks compare before anything has memory; ``certain`` the names that are sure to be
    written, so that nothing else need make them; ``drawn`` of the sites each value of which is a draw of its own, so
    that no two parts are the same.
    """

    @property
    def intent(self) -> Mapping[str, str]: ...
    @property
    def certain(self) -> Collection[str]: ...

    @property
    def drawn(self) -> Collection[str]: ...

    def initializes(self, module: nn.Module) -> bool:
        """Whether it calls the module's ``init_weights``."""
        return False

    def write(self, blank: Sequence[ModuleTensor]) -> Report:
        """Write the values; ``blank`` are the tensors that have just got memory, filled with NaN."""

    def explain_left(self, one: ModuleTensor, tried: Sequence[str]) -> str:
        """Why a tensor has no values, and the way out; ``tried`` has the result of the own code that might make it."""

    def undo(self) -> None:
        """Let the modules forget that they were initialized, as their values are taken away again."""


class OwnStarts(Protocol):
    """Makes the starts of models whose own modules say how they start."""

    def __call__(
        self,
        model: nn.Module,
        noise: Noise,
        *,
        strict: bool,
        stats: bool,
        progress: Progress | None,
        group: ProcessGroup | None,
    ) -> Start: ...

    def call_for(self, model: nn.Module) -> str:
        """The call to make instead for such a model where it has memory; empty for a model of other modules."""


OWN_STARTS: Final[list[OwnStarts]] = []
"""Filled by the packages of such modules, as ``torchinit.mmengine``, when they are imported."""


def own_starts(model: nn.Module) -> OwnStarts | None:
    """The factory of starts for a model that says itself how it starts; None for any other model."""
    return next((own for own in OWN_STARTS if own.call_for(model)), None)


Resets: TypeAlias = Callable[[Sequence[ModuleTensor]], OwnCodeResult]
"""Lets layers reset those of their parameters that are given."""


@dataclass(frozen=True, slots=True)
class PlannedStart(Start):
    """The steps of a plan; before them, what they do not cover is reset by its layers, where ``resets`` is given."""

    model: nn.Module
    plan: Plan
    noise: Noise
    stats: bool = True
    progress: Progress | None = None
    resets: Resets | None = None
    made: OwnCodeResult = field(default_factory=OwnCodeResult)

    @property
    def intent(self) -> Mapping[str, str]:
        return steps_of(self.plan)

    @property
    def drawn(self) -> Collection[str]:
        return {step.site.name for step in self.plan.steps if isinstance(step.fill, Drawn)}

    @property
    def certain(self) -> Collection[str]:
        return {view.name for step in self.plan.steps for view in step.site.views}

    def write(self, blank: Sequence[ModuleTensor]) -> Report:
        sites = [*self.plan.untouched, *(skip.site for skip in self.plan.skipped if skip.why == FROZEN)]
        names = {view.name for site in sites for view in site.views}
        left = [entry for entry in blank if entry.kind == "parameter" and entry.name in names]
        if self.resets is not None and left:
            made = self.resets(left)
            self.made.by.update(made.by)
            self.made.failed.update(made.failed)
        shards = local_shards(self.model, [step.site.name for step in self.plan.steps])
        work = partial(run, self.plan, shards, self.noise, stats=self.stats, progress=self.progress)
        report = prove(self.model, self.plan, work)
        return with_resets(report, left, self.made, stats=self.stats)

    def explain_left(self, one: ModuleTensor, tried: Sequence[str]) -> str:
        text = explain_unwritten(one, tried)
        if one.kind == "buffer" or self.resets is None:
            return text
        reset = f"{type(one.module).__name__} has no reset_parameters() that does"
        return f"{text}, and {'; '.join(self.made.failed.get(one.name, ())) or reset}"

    def undo(self) -> None:
        pass


def with_resets(report: Report, blank: Sequence[ModuleTensor], made: OwnCodeResult, *, stats: bool) -> Report:
    """A report with the parameters that layers have reset and nothing else has written."""
    parameters = {entry.name for entry in blank if entry.kind == "parameter"}
    frozen = [name for name, why in report.skipped if why == FROZEN]
    reset = {name: made.by[name] for name in (*report.untouched, *frozen) if name in made.by and name in parameters}
    records = _own_records(blank, reset, stats=stats)
    left = tuple(name for name in report.untouched if name not in reset)
    return replace(report, records=(*report.records, *records), untouched=left)


def explain_unwritten(one: ModuleTensor, tried: Sequence[str]) -> str:
    """Why no rule gives a tensor values, and the way out."""
    left = f"a {one.kind} of {type(one.module).__name__} that no rule writes"
    if one.kind == "parameter":
        return left
    code = f"its modules' own code does not make it ({'; '.join(tried) or 'there is none'})"
    return f"{left}, and {code}. Give it a rule with buffers = true, or a reset_parameters()"


def over_ranks(group: ProcessGroup | None) -> Spread | None:
    """The spread over the ranks of a group that materialize a model together; None for one process."""
    spread = over_group(group, MATERIALIZE)
    return spread if is_shared(group) else None


# Nothing has memory before the start is known, all ranks agree on it and the device is there; each of these steps is
# taken by all ranks together, so that one error ends them all. NaN in fresh memory proves what was written: all that
# still holds it, and whole numbers that nothing was seen to write, is an error. Then the tensors change places with
# those of before, which takes the memory away. Buffers come first, own resets next, and what the start says over
# them, since code may read what it changes. Replicas are compared at the very end, as nothing writes after that.


@dataclass(frozen=True, slots=True)
class Materialization:
    """The way in which a model gets memory and values: on which device, from which start, by which ranks together.

    ``ready`` makes the start; what it raises, all ranks hear of. ``options`` are what else they have to agree in.
    ``with_memory`` is the function to call for a model that has memory already. What is to ``leave``, by name, stays as
    it is, with memory or without. The ``spread`` is that of :func:`over_ranks`, which an error before this may use.
    """

    model: nn.Module
    ready: Callable[[], Start]
    noise: Noise
    device: torch.device | str = "cpu"
    group: ProcessGroup | None = None
    verify: bool = True
    stats: bool = True
    with_memory: str = "torchinit.initialize"
    options: Mapping[str, object] = field(default_factory=dict)
    leave: Collection[str] = frozenset()
    spread: Spread | None = None

    def carry_out(self) -> Report:
        """Give memory, write, and prove that nothing was left; after an error the model has no memory again."""
        start, device, intent = self._together(self._ready, "the plan")
        spread = self._spread()
        if intent is not None and spread is not None:
            check_consensus(intent, spread, ". Give each its own group= if that is meant")
        work = partial(allocate, self.model, device, lambda entry: entry.name in self.leave)
        memory = self._together(work, "the allocation of memory")
        try:
            report = self._together(lambda: self._written(start, memory, device), "the initialization")
            if self.verify and spread is not None:
                compare_replicas(self.model, spread)
                made = {record.name for record in report if record.rule == OWN_CODE}
                check_parts(self.model, spread, made.union(start.drawn))
            return report
        except BaseException:
            memory.undo()
            start.undo()
            raise

    def _together(self, work: Callable[[], _T], noun: str) -> _T:
        spread = self._spread()
        return work() if spread is None else run_collectively(work, noun, spread)

    def _spread(self) -> Spread | None:
        return self.spread or over_ranks(self.group)

    def _ready(self) -> tuple[Start, torch.device, RankIntent | None]:
        check_ranks(self.model)
        check_styles(self.model)
        check_meta(self.model, self.leave, with_memory=self.with_memory)
        spread = is_shared(self.group) or any(is_distributed(entry.tensor) for entry in module_tensors(self.model))
        if spread and not isinstance(self.noise, Keyed):
            raise RunError("a model on several ranks needs a seed: give seed=, an int that is the same on all of them")
        start, device = self.ready(), check_device(self.device)
        if not is_shared(self.group):
            return start, device, None
        options = {"the device": device.type, "verify": self.verify, **self.options}
        return start, device, intent_of(self.model, start.intent, self.noise, options)

    def _written(self, start: Start, memory: Allocation, device: torch.device) -> Report:
        certain = start.certain
        # Before the values of parameters: a parametrization may need its buffers to take one.
        wanted = [entry for entry in memory.blank if entry.kind == "buffer" and entry.name not in certain]
        noise = noise_in_use(self.noise)
        seed = noise.seed if isinstance(noise, Keyed) else torch.initial_seed()
        made = make_buffers(self.model, wanted, device, seed, initialized_later=start.initializes)
        report = start.write(memory.blank)
        blank = {entry.name: entry for entry in memory.blank}
        written = {record.name for record in report}  # some of it over what own code had made
        if left := unwritten(memory.blank, {*certain, *made.by, *written}):
            problems = [f"{name}: {start.explain_left(blank[name], made.failed.get(name, ()))}" for name in left]
            raise RunError(f"{count(len(left), 'tensor')} left unwritten", problems)
        texts = {name: text for name, text in made.by.items() if name not in written}
        buffers = tuple(name for name in report.buffers if name not in made.by)
        skipped = tuple((name, why) for name, why in report.skipped if name not in made.by)
        unchanged = tuple(name for name in report.unchanged if name not in made.by)
        records = (*report.records, *_own_records(memory.blank, texts, stats=self.stats))
        return replace(report, records=records, buffers=buffers, skipped=skipped, unchanged=unchanged)


def _own_records(blank: Sequence[ModuleTensor], texts: Mapping[str, str], *, stats: bool) -> list[Record]:
    """The records of tensors that their modules' own code has made, each by the text for it."""
    place = {entry.name: (position, entry.tensor) for position, entry in enumerate(blank)}
    records = []
    for name, text in texts.items():
        position, tensor = place[name]
        local, shape, dtype = local_part(tensor), tuple(tensor.shape), dtype_name(tensor.dtype)
        records.append(
            Record(
                name, shape, dtype, text, OWN_CODE, measured=measure(local) if stats else None, bytes=local.nbytes,
                position=position,
            )
        )  # fmt: skip
    return records
