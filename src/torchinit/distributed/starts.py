"""Starts: what gives a model its first values, once it has memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from torchinit.core.plans import Plan
from torchinit.core.reports import Report
from torchinit.core.runs import Progress, local_shards, run
from torchinit.distributed.agreement import intent_of
from torchinit.distributed.allocation import Tenant
from torchinit.noise import Keyed


class Start(Protocol):
    """What gives a model its first values. Nothing of it touches the model before :meth:`write`.

    ``intent`` is what the ranks compare before anything has memory; ``certain`` the names that are sure to be
    written, so that nothing else need make them.
    """

    @property
    def intent(self) -> Mapping[str, str]: ...
    @property
    def certain(self) -> Collection[str]: ...

    def write(self, blank: Sequence[Tenant]) -> Report:
        """Write the values; ``blank`` are the tensors that have just got memory, filled with NaN."""

    def why_left(self, one: Tenant, tried: Sequence[str]) -> str:
        """Why a tensor has no values, and the way out; ``tried`` is what came of the own code that might make it."""


@dataclass(frozen=True, slots=True)
class PlannedStart:
    """The steps of a plan."""

    model: nn.Module
    plan: Plan
    noise: Keyed
    stats: bool = True
    progress: Progress | None = None

    @property
    def intent(self) -> Mapping[str, str]:
        return intent_of(self.plan)

    @property
    def certain(self) -> Collection[str]:
        return {view.name for step in self.plan.steps for view in step.site.views}

    def write(self, blank: Sequence[Tenant]) -> Report:
        del blank
        shards = local_shards(self.model, [step.site.name for step in self.plan.steps])
        return run(self.plan, shards, self.noise, stats=self.stats, progress=self.progress)

    def why_left(self, one: Tenant, tried: Sequence[str]) -> str:
        left = f"a {one.kind} of {type(one.module).__name__} that no rule writes"
        if one.kind == "parameter":
            return left
        code = f"its modules' own code does not make it ({'; '.join(tried) or 'there is none'})"
        return f"{left}, and {code}. Give it a rule with buffers = true, or a reset_parameters()"
