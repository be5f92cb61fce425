"""The observer: which watched tensors foreign code writes, seen while it runs, or told of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from torchinit._frozen import made
from torchinit._text import count, shape_text, short_repr
from torchinit.model.sandbox import OperationMode
from torchinit.tracing.regions import MemoryIndex
from torchinit.tracing.source_lines import frame_of_caller
from torchinit.tracing.uninitialized import WATCHED

Operation: TypeAlias = torch._ops.OpOverload | str
"""An operation of torch, or the word that stands for something else that writes."""

Execute: TypeAlias = Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]
"""Called with an operation or function of torch and its arguments, in its place."""

_OMITTED = frozenset({"generator", "dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking", "out"})


class FunctionMode(TorchFunctionMode):
    """Hands over every function of torch that takes a tensor; some of them never reach the dispatcher."""

    def __init__(self, execute: Execute) -> None:
        super().__init__()
        self.execute = execute

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.execute(func, args, kwargs or {})


class _OperationFacts(NamedTuple):
    """The name of an operation, and the arguments that it writes and that it reads: position, name, default."""

    func: torch._ops.OpOverload
    name: str
    written: tuple[tuple[int, str, Any], ...]
    read: tuple[tuple[int, str, Any], ...]

    @classmethod
    def of(cls, func: torch._ops.OpOverload) -> _OperationFacts:
        slots: dict[bool, list[tuple[int, str, Any]]] = {True: [], False: []}
        for at, argument in enumerate(func._schema.arguments):
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            slots[is_written].append((at, argument.name, argument.default_value))
        return cls(func, func.overloadpacket.__name__, tuple(slots[True]), tuple(slots[False]))


_KNOWN: dict[int, _OperationFacts] = {}
"""By the id of the operation, which is kept so that its id is not given to another: to hash one takes longer."""


def _facts_of(func: torch._ops.OpOverload) -> _OperationFacts:
    known = _KNOWN.get(id(func))
    if known is None:
        known = _KNOWN[id(func)] = _OperationFacts.of(func)
    return known


def name_of(func: Operation) -> str:
    """The name of an operation, or the word that stands for one."""
    return func if isinstance(func, str) else _facts_of(func).name


def written_by(func: torch._ops.OpOverload, args: Sequence[object], kwargs: Mapping[str, object]) -> list[Tensor]:
    """The tensors that a call of an operation writes."""
    found: list[Tensor] = []
    for at, name, _ in _facts_of(func).written:
        value = args[at] if at < len(args) else kwargs.get(name)
        values = value if isinstance(value, (list, tuple)) else (value,)
        found += [item for item in values if isinstance(item, Tensor)]
    return found


def arguments_of(func: Operation, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an operation besides the tensors that it writes, defaults included."""
    if isinstance(func, str):
        return {"": args[1]} if func == "data =" else dict(kwargs)
    slots = _facts_of(func).read
    return {name: args[at] if at < len(args) else kwargs.get(name, default) for at, name, default in slots}


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        single = type(value) is Tensor and value.dim() == 0 and value.device.type == "cpu" and not value.is_complex()
        return short_repr(value.item()) if single else f"tensor of {shape_text(tuple(value.shape))}"
    if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
        return count(len(value), "tensor")
    return short_repr(tuple(value)) if isinstance(value, list) else short_repr(value)


# --- the observer --------------------------------------------------------------------------------------


class Event(NamedTuple):
    """A write to a watched tensor: its key, the operation, the tensor that was written (it, or a view of its memory).

    Where no operation of torch is called, ``operation`` is a word: ``"data ="``, or the name of the function
    of ``torch.nn.init`` that leaves a tensor on the meta device alone, with ``kwargs`` of what it was given.
    """

    key: int
    operation: Operation
    target: Tensor
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    @property
    def arguments(self) -> str:
        """The arguments that a reader cares for, as text; tensors by their shapes, one number by itself."""
        values = arguments_of(self.operation, self.args, self.kwargs).items()
        given = [(name, _text(value)) for name, value in values if value is not None and name not in _OMITTED]
        return ", ".join([f"{name}={text}" if name else text for name, text in given])

    @property
    def what(self) -> str:
        """The operation with its arguments."""
        arguments = self.arguments
        return f"{name_of(self.operation)}({arguments})" if arguments else name_of(self.operation)


