"""FSDP: the function by which FullyShardedDataParallel, FSDP1, initializes the parts of a model as it wraps them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import nn

from torchinit.api import RecipeLike, plan
from torchinit.core.places import held
from torchinit.core.plans import Plan
from torchinit.core.reports import Record, Report
from torchinit.core.runs import local_shards, run
from torchinit.core.shards import Shard
from torchinit.core.sites import grouped
from torchinit.distributed.allocation import Allocation, allocate, check_device, unwritten
from torchinit.distributed.owncode import make_buffers
from torchinit.errors import RunError, count
from torchinit.noise import Keyed


def param_init_fn(
    model: nn.Module, recipe: RecipeLike, *, seed: int, device: torch.device | str = "cpu", strict: bool = True
) -> ParamInit:
    """What to pass to ``FullyShardedDataParallel(model, param_init_fn=...)`` for a model on the meta device.

    FSDP1 has each part whole on every rank for a moment before it keeps its own; the values are those of
    :func:`torchinit.materialize` on one process. Make it before anything wraps the model: it keeps the names.

    Raises ConfigError or PlanError, also for a parameter without a rule, before anything has memory.

    >>> with torch.device("meta"):
    ...     model = nn.Sequential(nn.Linear(2, 3))
    >>> init = param_init_fn(model, {"rules": [{"type": "Constant", "val": 1, "name": "**"}]}, seed=0)
    >>> init(model[0])
    >>> model[0].bias.tolist(), [record.name for record in init.report]
    ([1.0, 1.0, 1.0], ['0.weight', '0.bias'])
    """
    made = plan(model, recipe, complete=True, strict=strict)
    names = {(one.place.module, one.leaf): site.name for site, group in grouped(held(model)) for one in group}
    return ParamInit(made, names, Keyed(seed), check_device(device))


@dataclass(frozen=True, slots=True)
class ParamInit:
    """Gives a module of a model memory, and values by the whole model's plan; FSDP1 calls it as it wraps."""

    plan: Plan
    names: dict[tuple[nn.Module, str], str]
    noise: Keyed
    device: torch.device
    records: list[Record] = field(default_factory=list)

    @property
    def report(self) -> Report:
        """What was written so far."""
        return Report(tuple(self.records), noise=str(self.noise))

    def __call__(self, module: nn.Module) -> None:
        """Writes what has no memory yet of the module and of what is below it; RunError for what is left unwritten."""
        allocation = allocate(module, self.device)
        sites = self._sites(module, allocation)
        steps = {step.site.name: step for step in self.plan.steps if step.site.name in sites.values()}
        planned = [name for name, site in sites.items() if site in steps]
        wanted = [one for one in allocation.blank if one.kind == "buffer" and one.name not in planned]
        made = make_buffers(module, wanted, self.device, self.noise.seed)
        shards = {
            sites[name]: [replace(part, name=sites[name]) for part in _parts(here)]
            for name, here in local_shards(module, planned).items()
        }
        self.records.extend(run(Plan(tuple(steps.values())), shards, self.noise))
        left = unwritten(allocation.blank, {*planned, *made.by})
        if left:
            raise RunError(f"{count(len(left), 'tensor')} of {type(module).__name__} left unwritten", left)

    def _sites(self, module: nn.Module, allocation: Allocation) -> dict[str, str]:
        """The sites of the tensors that were blank, by the names that they have within the module."""
        blank = {id(one.tensor) for one in allocation.blank}
        return {
            one.name: self.names[one.place.module, one.leaf]
            for one in held(module)
            if any(id(tensor) in blank for tensor in (one.way.sources if one.way else (one.tensor,)))
        }


def _parts(here: Shard | tuple[Shard, ...]) -> tuple[Shard, ...]:
    return (here,) if isinstance(here, Shard) else tuple(here)
