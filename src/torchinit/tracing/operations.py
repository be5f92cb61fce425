"""Operations: the name and the arguments of a call of torch's, as a reader would write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from torchinit._text import count, shape_text, spell

Operation: TypeAlias = torch._ops.OpOverload | str
"""An operation of torch's, or the word that stands for what is not one."""

_OMITTED = frozenset({"generator", "dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking", "out"})

_SCATTERED = frozenset(
    {
        "index_put_", "_index_put_impl_", "index_fill_", "index_copy_", "index_add_", "index_reduce_", "masked_fill_",
        "masked_scatter_", "scatter_", "scatter_add_", "scatter_reduce_", "put_", "fill_diagonal_",
    }
)  # fmt: skip


@lru_cache(maxsize=4096)
def name_of(func: Operation) -> str:
    """The name of an operation, or the word that stands for one.

    >>> name_of(torch.ops.aten.normal_.default)
    'normal_'
    """
    return func if isinstance(func, str) else func.overloadpacket.__name__


def is_scattered(func: Operation) -> bool:
    """Whether an operation writes only some elements of the tensor that it is called on."""
    return name_of(func) in _SCATTERED


@lru_cache(maxsize=4096)
def _read_slots(func: torch._ops.OpOverload, *, shown: bool = False) -> tuple[tuple[int, str, Any], ...]:
    """The arguments that an operation reads: position, name, default; ``shown`` are those that a reader cares for."""
    return tuple(
        (at, argument.name, argument.default_value)
        for at, argument in enumerate(func._schema.arguments)
        if not (argument.alias_info is not None and argument.alias_info.is_write)
        and not (shown and argument.name in _OMITTED)
    )


def arguments_of(
    func: Operation, args: Sequence[Any], kwargs: Mapping[str, Any], *, shown: bool = False
) -> dict[str, Any]:
    """The arguments of an operation besides the tensors that it writes, defaults included.

    >>> arguments_of(torch.ops.aten.normal_.default, (torch.zeros(2), 0.5), {})
    {'mean': 0.5, 'std': 1.0, 'generator': None}
    """
    if isinstance(func, str):
        return {"": args[1]} if func == "data =" else dict(kwargs)
    slots = _read_slots(func, shown=shown)
    return {name: args[at] if at < len(args) else kwargs.get(name, default) for at, name, default in slots}


def arguments_text(func: Operation, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The same, as text; tensors by their shapes, one number by itself.

    >>> arguments_text(torch.ops.aten.normal_.default, (torch.zeros(2), 0.5), {})
    'mean=0.5, std=1'
    """
    given = arguments_of(func, args, kwargs, shown=True).items()
    return ", ".join([f"{name}={_text(value)}" if name else _text(value) for name, value in given if value is not None])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Tensor):
        single = type(value) is Tensor and value.dim() == 0 and value.device.type == "cpu" and not value.is_complex()
        return spell(value.item()) if single else f"tensor of {shape_text(tuple(value.shape))}"
    if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
        return count(len(value), "tensor")
    return spell(tuple(value)) if isinstance(value, list) else spell(value)
