"""Trainers: the method by which a training loop has a model make its first weights, given by a recipe instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from torchinit.api import RecipeLike, initialize, materialize, plan
from torchinit.core.reports import Report
from torchinit.distributed.allocation import tenants
from torchinit.distributed.owncode import make_buffers
from torchinit.errors import RunError, count


def init_weights(recipe: RecipeLike, *, seed: int, strict: bool = True) -> Callable[..., Report]:
    """A method for a model class, in the place of its own ``init_weights`` (torchtitan) or ``reset_parameters``.

    Trainers such as torchtitan build a model on the meta device, shard it, give it memory with ``to_empty``, and call
    ``model.init_weights(buffer_device=...)``. The method writes the parameters by the recipe, as one process would,
    and has the buffers that no rule writes made by their modules' own code. A model that is on the meta device still
    is given memory, by :func:`torchinit.materialize`.

    Raises ConfigError or PlanError, also for a parameter without a rule, and RunError, for a buffer that nothing makes.

    >>> class Model(nn.Linear):
    ...     init_weights = init_weights({"rules": [{"type": "Constant", "val": 1, "name": "**"}]}, seed=0)
    >>> with torch.device("meta"):
    ...     model = Model(2, 3)
    >>> _ = model.to_empty(device="cpu").init_weights(buffer_device=None)
    >>> model.bias.tolist()
    [1.0, 1.0, 1.0]
    """
    busy: set[int] = set()

    def init_weights(self: nn.Module, buffer_device: torch.device | str | None = None, **_: Any) -> Report:
        """Writes the first weights of the model; the trainer's own arguments but for the device mean nothing here."""
        if id(self) in busy:  # as the code that may make a buffer, which it is not
            raise RunError("a recipe writes this model")
        busy.add(id(self))
        try:
            if any(one.tensor.is_meta for one in tenants(self)):
                return materialize(self, recipe, device=buffer_device or "cpu", seed=seed, strict=strict)
            plan(self, recipe, complete=True, strict=strict)
            report = initialize(self, recipe, seed=seed, strict=strict)
            _make_buffers(self, report, buffer_device, seed)
            return report
        finally:
            busy.discard(id(self))

    return init_weights


def _make_buffers(model: nn.Module, report: Report, device: torch.device | str | None, seed: int) -> None:
    written = {name for record in report for name in (record.name, *record.aliases)}
    wanted = [one for one in tenants(model) if one.kind == "buffer" and one.name not in written]
    by_device: dict[torch.device, list[Any]] = {}
    for one in wanted:
        by_device.setdefault(torch.device(device) if device else one.tensor.device, []).append(one)
    failed = [name for place, those in by_device.items() for name in make_buffers(model, those, place, seed).failed]
    if failed:
        raise RunError(f"{count(len(failed), 'buffer')} that no rule writes and no code of the model makes", failed)
