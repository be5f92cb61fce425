"""Modules: all of a model and what they hold, in torch's order, in half of the time that torch's own way takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from torch import Tensor, nn

_T = TypeVar("_T", bound=Tensor)

# ``Module.modules``, ``named_parameters`` and their kin go through a generator for each module that lies above; here
# there is one list. They may be overridden, as by FSDP: where names are asked for, the class has its say.


def modules_of(top: nn.Module) -> list[nn.Module]:
    """A module and all below it, each once, in the order of ``Module.modules``."""
    found: dict[nn.Module, None] = {}
    waiting = [top]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            if module._modules:
                waiting += [child for child in reversed([*module._modules.values()]) if child is not None]
    return [*found]


def parameters_of(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters that modules hold, each once, in the order of ``Module.parameters``."""
    held = (parameter for module in modules for parameter in module._parameters.values() if parameter is not None)
    return [*{id(each): each for each in held}.values()]


def tensors_of(top: nn.Module) -> list[Tensor]:
    """The parameters and buffers of a module and of all below it, as often as modules hold them."""
    tensors: list[Tensor | None] = []
    for module in modules_of(top):
        tensors += module._parameters.values()
        tensors += module._buffers.values()
    return [tensor for tensor in tensors if tensor is not None]


def part_ids(top: nn.Module) -> list[int]:
    """Which tensors and modules a model consists of: if it is the same later, nothing was put into it."""
    return [
        id(part)
        for module in modules_of(top)
        for parts in (module._parameters, module._buffers, module._modules)
        if parts
        for part in parts.values()
    ]


def named_tensors(top: nn.Module) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, Tensor]]]:
    """The parameters and the buffers of a module and of all below it, as ``named_parameters`` and its kin list them.

    >>> named_tensors(nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2, affine=False)))[0][0][0]
    '0.weight'
    """
    cls = type(top)
    if any(getattr(cls, method) is not getattr(nn.Module, method) for method in _METHODS):
        return list(top.named_parameters()), list(top.named_buffers())
    named = [*_named(top)]
    parameters = _once((prefix, module._parameters) for prefix, module in named)
    return parameters, _once((prefix, module._buffers) for prefix, module in named if module._buffers)


def _once(held: Iterable[tuple[str, Mapping[str, _T | None]]]) -> list[tuple[str, _T]]:
    """The tensors under the first of their names."""
    found: dict[int, tuple[str, _T]] = {}  # by id, since a tensor takes long to hash
    for prefix, tensors in held:
        for leaf, tensor in tensors.items():
            if tensor is not None and id(tensor) not in found:
                found[id(tensor)] = (prefix + leaf, tensor)
    return [*found.values()]


_METHODS = ("named_modules", "named_parameters", "named_buffers")


def _named(top: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A module and all below it, each with the beginning of the names of what it holds."""
    seen: set[nn.Module] = set()
    waiting = [("", top)]
    while waiting:
        prefix, module = waiting.pop()
        if module not in seen:
            seen.add(module)
            yield prefix, module
            if module._modules:
                children = reversed([*module._modules.items()])
                waiting += [(f"{prefix}{name}.", child) for name, child in children if child is not None]
