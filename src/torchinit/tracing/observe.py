"""Observers: which tensors other people's code writes, seen while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Told = Callable[[int], None]
"""Called with the key of a watched tensor when it is written."""

Registered = Callable[[nn.Module, str, object], None]
"""Called when a parameter, buffer or child is put into a module, with its name and the thing itself."""


class Watch:
    """The tensors to look out for, found by the memory they cover.

    Tensors without memory of their own (sparse ones, subclasses that wrap others) are known by identity.
    """

    def __init__(self) -> None:
        self._tensors: dict[int, tuple[int, Tensor]] = {}
        self._spans: dict[int, list[tuple[int, int, int]]] = {}
        self._homes: dict[int, int] = {}

    def add(self, key: int, tensor: Tensor) -> None:
        """Watches a tensor under a key; a second call with the same tensor follows it to new memory."""
        # The tensor is kept so that its id is not given to another one.
        self._tensors[id(tensor)] = (key, tensor)
        storage = storage_of(tensor)
        old = self._homes.pop(id(tensor), None)
        if old is not None:
            self._spans[old] = [span for span in self._spans[old] if span[2] != key]
        if storage is not None:
            self._homes[id(tensor)] = storage
            self._spans.setdefault(storage, []).append((*extent(tensor), key))

    def hit(self, tensor: Tensor) -> set[int]:
        """The keys of the watched tensors that share elements with this one."""
        storage = storage_of(tensor)
        found = set()
        if storage in self._spans and storage is not None:
            low, high = extent(tensor)
            found = {key for start, end, key in self._spans[storage] if start < high and low < end}
        known = self._tensors.get(id(tensor))
        return found | {known[0]} if known else found

    def follow(self, tensor: Tensor) -> set[int]:
        """The key of a watched tensor that has just been given other memory."""
        known = self._tensors.get(id(tensor))
        if known is None:
            return set()
        self.add(known[0], tensor)
        return {known[0]}


def storage_of(tensor: Tensor) -> int | None:
    """What identifies the memory of a tensor while it lives; None where it has none of its own."""
    if tensor.layout != torch.strided or type(tensor) not in (Tensor, nn.Parameter):
        return None
    home: int = tensor.untyped_storage()._cdata
    return home


def extent(tensor: Tensor) -> tuple[int, int]:
    """The first byte of its storage that a tensor reaches, and the one after the last."""
    if not tensor.numel():
        return 0, 0
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first, size = int(tensor.storage_offset()), tensor.element_size()
    return first * size, (first + reach) * size


@lru_cache(maxsize=4096)
def _write_slots(func: torch._ops.OpOverload) -> tuple[tuple[int, str], ...]:
    """Where an operation takes the tensors that it writes: position and name."""
    arguments = func._schema.arguments
    return tuple(
        (at, argument.name)
        for at, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def written(func: torch._ops.OpOverload, args: Sequence[object], kwargs: Mapping[str, object]) -> list[Tensor]:
    """The tensors that a call of an operation writes.

    >>> x = torch.zeros(2)
    >>> written(torch.ops.aten.fill_.Scalar, (x, 1.0), {})[0] is x
    True
    """
    found: list[Tensor] = []
    for at, name in _write_slots(func):
        value = args[at] if at < len(args) else kwargs.get(name)
        values = value if isinstance(value, (list, tuple)) else (value,)
        found += [item for item in values if isinstance(item, Tensor)]
    return found


class _Operations(TorchDispatchMode):
    """Every operation that reaches the dispatcher: in place, out=, foreach, through views and ``.data``."""

    def __init__(self, watch: Watch, told: Told) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watch = watch
        self.told = told

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        targets = written(func, args, kwargs or {})
        # Before the call: set_ gives the tensor another memory.
        keys = {key for target in targets for key in self.watch.hit(target)}
        result = func(*args, **(kwargs or {}))
        for target in targets if func.overloadpacket is torch.ops.aten.set_ else ():
            keys |= self.watch.follow(target)
        for key in keys:
            self.told(key)
        return result


class _Swaps(TorchFunctionMode):
    """``tensor.data = other``, which no dispatcher sees."""

    def __init__(self, watch: Watch, told: Told) -> None:
        super().__init__()
        self.watch = watch
        self.told = told

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func == _SET_DATA:
            for key in self.watch.follow(args[0]):
                self.told(key)
        return result


_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]  # a descriptor, which the stubs call a tensor


class Observer:
    """Tells, while it is entered, of each write to a watched tensor and of what is put into modules.

    Seen are in-place operations, ``out=``, foreach operations, writes through views and ``.data``,
    ``tensor.data = other``, ``set_``, and parameters, buffers and children assigned to any module. Not
    seen: memory written behind torch's back, for example through ``tensor.numpy()``.

    >>> layer, seen = nn.Linear(2, 2), []
    >>> watch = Watch()
    >>> watch.add(7, layer.weight)
    >>> with Observer(watch, seen.append):
    ...     _ = layer.bias.data.zero_()
    ...     _ = layer.weight.data[0].fill_(1.0)
    >>> seen
    [7]
    """

    def __init__(self, watch: Watch, told: Told, registered: Registered | None = None) -> None:
        self.watch = watch
        self.told = told
        self.registered = registered
        self._open: ExitStack | None = None

    def __enter__(self) -> Observer:
        with ExitStack() as stack:
            stack.enter_context(_Swaps(self.watch, self.told))
            stack.enter_context(_Operations(self.watch, self.told))
            for hook in _HOOKS if self.registered else ():
                stack.callback(hook(self._on_registration).remove)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is not None:
            self._open.__exit__(kind, error, trace)

    def _on_registration(self, module: nn.Module, name: str, value: object) -> None:
        if self.registered is not None and value is not None:
            self.registered(module, name, value)


_HOOKS: tuple[Callable[..., Any], ...] = (
    hooks.register_module_parameter_registration_hook,
    hooks.register_module_buffer_registration_hook,
    hooks.register_module_module_registration_hook,
)
