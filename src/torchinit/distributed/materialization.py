"""Materializations: a model that had no memory, given it and its first values, on one rank or on many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from torchinit.core.measures import measure
from torchinit.core.placements import local_part
from torchinit.core.plans import Plan
from torchinit.core.reports import Record, Report
from torchinit.core.runs import Progress, local_shards, run
from torchinit.distributed.agreement import check_agreement
from torchinit.distributed.allocation import (
    Allocation,
    Tenant,
    allocate,
    check_device,
    check_meta,
    check_ranks,
    unwritten,
)
from torchinit.distributed.owncode import Made, make_buffers
from torchinit.distributed.replicas import verify_replicas
from torchinit.distributed.styles import check_styles
from torchinit.distributed.together import together
from torchinit.errors import RunError, count
from torchinit.noise import Keyed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Materialization:
    """How a model is to get memory and values: where, from which noise, by which ranks together.

    ``planned`` makes the plan; what it raises, all ranks hear of.
    """

    model: nn.Module
    planned: Callable[[], Plan]
    noise: Keyed
    device: torch.device | str = "cpu"
    group: ProcessGroup | None = None
    verify: bool = True
    stats: bool = True
    progress: Progress | None = None

    def carry_out(self) -> Report:
        """Gives memory, writes, proves that nothing was left; after an error the model has no memory again."""
        plan, device = self._together(self._ready, "the plan")
        if self._is_shared:
            check_agreement(plan, self.noise, self.group)
        allocation = self._together(lambda: allocate(self.model, device), "the allocation of memory")
        try:
            report = self._together(lambda: self._written(plan, allocation, device), "the initialization")
            if self.verify and self._is_shared:
                verify_replicas(self.model, group=self.group)
            return report
        except BaseException:
            allocation.undo()
            raise

    @property
    def _is_shared(self) -> bool:
        """Whether there are other ranks to wait for."""
        dist = torch.distributed
        return dist.is_available() and dist.is_initialized() and dist.get_world_size(self.group) > 1

    def _together(self, work: Callable[[], _T], what: str) -> _T:
        return together(work, what, self.group) if self._is_shared else work()

    def _ready(self) -> tuple[Plan, torch.device]:
        check_ranks(self.model)
        check_styles(self.model)
        check_meta(self.model)
        return self.planned(), check_device(self.device)

    def _written(self, plan: Plan, allocation: Allocation, device: torch.device) -> Report:
        planned = {view.name for step in plan.steps for view in step.site.views}
        # Before the steps: a parametrization may need its buffers to take a value.
        wanted = [one for one in allocation.blank if one.kind == "buffer" and one.name not in planned]
        made = make_buffers(self.model, wanted, device, self.noise.seed)
        shards = local_shards(self.model, [step.site.name for step in plan.steps])
        report = run(plan, shards, self.noise, stats=self.stats, progress=self.progress)
        blank = {one.name: one for one in allocation.blank}
        _prove(blank, unwritten(allocation.blank, {*planned, *made.by}), made)
        return _with_buffers(report, blank, made, stats=self.stats)


def _prove(blank: Mapping[str, Tenant], left: Sequence[str], made: Made) -> None:
    if left:
        problems = [f"{name}: {_why(blank[name], made)}" for name in left]
        raise RunError(f"{count(len(left), 'tensor')} left unwritten", problems)


def _why(one: Tenant, made: Made) -> str:
    if one.kind == "parameter":
        return f"a parameter of {type(one.module).__name__} that no rule writes"
    tried = "; ".join(made.failed.get(one.name, ()))
    what = f"a buffer of {type(one.module).__name__} that no rule writes, and its modules' own code does not make it"
    return f"{what} ({tried or 'there is none'}). Give it a rule with buffers = true, or a reset_parameters()"


def _with_buffers(report: Report, blank: Mapping[str, Tenant], made: Made, *, stats: bool) -> Report:
    records = [_record(blank[name], text, stats=stats) for name, text in made.by.items()]
    left = tuple(name for name in report.buffers if name not in made.by)
    return replace(report, records=(*report.records, *records), buffers=left)


def _record(one: Tenant, text: str, *, stats: bool) -> Record:
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
