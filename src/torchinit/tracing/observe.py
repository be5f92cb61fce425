"""Observers: which tensors other people's code writes, seen while it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from torchinit.core.placements import is_distributed
from torchinit.tracing.operations import arguments_text, name_of
from torchinit.tracing.regions import extent


class Event(NamedTuple):
    """A write to a watched tensor: its key, the operation, the tensor that was written (it, or a view of its memory).

    Where no operation of torch's is called, ``operation`` is a word: ``"data ="``, or the name of the function
    of ``torch.nn.init`` that leaves a tensor on the meta device alone, with ``kwargs`` of what it was given.
    """

    key: int
    operation: torch._ops.OpOverload | str
    target: Tensor
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    @property
    def what(self) -> str:
        """The operation with its arguments."""
        said = arguments_text(self.operation, self.args, self.kwargs)
        return f"{name_of(self.operation)}({said})" if said else name_of(self.operation)


Told = Callable[[Event], None]
"""Called with each write."""

Copied = Callable[[Event, Tensor], None]
"""Called when a watched tensor has been copied, or another made like it: the event's target is the watched one."""

CarryOut = Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]
"""Called with an operation and its arguments instead of the operation itself."""

Registered = Callable[[nn.Module, str, object], None]
"""Called when a parameter, buffer or child is put into a module, with its name and the thing itself."""


class Watch:
    """The tensors to look out for, found by the memory they cover.

    Tensors without memory of their own (sparse ones, subclasses that wrap others) are known by identity; a
    ``DTensor`` by the memory of its local part.
    """

    def __init__(self) -> None:
        self._tensors: dict[int, tuple[int, Tensor]] = {}
        self._spans: dict[int, list[tuple[int, int, int, int]]] = {}
        self._homes: dict[int, int] = {}

    def add(self, key: int, tensor: Tensor) -> None:
        """Watches a tensor under a key; a second call with the same tensor follows it to new memory."""
        self.drop(tensor)
        # The tensor is kept so that its id is not given to another one.
        self._tensors[id(tensor)] = (key, tensor)
        memory = memory_of(tensor)
        if memory is not None:
            storage = self._homes[id(tensor)] = memory.untyped_storage()._cdata
            self._spans.setdefault(storage, []).append((*extent(memory), key, id(tensor)))

    def drop(self, tensor: Tensor) -> None:
        """Watches a tensor no longer."""
        self._tensors.pop(id(tensor), None)
        old = self._homes.pop(id(tensor), None)
        if old is not None:
            self._spans[old] = [span for span in self._spans[old] if span[3] != id(tensor)]

    def hit(self, tensor: Tensor) -> set[int]:
        """The keys of the watched tensors that share elements with this one."""
        storage = storage_of(tensor)
        spans = self._spans.get(storage) if storage is not None else None
        known = self._tensors.get(id(tensor))
        if not spans or (known and len(spans) == 1):
            return {known[0]} if known else set()
        low, high = _reach(tensor)
        found = {key for start, end, key, _ in spans if start < high and low < end}
        return found | {known[0]} if known else found

    def follow(self, tensor: Tensor) -> set[int]:
        """The key of a watched tensor that has just been given other memory."""
        known = self._tensors.get(id(tensor))
        if known is None:
            return set()
        self.add(known[0], tensor)
        return {known[0]}


def memory_of(tensor: Tensor) -> Tensor | None:
    """The plain tensor whose memory holds the values: itself, or what of a ``DTensor`` is here; None for others."""
    if type(tensor) in (Tensor, nn.Parameter):
        return tensor if tensor.layout == torch.strided else None
    return memory_of(tensor._local_tensor) if is_distributed(tensor) else None


def storage_of(tensor: Tensor) -> int | None:
    """What identifies the memory of a tensor while it lives; None where it has none of its own."""
    memory = memory_of(tensor)
    return None if memory is None else memory.untyped_storage()._cdata


