"""Trainers: the method that a training loop calls for the first weights of a model, made of a recipe."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from torchinit._text import count
from torchinit.api import initialize, materialize
from torchinit.distributed.allocation import ModuleTensor, module_tensors
from torchinit.distributed.own_code import make_buffers
from torchinit.errors import RunError
from torchinit.plans.only import is_loaded, refuse_while_built
from torchinit.plans.plan import Strict
from torchinit.plans.report import Report
from torchinit.recipes import RecipeLike, to_rules
from torchinit.recipes.arguments import Given
from torchinit.rules.rule import Value


def init_weights(
    recipe: RecipeLike,
    *,
    seed: int,
    strict: Strict = "model",
    arguments: Mapping[str, Value] | None = None,
    **named: Value,
) -> Callable[..., Report]:
    """A method for a model class, in the place of its own ``init_weights`` (torchtitan) or ``reset_parameters``.

    Trainers such as torchtitan build a model on the meta device, shard it, give it memory with ``to_empty``, and call
    ``model.init_weights(buffer_device=...)``. The method writes the parameters by the recipe, as one process would,
    and has the buffers that no rule writes made by their modules' own code. A model that is on the meta device still
    is given memory, by :func:`torchinit.materialize`.

    What transformers marks as loaded is left alone. ``strict`` and ``arguments`` are those of :func:`torchinit.plan`.

    Raises ConfigError or PlanError, also for a parameter without a rule, and RunError, for a buffer that nothing makes,
    and where transformers calls it for a model that it is going to load, or as ``_init_weights`` for a module.

    >>> class Model(nn.Linear):
    ...     init_weights = init_weights({"rules": [{"type": "Constant", "val": 1, "name": "**"}]}, seed=0)
    >>> with torch.device("meta"):
    ...     model = Model(2, 3)
    >>> _ = model.to_empty(device="cpu").init_weights(buffer_device=None)
    >>> model.bias.tolist()
    [1.0, 1.0, 1.0]
    """
    rules = to_rules(recipe, Given.to("init_weights", ("seed", "strict", "arguments"), arguments, named))
    busy: set[int] = set()

    def init_weights(self: nn.Module, buffer_device: torch.device | str | None = None, **_: Any) -> Report:
        """Writes the first weights of the model; the trainer's own arguments but for the device mean nothing here."""
        _check_call(self, buffer_device)
        if id(self) in busy:  # as the code that may make a buffer, which it is not
            raise RunError("a recipe writes this model")
        busy.add(id(self))
        try:
            if any(tenant.tensor.is_meta for tenant in module_tensors(self)):
                return materialize(self, rules, device=buffer_device or "cpu", seed=seed, complete=True, strict=strict)
            loaded = any(is_loaded(tenant.tensor) for tenant in module_tensors(self))
            only = "missing" if loaded else None
            report = initialize(self, rules, seed=seed, strict=strict, complete=True, only=only)
            _make_buffers(self, report, torch.device(buffer_device) if buffer_device else None, seed)
            return report
        finally:
            busy.discard(id(self))

    return init_weights


def _check_call(model: nn.Module, device: object) -> None:
    """Raises RunError where what would be written is lost, or is not what was asked for."""
    instead = (
        f"Give {type(model).__name__} _init_weights ="
        " torchinit.integrations.transformers.init_weights(recipe, seed=...) in the body of the class"
    )
    if isinstance(device, nn.Module):  # as transformers calls _init_weights
        raise RunError(f"init_weights writes a whole model, but was called for a {type(device).__name__}. {instead}")
    refuse_while_built("init_weights")


def _make_buffers(model: nn.Module, report: Report, device: torch.device | None, seed: int) -> None:
    written = {name for record in report for name in (record.name, *record.aliases)}
    groups: dict[torch.device, list[ModuleTensor]] = defaultdict(list)
    for tenant in module_tensors(model):
        if tenant.kind == "buffer" and tenant.name not in written and not is_loaded(tenant.tensor):
            groups[device or tenant.tensor.device].append(tenant)
    failed = [name for place, group in groups.items() for name in make_buffers(model, group, place, seed).failed]
    if failed:
        raise RunError(f"{count(len(failed), 'buffer')} that no rule writes and no code of the model makes", failed)