Listener: TypeAlias = Callable[[Event], None]

_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]  # a descriptor, which the stubs call a tensor
_SET_ITEM = Tensor.__setitem__
_IS_META = Tensor.is_meta.__get__  # type: ignore[attr-defined]  # as above

_SKIPPING_META: Final = {
    nn.init._no_grad_trunc_normal_.__code__: ("trunc_normal_", ("mean", "std", "a", "b"), "uniform_"),
    nn.init.dirac_.__code__: ("dirac_", ("groups",), "zero_"),
    nn.init.orthogonal_.__code__: ("orthogonal_", ("gain",), "copy_"),
    nn.init.sparse_.__code__: ("sparse_", ("sparsity", "std"), "normal_"),
}
"""The functions that look whether a tensor is on the meta device, and return if it is: name, what they are given, and
the operation that else writes the tensor first."""

_NOT_SKIPPING: Final = {code: first for code, (_, _, first) in _SKIPPING_META.items() if "is_meta" not in code.co_names}
"""Those that do not look, as it was before torch 2.12, each with that operation."""

_COPYING = frozenset({torch.ops.aten.empty_like.default, torch.ops.aten._to_copy.default})

_HOOKS: tuple[Callable[..., Any], ...] = (
    hooks.register_module_parameter_registration_hook,
    hooks.register_module_buffer_registration_hook,
    hooks.register_module_module_registration_hook,
)


