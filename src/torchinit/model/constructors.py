"""Constructors: the arguments that a module keeps of those it was made with, and the shapes that they give it."""

from __future__ import annotations

import inspect
import warnings
from contextlib import suppress
from contextvars import ContextVar
from inspect import Parameter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

_BUILDING: ContextVar[bool] = ContextVar("torchinit_building_a_twin", default=False)


class Intent(NamedTuple):
    """A layer as code spells it, and the shape and dtype that its own numbers give one of its tensors."""

    layer: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


def kept_arguments(module: nn.Module, cls: type) -> dict[str, Any] | None:
    """The arguments for the constructor of a class, which the module keeps under their own names; None if it does not.

    What a layer of torch does not keep has its default, since that changes no shape (``bias``).
    """
    kept = {}
    has_defaults = cls.__module__.startswith("torch.")
    for parameter in _parameters(cls):
        is_optional = parameter.name in ("device", "dtype") or (
            has_defaults and parameter.default is not Parameter.empty
        )
        if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            return None
        if parameter.name in vars(module):
            kept[parameter.name] = vars(module)[parameter.name]
        elif not is_optional:
            return None
    return kept


def intent(module: nn.Module, leaf: str) -> Intent | None:
    """The layer that a module's own numbers describe, with one of its tensors; None where nobody can tell.

    Whatever the tensor is now. A second module is built on the meta device from the arguments that this one keeps: by
    its own class, or by the nearest class above that it keeps the arguments of.

    >>> layer = nn.Linear(2, 3)
    >>> layer.weight.data = torch.empty(0)
    >>> intent(layer, "weight")
    Intent(layer='Linear(2, 3)', shape=(3, 2), dtype=torch.float32)
    """
    if _BUILDING.get():  # a constructor that makes a plan of its own
        return None
    for cls in type(module).__mro__:
        arguments = kept_arguments(module, cls) if "__init__" in vars(cls) and cls is not nn.Module else None
        if arguments is not None:
            tensor = getattr(_twin(cls, arguments), leaf, None)
            if isinstance(tensor, Tensor):
                return Intent(_call(module, cls, arguments), tuple(tensor.shape), tensor.dtype)
    return None


def _twin(cls: type, arguments: dict[str, Any]) -> object:
    token = _BUILDING.set(True)
    quiet = warnings.catch_warnings(action="ignore")  # torch warns of what is to be empty
    try:
        with suppress(Exception), quiet, torch.random.fork_rng(devices=[]), torch.device("meta"):  # user code
            return cls(**{name: value for name, value in arguments.items() if name != "device"})
        return None
    finally:
        _BUILDING.reset(token)


def _call(module: nn.Module, cls: type, arguments: dict[str, Any]) -> str:
    """The call that makes the layer, with the arguments that have no default."""
    name = type_before_parametrizations(module).__name__
    values = [arguments[parameter.name] for parameter in _parameters(cls) if parameter.default is Parameter.empty]
    return f"{name}({', '.join(repr(value) for value in values if value != name)})"  # nn.RNNBase gets its own name


def _parameters(cls: type) -> list[Parameter]:
    """The parameters of a class's constructor, read off the method: a metaclass may hide them."""
    try:
        return list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]  # of this very class
    except (TypeError, ValueError):  # it is not written in Python
        return [Parameter("unknown", Parameter.VAR_POSITIONAL)]
