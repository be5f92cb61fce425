"""Stand-ins: a model for other people's code to work on, with nothing in it that this code could spoil."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from torchinit.distributed.allocation import Tenant
from torchinit.model.dtensor import is_distributed, local_part
from torchinit.model.sandbox import Poison

Values = Mapping[tuple[nn.Module, str], Tensor]
"""Buffers, by the module that holds them and the name that it has for them."""

POISONS: tuple[Poison, ...] = (Poison(torch.nan, 1), Poison(1.5, 0))
"""What buffers hold before: for floats, and for integers. What other code left alone differs after two runs."""


_STANDING_IN: ContextVar[bool] = ContextVar("torchinit_standing_in", default=False)


def is_standing_in() -> bool:
    """Whether code is being run on a stand-in, for its buffers alone."""
    return _STANDING_IN.get()


@contextmanager
def standing_in(scope: nn.Module, wanted: list[Tenant], poison: Poison, device: torch.device) -> Iterator[None]:
    """Lets code run on a module: its parameters are on the meta device, and the wanted buffers hold poison.

    After it the modules have their attributes and tensors back.
    """
    modules = list(scope.modules())
    before = [_kept(module) for module in modules]
    poisoned = {(one.module, one.leaf) for one in wanted}
    token = _STANDING_IN.set(True)
    try:
        for module in modules:
            for leaf, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[leaf] = nn.Parameter(_sketch(parameter), requires_grad=parameter.requires_grad)
            for leaf, buffer in module._buffers.items():
                if buffer is not None:
                    wanting = (module, leaf) in poisoned
                    module._buffers[leaf] = _poisoned(buffer, poison, device) if wanting else _copy(buffer)
        yield
    finally:
        _STANDING_IN.reset(token)
        for module, kept in zip(modules, before, strict=True):
            _give_back(module, kept)


def _kept(module: nn.Module) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    return dict(module.__dict__), {home: dict(module.__dict__[home]) for home in _HOMES}


def _give_back(module: nn.Module, kept: tuple[dict[str, Any], dict[str, dict[str, Any]]]) -> None:
    attributes, homes = kept
    module.__dict__.clear()
    module.__dict__.update(attributes)
    for home, content in homes.items():
        module.__dict__[home].clear()
        module.__dict__[home].update(content)


_HOMES = ("_parameters", "_buffers", "_modules")


def _sketch(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _poisoned(buffer: Tensor, poison: Poison, device: torch.device) -> Tensor:
    return torch.full(buffer.shape, poison.of(buffer.dtype), dtype=buffer.dtype, device=device)


def _copy(buffer: Tensor) -> Tensor:
    """A buffer that has its values already; a part of one is of no use to code that knows nothing of parts."""
    local = local_part(buffer)
    whole = not is_distributed(buffer) or tuple(local.shape) == tuple(buffer.shape)
    return local.clone() if whole else _sketch(buffer)


@contextmanager
def light_parameters() -> Iterator[None]:
    """Constructors that run inside keep no parameter's memory, only its description."""

    def lighter(_: nn.Module, __: str, parameter: Any) -> Any:
        if parameter is None or parameter.is_meta:  # one that is tied comes by a second time
            return None
        return nn.Parameter(_sketch(parameter), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(lighter)
    try:
        yield
    finally:
        handle.remove()


def twice(work: Callable[[Poison], Values]) -> dict[tuple[nn.Module, str], Tensor]:
    """The buffers that hold the same after runs from two different poisons: those that the work wrote whole."""
    first, second = (work(poison) for poison in POISONS)
    return {place: value for place, value in first.items() if place in second and _same(value, second[place])}


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and not (one.is_meta or other.is_meta) and torch.equal(one, other)
