"""Constructors: what a module keeps of the arguments that it was made with, and what shapes they give its tensors."""

from __future__ import annotations

import inspect
import warnings
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

_BUILDING: ContextVar[bool] = ContextVar("torchinit_building_a_twin", default=False)


class Intent(NamedTuple):
    """A layer as one writes it, and the shape that its own numbers give one of its tensors."""

    layer: str
    shape: tuple[int, ...]


def kept_arguments(module: nn.Module, cls: type) -> dict[str, Any] | None:
    """The arguments for the constructor of a class, which the module keeps under their own names; None if it does not.

    What a layer of torch does not keep has its default, since that changes no shape (``bias``).

    >>> kept_arguments(nn.Linear(2, 3), nn.Linear)
    {'in_features': 2, 'out_features': 3}
    """
    found = {}
    for one in _parameters(cls):
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            return None
        if one.name in module.__dict__:
            found[one.name] = module.__dict__[one.name]
        elif one.name not in ("device", "dtype") and (one.default is one.empty or not _is_of_torch(cls)):
            return None
    return found


def intent(module: nn.Module, leaf: str) -> Intent | None:
    """What a module's own numbers say of one of its tensors, whatever the tensor is now; None where nobody can tell.

    A second one is built on the meta device from the arguments that the module keeps: by its own class, or by the
    nearest class above that it keeps the arguments of.

    >>> layer = nn.Linear(2, 3)
    >>> layer.weight.data = torch.empty(0)
    >>> intent(layer, "weight")
    Intent(layer='Linear(2, 3)', shape=(3, 2))
    """
    if _BUILDING.get():  # a constructor that makes a plan of its own
        return None
    for cls in type(module).__mro__:
        arguments = kept_arguments(module, cls) if "__init__" in vars(cls) and cls is not nn.Module else None
        if arguments is not None:
            tensor = getattr(_twin(cls, arguments), leaf, None)
            if isinstance(tensor, Tensor):
                return Intent(_written(module, cls, arguments), tuple(tensor.shape))
    return None


def _twin(cls: type, arguments: dict[str, Any]) -> object:
    token = _BUILDING.set(True)
    try:
        # Other people's code: whatever goes wrong in it, nothing is known then; and torch warns of what is to be empty.
        with suppress(Exception), warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.device("meta"):
            warnings.simplefilter("ignore")
            return cls(**{name: value for name, value in arguments.items() if name != "device"})
        return None
    finally:
        _BUILDING.reset(token)


def _written(module: nn.Module, cls: type, arguments: dict[str, Any]) -> str:
    """The call that makes the layer, with the arguments that have no default."""
    name = type_before_parametrizations(module).__name__
    values = [arguments[one.name] for one in _parameters(cls) if one.default is one.empty]
    return f"{name}({', '.join(repr(value) for value in values if value != name)})"  # nn.RNNBase is told its own name


def _parameters(cls: type) -> list[inspect.Parameter]:
    """The parameters of a class's constructor, read off the method: a metaclass may hide them."""
    try:
        return list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]  # of this very class
    except (TypeError, ValueError):  # it is not written in Python
        return [inspect.Parameter("unknown", inspect.Parameter.VAR_POSITIONAL)]


def _is_of_torch(cls: type) -> bool:
    return cls.__module__.startswith("torch.")
