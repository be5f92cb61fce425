"""States: whether a fill can be written to a tensor, and why not; and what its layer's own numbers say of it."""

from __future__ import annotations

import inspect
import math
import warnings
from contextlib import suppress
from contextvars import ContextVar
from inspect import Parameter
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations

from torchinit.model.dtensor import local_part
from torchinit.model.storage import overlaps
from torchinit.model.traversal import HeldTensor

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
    # Layers of torch keep the arguments of their constructor under the same names, so a second one can be made. A
    # subclass with a constructor of its own often does not: then the class above it is asked, which mostly is the one
    # that made the tensor. It can fail where an attribute was changed afterwards, or means something else than the
    # argument of that name.
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


State: TypeAlias = Literal[
    "ready", "integer", "quantized", "sparse", "lazy", "inference", "overlapping", "fixed", "flat"
]

WHY: dict[State, str] = {
    "integer": "holds whole numbers",
    "quantized": "is quantized",
    "sparse": "is a sparse tensor",
    "lazy": "has no shape yet: run the model once on an example",
    "inference": "was made in inference mode and cannot be written: build the model outside of it",
    "overlapping": "has elements that share memory (an expanded tensor?): give it memory of its own",
    "flat": (
        "is a piece of what FSDP1 has flattened: give values before it wraps the model, or while it does"
        " (param_init_fn), or use fully_shard (FSDP2)"
    ),
    "fixed": "is computed by a parametrization without right_inverse, so no value can be given to it",
}
"""The meaning of each state that a fill cannot work on, and the way out where there is one."""

WAYS_OUT: dict[State, str] = {
    "integer": "load it (Pretrained), or make it a buffer",
    "quantized": "initialize the model before it is quantized",
    "sparse": "initialize it while it is dense",
}
"""The ways to give a parameter values where no rule can."""

EMPTY = "has no elements"
DS_SHAPE = " (ds_shape"
"""In a reason: DeepSpeed says so itself, so that it is certain."""

_GATHERED = "deepspeed.zero.GatheredParameters([*model.parameters()], modifier_rank=0)"
REGISTER_NONE = ": gather it first if it is partitioned, or register None in its place if it is to have none"


def missing_from(entry: HeldTensor) -> str:
    """All that is known of a parameter without elements; nothing where its layer gives it none.

    DeepSpeed leaves an empty tensor where it has partitioned a parameter, and notes its shape in ``ds_shape``.
    """
    whole, intended = getattr(entry.tensor, "ds_shape", None), intent(entry.place.module, entry.leaf)
    shape = intended.shape if whole is None and intended else whole
    if shape is None:
        return EMPTY + REGISTER_NONE
    if not math.prod(shape):
        return ""
    layer = f", but its {intended.layer} has {math.prod(intended.shape):,}" if intended else ""
    if whole is not None:
        return f"{EMPTY}{layer}: it is partitioned{DS_SHAPE} {tuple(whole)}). Write it within {_GATHERED}"
    return f"{EMPTY}{layer}: is it partitioned? gather it first"


def state_of(tensor: Tensor) -> State:
    """The state of a tensor that a module holds."""
    # Nearly all tensors are ready, which this tells at once. The order of the rest matters: what is lazy has no more to
    # be asked, and packed numbers are floating by their dtype.
    is_usual = type(tensor) is nn.Parameter and tensor.dtype in _USUAL and tensor.layout is torch.strided
    if is_usual and tensor.is_contiguous() and not tensor.is_inference():
        return "ready"
    if is_lazy(tensor):
        return "lazy"
    if tensor.is_quantized or tensor.dtype in _PACKED:
        return "quantized"
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return "integer"
    if tensor.layout != torch.strided:
        return "sparse"
    if local_part(tensor).is_inference():
        return "inference"
    return "overlapping" if overlaps(tensor) else "ready"


_USUAL = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))

_PACKED = {getattr(torch, name, None) for name in ("float4_e2m1fn_x2", "float8_e8m0fnu")}
"""Floating by name, but two numbers an element, or powers of two that scale the blocks of another tensor."""
