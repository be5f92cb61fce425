"""Materializations: a model that had no memory, given it and its first values, on one rank or on many."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar

import torch
from torch import nn

from torchinit._text import count
from torchinit.distributed.agreement import check_agreement, intent_of
from torchinit.distributed.allocation import (
    Allocation,
    Tenant,
    allocate,
    check_device,
    check_meta,
    check_ranks,
    tenants,
    unwritten,
)
from torchinit.distributed.buffers import Made, make_buffers
from torchinit.distributed.collectives import is_shared, together
from torchinit.distributed.replicas import verify_replicas
from torchinit.distributed.styles import check_styles
from torchinit.errors import RunError
from torchinit.initializers.statistics import measure
from torchinit.model.dtensor import is_distributed, local_part
from torchinit.noise import Keyed, Noise
from torchinit.plans.plan import FROZEN, Plan
from torchinit.plans.report import Record, Report
from torchinit.plans.run import Progress, local_shards, run

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_T = TypeVar("_T")


class Start(Protocol):
    """What gives a model its first values. Nothing of it touches the model before :meth:`write`.

    ``intent`` is what the ranks compare before anything has memory; ``certain`` the names that are sure to be
    written, so that nothing else need make them.
    """

    @property
    def intent(self) -> Mapping[str, str]: ...
    @property
    def certain(self) -> Collection[str]: ...

    def initializes(self, module: nn.Module) -> bool:
        """Whether it calls the module's ``init_weights``."""

    def write(self, blank: Sequence[Tenant]) -> Report:
        """Write the values; ``blank`` are the tensors that have just got memory, filled with NaN."""

    def why_left(self, one: Tenant, tried: Sequence[str]) -> str:
        """Why a tensor has no values, and the way out; ``tried`` is what came of the own code that might make it."""

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
        """What to call instead for such a model where it has memory; nothing for a model of other modules."""


OWN_STARTS: Final[list[OwnStarts]] = []
"""Filled by the packages of such modules, as ``torchinit.mmengine``, when they are imported."""


def own_starts(model: nn.Module) -> OwnStarts | None:
    """Return what makes the start of a model that says itself how it starts; None of any other model.

    >>> own_starts(nn.Linear(1, 1)) is None
    True
    """
    return next((own for own in OWN_STARTS if own.call_for(model)), None)


Resets: TypeAlias = Callable[[Sequence[Tenant]], Made]
"""Lets layers reset those of their parameters that are given."""


@dataclass(frozen=True, slots=True)
class PlannedStart:
    """The steps of a plan; before them, what they do not cover is reset by its layers, where ``resets`` is given."""

    model: nn.Module
    plan: Plan
    noise: Noise
    stats: bool = True
    progress: Progress | None = None
    resets: Resets | None = None
    made: Made = field(default_factory=Made)

    @property
    def intent(self) -> Mapping[str, str]:
        return intent_of(self.plan)

    @property
    def certain(self) -> Collection[str]:
        return {view.name for step in self.plan.steps for view in step.site.views}

    def initializes(self, module: nn.Module) -> bool:
        return False

    def write(self, blank: Sequence[Tenant]) -> Report:
        sites = [*self.plan.untouched, *(skip.site for skip in self.plan.skipped if skip.why == FROZEN)]
        names = {view.name for site in sites for view in site.views}
        left = [one for one in blank if one.kind == "parameter" and one.name in names]
        if self.resets is not None and left:
            made = self.resets(left)
            self.made.by.update(made.by)
            self.made.failed.update(made.failed)
        shards = local_shards(self.model, [step.site.name for step in self.plan.steps])
        report = run(self.plan, shards, self.noise, stats=self.stats, progress=self.progress)
        return with_resets(report, left, self.made, stats=self.stats)

    def why_left(self, one: Tenant, tried: Sequence[str]) -> str:
        text = why_unwritten(one, tried)
        if one.kind == "buffer" or self.resets is None:
            return text
        reset = f"{type(one.module).__name__} has no reset_parameters() that does"
        return f"{text}, and {'; '.join(self.made.failed.get(one.name, ())) or reset}"

    def undo(self) -> None:
        pass


def with_resets(report: Report, blank: Sequence[Tenant], made: Made, *, stats: bool) -> Report:
    """A report with the parameters that layers have reset and nothing else has written."""
    tenants = {one.name: one for one in blank if one.kind == "parameter"}
    frozen = [name for name, why in report.skipped if why == FROZEN]
    reset = [name for name in (*report.untouched, *frozen) if name in made.by and name in tenants]
    records = [own_record(tenants[name], made.by[name], stats=stats) for name in reset]
    left = tuple(name for name in report.untouched if name not in reset)
    return replace(report, records=(*report.records, *records), untouched=left)