def _reach(tensor: Tensor) -> tuple[int, int]:
    memory = memory_of(tensor)
    return (0, 0) if memory is None else extent(memory)


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

    def __init__(self, observer: Observer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.observer = observer

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Torch would wrap each call in what keeps its compiler away: twice the cost, and seconds to import it.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.observer.operation(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What no dispatcher sees: ``tensor.data = other``, and initializers that do nothing on the meta device."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observer = observer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func == _SET_DATA:
            return self.observer.swap(args)
        if func == _SET_ITEM and isinstance(args[2], (int, float)):
            return self.observer.set_item(args)
        result = func(*args, **(kwargs or {}))
        if func == _IS_META and result:
            self.observer.leave(args[0], sys._getframe(1))
        return result


_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]  # a descriptor, which the stubs call a tensor
_SET_ITEM = Tensor.__setitem__
_IS_META = Tensor.is_meta.__get__  # type: ignore[attr-defined]  # as above

_LEAVING = {
    function.__code__: (name, given)
    for name, function, given in (
        ("trunc_normal_", nn.init._no_grad_trunc_normal_, ("mean", "std", "a", "b")),
        ("dirac_", nn.init.dirac_, ("groups",)),
        ("orthogonal_", nn.init.orthogonal_, ("gain",)),
        ("sparse_", nn.init.sparse_, ("sparsity", "std")),
    )
}
"""The functions that look whether a tensor is on the meta device, and return if it is; what they are given."""


class Observer:
    """Tells, while it is entered, of each write to a watched tensor and of what is put into modules.

    Seen are in-place operations, ``out=``, foreach operations, writes through views and ``.data``,
    ``tensor.data = other``, ``set_``, and parameters, buffers and children assigned to any module. Not
    seen: memory written behind torch's back, for example through ``tensor.numpy()``, and what other threads
    write. ``asked`` is called before a write, and may raise instead; ``copied`` after a watched tensor has been
    copied; ``carry_out`` does the operations.

    >>> layer, seen = nn.Linear(2, 2), []
    >>> watch = Watch()
    >>> watch.add(7, layer.weight)
    >>> with Observer(watch, lambda event: seen.append((event.key, str(event.operation)))):
    ...     _ = layer.bias.data.zero_()
    ...     _ = layer.weight.data[0].fill_(1.0)
    >>> seen
    [(7, 'aten.fill_.Scalar')]
    """

    def __init__(
        self,
        watch: Watch,
        told: Told,
        registered: Registered | None = None,
        *,
        asked: Told | None = None,
        copied: Copied | None = None,
        carry_out: CarryOut | None = None,
    ) -> None:
        self.watch = watch
        self.told = told
        self.registered = registered
        self.asked = asked
        self.copied = copied
        self.carry_out = carry_out
        self._open: ExitStack | None = None
        self._number: float | None = None

    def __enter__(self) -> Observer:
        with ExitStack() as stack:
            stack.enter_context(_Functions(self))
            stack.enter_context(_Operations(self))
            for hook in _HOOKS if self.registered else ():
                stack.callback(hook(self._on_registration).remove)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is not None:
            self._open.__exit__(kind, error, trace)

    def operation(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Does one operation, and tells of what it wrote."""
        targets = written(func, args, kwargs) if _write_slots(func) else ()
        # Before the call: set_ gives the tensor another memory.
        said = (func, args, kwargs) if self._number is None else self._filled(func, args, kwargs)
        events = [Event(key, said[0], target, *said[1:]) for target in targets for key in self.watch.hit(target)]
        for event in events if self.asked is not None else ():
            self.asked(event)  # type: ignore[misc]  # not None, by the line above
        result = func(*args, **kwargs) if self.carry_out is None else self.carry_out(func, args, kwargs)
        if targets and func.overloadpacket is torch.ops.aten.set_:
            events = events or [Event(key, func, targets[0], args, kwargs) for key in self.watch.follow(targets[0])]
            self.watch.follow(targets[0])
        for event in events:
            self.told(event)
        if self.copied is not None and func in _COPYING:
            for key in self.watch.hit(args[0]):
                self.copied(Event(key, func, args[0], args, kwargs), result)
        return result

    def set_item(self, args: Sequence[Any]) -> Any:
        """Does ``tensor[index] = number``, and keeps the number in mind."""
        self._number = args[2]
        try:
            return _SET_ITEM(*args)
        finally:
            self._number = None

    def _filled(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """What is done within ``tensor[index] = number``: on meta a tensor is copied that does not tell the number."""
        if func is not torch.ops.aten.copy_.default:
            return func, args, kwargs
        return torch.ops.aten.fill_.Scalar, (args[0], self._number), {}

    def swap(self, args: Sequence[Any]) -> Any:
        """Does ``tensor.data = other``, and tells of it."""
        event = Event(-1, "data =", args[0], args, {})
        for key in self.watch.hit(args[0]) if self.asked is not None else ():
            self.asked(event._replace(key=key))  # type: ignore[misc]  # not None, by the line above
        result = _SET_DATA(*args)
        for key in self.watch.follow(args[0]):
            self.told(event._replace(key=key))
        return result

    def leave(self, tensor: Tensor, frame: FrameType) -> None:
        """Tells of an initializer that looks at the device of a tensor and is going to leave it alone."""
        name, given = _LEAVING.get(frame.f_code, ("", ()))
        for key in self.watch.hit(tensor) if name else ():
            held = frame.f_locals
            event = Event(key, name, tensor, (), {argument: held[argument] for argument in given})
            if self.asked is not None:
                self.asked(event)
            self.told(event)

    def _on_registration(self, module: nn.Module, name: str, value: object) -> None:
        if self.registered is not None and value is not None:
            self.registered(module, name, value)


_COPYING = frozenset({torch.ops.aten.empty_like.default, torch.ops.aten._to_copy.default})

_HOOKS: tuple[Callable[..., Any], ...] = (
    hooks.register_module_parameter_registration_hook,
    hooks.register_module_buffer_registration_hook,
    hooks.register_module_module_registration_hook,
)
