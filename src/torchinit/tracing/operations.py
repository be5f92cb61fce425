"""Operations of torch: how to intercept them, their names, what they read and what they write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from torchinit._spelling import spell
from torchinit._text import shape_text
from torchinit.errors import count

Operation: TypeAlias = torch._ops.OpOverload | str
"""An operation of torch, or the word that stands for something else that writes."""

Execute: TypeAlias = Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]
"""Called with an operation or function of torch and its arguments, in its place."""

_OMITTED = frozenset({"generator", "dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking", "out"})


class OperationMode(TorchDispatchMode):
    """Hands over every operation that reaches the dispatcher: in place, out=, foreach, through views and ``.data``."""

    def __init__(self, execute: Execute) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.execute = execute

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Torch would wrap each call in what keeps its compiler away: twice the cost, and seconds to import it.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.execute(func, args, kwargs or {})


class FunctionMode(TorchFunctionMode):
    """Hands over every function of torch that takes a tensor; some of them never reach the dispatcher."""

    def __init__(self, execute: Execute) -> None:
        super().__init__()
        self.execute = execute

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.execute(func, args, kwargs or {})


@lru_cache(maxsize=4096)
def name_of(func: Operation) -> str:
    """The name of an operation, or the word that stands for one.

    >>> name_of(torch.ops.aten.normal_.default)
    'normal_'
    """
    return func if isinstance(func, str) else func.overloadpacket.__name__


@lru_cache(maxsize=4096)
def _slots(func: torch._ops.OpOverload, *, written: bool) -> tuple[tuple[int, str, Any], ...]:
    """The arguments that an operation writes, or those that it reads: position, name, default."""
    return tuple(
        (at, argument.name, argument.default_value)
        for at, argument in enumerate(func._schema.arguments)
        if (argument.alias_info is not None and argument.alias_info.is_write) == written
    )


def written_by(func: torch._ops.OpOverload, args: Sequence[object], kwargs: Mapping[str, object]) -> list[Tensor]:
    """The tensors that a call of an operation writes.

    >>> x = torch.zeros(2)
    >>> written_by(torch.ops.aten.fill_.Scalar, (x, 1.0), {})[0] is x
    True
    """
    found: list[Tensor] = []
    for at, name, _ in _slots(func, written=True):
        value = args[at] if at < len(args) else kwargs.get(name)
        values = value if isinstance(value, (list, tuple)) else (value,)
        found += [item for item in values if isinstance(item, Tensor)]
    return found


def arguments_of(func: Operation, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an operation besides the tensors that it writes, defaults included.

    >>> arguments_of(torch.ops.aten.normal_.default, (torch.zeros(2), 0.5), {})
    {'mean': 0.5, 'std': 1.0, 'generator': None}
    """
    if isinstance(func, str):
        return {"": args[1]} if func == "data =" else dict(kwargs)
    slots = _slots(func, written=False)
    return {name: args[at] if at < len(args) else kwargs.get(name, default) for at, name, default in slots}


def arguments_text(func: Operation, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The arguments that a reader cares for, as text; tensors by their shapes, one number by itself.

    >>> arguments_text(torch.ops.aten.normal_.default, (torch.zeros(2), 0.5), {})
    'mean=0.5, std=1'
    """
    values = arguments_of(func, args, kwargs).items()
    given = [(name, _text(value)) for name, value in values if value is not None and name not in _OMITTED]
    return ", ".join([f"{name}={text}" if name else text for name, text in given])


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        single = type(value) is Tensor and value.dim() == 0 and value.device.type == "cpu" and not value.is_complex()
        return spell(value.item()) if single else f"tensor of {shape_text(tuple(value.shape))}"
    if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
        return count(len(value), "tensor")
    return spell(tuple(value)) if isinstance(value, list) else spell(value)
