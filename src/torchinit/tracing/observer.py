"""The observer: which watched tensors other people's code writes, seen while it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from types import FrameType, TracebackType
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from torchinit.tracing.operations import Operation, arguments_text, name_of
from torchinit.tracing.regions import MemoryIndex


class Event(NamedTuple):
    """A write to a watched tensor: its key, the operation, the tensor that was written (it, or a view of its memory).

    Where no operation of torch's is called, ``operation`` is a word: ``"data ="``, or the name of the function
    of ``torch.nn.init`` that leaves a tensor on the meta device alone, with ``kwargs`` of what it was given.
    """

    key: int
    operation: Operation
    target: Tensor
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    @property
    def arguments(self) -> str:
        """The arguments of the operation, as text."""
        return arguments_text(self.operation, self.args, self.kwargs)

    @property
    def what(self) -> str:
        """The operation with its arguments."""
        arguments = self.arguments
        return f"{name_of(self.operation)}({arguments})" if arguments else name_of(self.operation)


Listener: TypeAlias = Callable[[Event], None]
CopyListener: TypeAlias = Callable[[Event, Tensor], None]
RegistrationListener: TypeAlias = Callable[[nn.Module, str, object], None]
Execute: TypeAlias = Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]


@lru_cache(maxsize=4096)
def _write_slots(func: torch._ops.OpOverload) -> tuple[tuple[int, str], ...]:
    """Where an operation takes the tensors that it writes: position and name."""
    arguments = func._schema.arguments
    return tuple(
        (at, argument.name)
        for at, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def written_by(func: torch._ops.OpOverload, args: Sequence[object], kwargs: Mapping[str, object]) -> list[Tensor]:
    """The tensors that a call of an operation writes.

    >>> x = torch.zeros(2)
    >>> written_by(torch.ops.aten.fill_.Scalar, (x, 1.0), {})[0] is x
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
    """The writes that no dispatcher sees: ``tensor.data = other``, and initializers that leave meta tensors alone."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observer = observer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func == _SET_DATA:
            return self.observer.set_data(args)
        if func == _SET_ITEM and isinstance(args[2], (int, float)):
            return self.observer.set_item(args)
        result = func(*args, **(kwargs or {}))
        if func == _IS_META and result:
            self.observer.skip_meta(args[0], sys._getframe(1))
        return result


_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]  # a descriptor, which the stubs call a tensor
_SET_ITEM = Tensor.__setitem__
_IS_META = Tensor.is_meta.__get__  # type: ignore[attr-defined]  # as above

_SKIPPING_META: Final = {
    function.__code__: (name, given)
    for name, function, given in (
        ("trunc_normal_", nn.init._no_grad_trunc_normal_, ("mean", "std", "a", "b")),
        ("dirac_", nn.init.dirac_, ("groups",)),
        ("orthogonal_", nn.init.orthogonal_, ("gain",)),
        ("sparse_", nn.init.sparse_, ("sparsity", "std")),
    )
}
"""The functions that look whether a tensor is on the meta device, and return if it is; what they are given."""

_COPYING = frozenset({torch.ops.aten.empty_like.default, torch.ops.aten._to_copy.default})

_HOOKS: tuple[Callable[..., Any], ...] = (
    hooks.register_module_parameter_registration_hook,
    hooks.register_module_buffer_registration_hook,
    hooks.register_module_module_registration_hook,
)


class Observer:
    """Tells, while it is entered, of each write to a watched tensor and of what is put into modules.

    Seen are in-place operations, ``out=``, foreach operations, writes through views and ``.data``,
    ``tensor.data = other``, ``set_``, and parameters, buffers and children assigned to any module. Not
    seen: memory written behind torch's back, for example through ``tensor.numpy()``, and what other threads
    write. ``before_write`` may raise instead of a write; ``on_copy`` is told when a watched tensor has been copied, or
    another made like it, with the copy; ``execute`` does the operations in torch's place.

    >>> layer, seen = nn.Linear(2, 2), []
    >>> index = MemoryIndex()
    >>> index.add(7, layer.weight)
    >>> with Observer(index, lambda event: seen.append((event.key, str(event.operation)))):
    ...     _ = layer.bias.data.zero_()
    ...     _ = layer.weight.data[0].fill_(1.0)
    >>> seen
    [(7, 'aten.fill_.Scalar')]
    """

    def __init__(
        self,
        index: MemoryIndex,
        on_write: Listener,
        on_registration: RegistrationListener | None = None,
        *,
        before_write: Listener = lambda _: None,
        on_copy: CopyListener | None = None,
        execute: Execute | None = None,
    ) -> None:
        self.index = index
        self.on_write = on_write
        self.on_registration = on_registration
        self.before_write = before_write
        self.on_copy = on_copy
        self.execute = execute
        self._open: ExitStack | None = None
        self._number: float | None = None

    def __enter__(self) -> Observer:
        with ExitStack() as stack:
            stack.enter_context(_Functions(self))
            stack.enter_context(_Operations(self))
            for hook in _HOOKS if self.on_registration else ():
                stack.callback(hook(self._register).remove)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is not None:
            self._open.__exit__(kind, error, trace)

    def operation(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Do one operation, and tell of what it wrote."""
        targets = written_by(func, args, kwargs) if _write_slots(func) else ()
        # Before the call: set_ gives the tensor another memory.
        call = (func, args, kwargs) if self._number is None else self._fill_call(func, args, kwargs)
        events = [Event(key, call[0], target, *call[1:]) for target in targets for key in self.index.find(target)]
        for event in events:
            self.before_write(event)
        result = func(*args, **kwargs) if self.execute is None else self.execute(func, args, kwargs)
        if targets and func.overloadpacket is torch.ops.aten.set_:
            events = events or [Event(key, func, targets[0], args, kwargs) for key in self.index.follow(targets[0])]
            self.index.follow(targets[0])
        for event in events:
            self.on_write(event)
        if self.on_copy is not None and func in _COPYING:
            for key in self.index.find(args[0]):
                self.on_copy(Event(key, func, args[0], args, kwargs), result)
        return result

    def set_item(self, args: Sequence[Any]) -> Any:
        """Do ``tensor[index] = number``, and keep the number in mind."""
        self._number = args[2]
        try:
            return _SET_ITEM(*args)
        finally:
            self._number = None

    def _fill_call(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The call within ``tensor[index] = number``: on meta a tensor is copied that does not tell the number."""
        if func is not torch.ops.aten.copy_.default:
            return func, args, kwargs
        return torch.ops.aten.fill_.Scalar, (args[0], self._number), {}

    def set_data(self, args: Sequence[Any]) -> Any:
        """Do ``tensor.data = other``, and tell of it."""
        event = Event(-1, "data =", args[0], args, {})
        for key in self.index.find(args[0]):
            self.before_write(event._replace(key=key))
        result = _SET_DATA(*args)
        for key in self.index.follow(args[0]):
            self.on_write(event._replace(key=key))
        return result

    def skip_meta(self, tensor: Tensor, frame: FrameType) -> None:
        """Tell of an initializer that looks at the device of a tensor and is going to leave it alone."""
        name, given = _SKIPPING_META.get(frame.f_code, ("", ()))
        for key in self.index.find(tensor) if name else ():
            values = frame.f_locals
            event = Event(key, name, tensor, (), {argument: values[argument] for argument in given})
            self.before_write(event)
            self.on_write(event)

    def _register(self, module: nn.Module, name: str, value: object) -> None:
        if self.on_registration is not None and value is not None:
            self.on_registration(module, name, value)
