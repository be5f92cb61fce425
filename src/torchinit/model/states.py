"""States: whether a fill can be written to a tensor, and why not."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchinit.model.constructors import intent
from torchinit.model.dtensor import local_part
from torchinit.model.storage import overlaps
from torchinit.model.traversal import HeldTensor

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