@dataclass(eq=False, slots=True)
class Observer:
    """Reports, while it is entered, each write to a watched tensor and what is put into modules.

    Not seen: memory written behind torch's back, for example through ``tensor.numpy()``, and what other threads
    write. ``before_write`` may raise instead of a write; ``on_copy`` is told when a watched tensor has been copied, or
    another made like it, with the copy; ``execute`` does the operations in torch's place. One that ``is_brief`` may be
    told of the last operation of a write that is torchinit's own (:meth:`tell`).

    >>> layer, seen = nn.Linear(2, 2), []
    >>> index = MemoryIndex()
    >>> index.add(7, layer.weight)
    >>> with Observer(index, lambda event: seen.append((event.key, str(event.operation)))):
    ...     _ = layer.bias.data.zero_()
    ...     _ = layer.weight.data[0].fill_(1.0)
    >>> seen
    [(7, 'aten.fill_.Scalar')]
    """

    # Three nets, none of which patches torch. Nearly every write is an operation, and the dispatcher tells of those,
    # whatever view or optimizer they come through. `tensor.data = other` never gets there, nor do the functions of
    # nn.init that return early on the meta device: torch's function mode sees the first, and sees the others ask
    # `tensor.is_meta`, with their code in the frame that asks. Where an older torch does not ask, one of the operations
    # that it does instead stands for all of them. What is put into modules comes by registration hooks.

    index: MemoryIndex
    on_write: Listener
    on_registration: Callable[[nn.Module, str, object], None] | None = None
    before_write: Listener = lambda _: None
    on_copy: Callable[[Event, Tensor], None] | None = None
    execute: Execute | None = None
    is_brief: bool = False
    _open: ExitStack = field(default_factory=ExitStack, init=False)
    _number: float | None = field(default=None, init=False)

    def __enter__(self) -> Observer:
        self._open.enter_context(FunctionMode(self._function))
        self._open.enter_context(OperationMode(self._operation))
        for hook in _HOOKS if self.on_registration else ():
            self._open.callback(hook(self._register).remove)
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def tell(self, func: torch._ops.OpOverload, args: Sequence[Any]) -> None:
        """Report a write to the first argument that was made unseen."""
        for key in self.index.find(args[0]):
            self.on_write(made(Event, (key, func, args[0], args, {})))

    def _operation(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Do one operation, and report what it wrote."""
        if _NOT_SKIPPING and (frame := frame_of_caller()) and frame.f_code in _NOT_SKIPPING:
            tensor = frame.f_locals["tensor"]
            if tensor.is_meta:
                if name_of(func) == _NOT_SKIPPING[frame.f_code]:
                    self._skip_meta(tensor, frame)
                return func(*args, **kwargs)
        targets = written_by(func, args, kwargs)
        call = (func, args, kwargs)
        if self._number is not None and func is torch.ops.aten.copy_.default:
            # Within `tensor[index] = number`: on meta a tensor is copied from which the number cannot be told.
            call = torch.ops.aten.fill_.Scalar, (args[0], self._number), {}
        # Before the call: set_ gives the tensor another memory.
        events = [Event(key, call[0], target, *call[1:]) for target in targets for key in self.index.find(target)]
        for event in events:
            self.before_write(event)
        result = func(*args, **kwargs) if self.execute is None else self.execute(func, args, kwargs)
        if targets and func.overloadpacket is torch.ops.aten.set_:
            followed = self.index.follow(targets[0])
            events = events or [Event(key, func, targets[0], args, kwargs) for key in followed]
        for event in events:
            self.on_write(event)
        if self.on_copy is not None and func in _COPYING:
            for key in self.index.find(args[0]):
                self.on_copy(Event(key, func, args[0], args, kwargs), result)
        return result

    def _function(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Do a function of torch, and report the writes that no dispatcher sees."""
        if func == _SET_DATA:
            return self._set_data(args)
        if func == _SET_ITEM and isinstance(args[2], (int, float)):
            return self._set_item(args)
        result = func(*args, **kwargs)
        if func == _IS_META and result:
            self._skip_meta(args[0], sys._getframe(2))  # the one that asks: this one and torch's mode are nearer
        return result

    def _set_data(self, args: Sequence[Any]) -> Any:
        event = Event(-1, "data =", args[0], args, {})
        for key in self.index.find(args[0]):
            self.before_write(event._replace(key=key))
        result = _SET_DATA(*args)
        for key in self.index.follow(args[0]):
            self.on_write(event._replace(key=key))
        return result

    def _set_item(self, args: Sequence[Any]) -> Any:
        self._number = args[2]
        try:
            return _SET_ITEM(*args)
        finally:
            self._number = None

    def _skip_meta(self, tensor: Tensor, frame: FrameType) -> None:
        """Report an initializer that looks at the device of a tensor and is going to leave it alone."""
        name, given, _ = _SKIPPING_META.get(frame.f_code, ("", (), ""))
        for key in self.index.find(tensor) if name else ():
            event = Event(key, name, tensor, (), {argument: frame.f_locals[argument] for argument in given})
            self.before_write(event)
            self.on_write(event)

    def _register(self, module: nn.Module, name: str, value: object) -> None:
        if self.on_registration is not None and value is not None:
            self.on_registration(module, name, value)


_Result = TypeVar("_Result")

# An operation under two of torch's modes costs more than the draw that it makes, and a write of ours may take five;
# even to ask a tensor for its shape goes through one. All that an observer keeps of them is the last, so it is told of
# that one, and torch's modes are off while we write. The numbers in a formula are tensors to torch, whose memory the
# watch on allocations need not look at.


def unseen(watchers: Sequence[Observer], code: Callable[..., _Result], *args: Any) -> _Result:
    """Run code of ours past the modes of those who watch, whom it tells of what it writes; as it is if there are none.

    Then whoever else watches sees each of its operations.
    """
    if not watchers:
        return code(*args)
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction(), torch._C._ExcludeDispatchKeyGuard(WATCHED):
        return code(*args)


def watchers_of(tensor: Tensor) -> Sequence[Observer]:
    """Those whose modes are in place, and may be told of a write; none if some want to see more, or are not known."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return ()
    modes = _get_current_dispatch_mode_stack()
    if not modes:
        return ()
    owners = [getattr(mode.carry_out, "__self__", None) for mode in modes if type(mode) is OperationMode]
    known = [each for each in owners if isinstance(each, Observer) and each.is_brief]
    return known if len(known) == len(modes) == torch._C._len_torch_function_stack() else ()