def why_unwritten(one: Tenant, tried: Sequence[str]) -> str:
    """Why no rule gives a tensor values, and the way out.

    >>> norm = nn.BatchNorm1d(2)
    >>> why_unwritten(Tenant("weight", norm, "weight", norm.weight, "parameter"), ())
    'a parameter of BatchNorm1d that no rule writes'
    """
    left = f"a {one.kind} of {type(one.module).__name__} that no rule writes"
    if one.kind == "parameter":
        return left
    code = f"its modules' own code does not make it ({'; '.join(tried) or 'there is none'})"
    return f"{left}, and {code}. Give it a rule with buffers = true, or a reset_parameters()"


@dataclass(frozen=True, slots=True)
class Materialization:
    """How a model is to get memory and values: where, from which start, by which ranks together.

    ``ready`` makes the start; what it raises, all ranks hear of. ``with_memory`` is what to call for a model that has
    memory already.
    """

    model: nn.Module
    ready: Callable[[], Start]
    noise: Noise
    device: torch.device | str = "cpu"
    group: ProcessGroup | None = None
    verify: bool = True
    stats: bool = True
    with_memory: str = "torchinit.initialize"

    def carry_out(self) -> Report:
        """Gives memory, writes, proves that nothing was left; after an error the model has no memory again."""
        start, device = self._together(self._ready, "the plan")
        if self._is_shared and isinstance(self.noise, Keyed):
            check_agreement(start.intent, self.noise, self.group)
        allocation = self._together(lambda: allocate(self.model, device), "the allocation of memory")
        try:
            report = self._together(lambda: self._written(start, allocation, device), "the initialization")
            if self.verify and self._is_shared:
                verify_replicas(self.model, group=self.group)
            return report
        except BaseException:
            allocation.undo()
            start.undo()
            raise

    @property
    def _is_shared(self) -> bool:
        return is_shared(self.group)

    def _together(self, work: Callable[[], _T], what: str) -> _T:
        return together(work, what, self.group) if self._is_shared else work()

    def _ready(self) -> tuple[Start, torch.device]:
        check_ranks(self.model)
        check_styles(self.model)
        check_meta(self.model, with_memory=self.with_memory)
        spread = self._is_shared or any(is_distributed(one.tensor) for one in tenants(self.model))
        if spread and not isinstance(self.noise, Keyed):
            raise RunError("a model on several ranks needs a seed: give seed=, an int that is the same on all of them")
        return self.ready(), check_device(self.device)

    def _written(self, start: Start, allocation: Allocation, device: torch.device) -> Report:
        certain = start.certain
        # Before the values of parameters: a parametrization may need its buffers to take one.
        wanted = [one for one in allocation.blank if one.kind == "buffer" and one.name not in certain]
        seed = self.noise.seed if isinstance(self.noise, Keyed) else torch.initial_seed()
        made = make_buffers(self.model, wanted, device, seed, initialized_later=start.initializes)
        report = start.write(allocation.blank)
        blank = {one.name: one for one in allocation.blank}
        known = {*certain, *made.by, *(record.name for record in report)}
        _prove(start, blank, unwritten(allocation.blank, known), made)
        return _with_buffers(report, blank, made, stats=self.stats)


def _prove(start: Start, blank: Mapping[str, Tenant], left: Sequence[str], made: Made) -> None:
    if left:
        problems = [f"{name}: {start.why_left(blank[name], made.failed.get(name, ()))}" for name in left]
        raise RunError(f"{count(len(left), 'tensor')} left unwritten", problems)


def _with_buffers(report: Report, blank: Mapping[str, Tenant], made: Made, *, stats: bool) -> Report:
    written = {record.name for record in report}  # and so over what own code had made
    records = [own_record(blank[name], text, stats=stats) for name, text in made.by.items() if name not in written]
    left = tuple(name for name in report.buffers if name not in made.by)
    return replace(report, records=(*report.records, *records), buffers=left)


def own_record(one: Tenant, text: str, *, stats: bool) -> Record:
    """The record of a tensor that its module's own code has made."""
    local = local_part(one.tensor)
    return Record(
        name=one.name,
        shape=tuple(one.tensor.shape),
        dtype=str(one.tensor.dtype).removeprefix("torch."),
        fill=text,
        rule="own code",
        measured=measure(local) if stats else None,
        bytes=local.nbytes,
    )
