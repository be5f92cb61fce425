"""Sandbox: a copy of one layer, run on made-up inputs in a thread of its own; new memory full of poison; fakes."""

from __future__ import annotations

import contextlib
import ctypes
import io
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from types import MethodType
from typing import Any, Final, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchinit.errors import RunError

_functorch = torch._C._functorch
_ORDINARY: Final = frozenset((Tensor, nn.Parameter))
_tracing, _modes = torch._C._get_tracing_state, torch._C._len_torch_dispatch_stack
_MODES: Final = {
    "FakeTensorMode": torch._C._TorchDispatchModeKey.FAKE,
    "FunctionalTensorMode": torch._C._TorchDispatchModeKey.FUNCTIONAL,
    "make_fx": torch._C._TorchDispatchModeKey.PROXY,
}


def refuse_transforms() -> None:
    """Raise RunError within ``torch.func.grad``, ``vmap`` and their like, and within ``torch.jit.trace``.

    There the model's tensors are stand-ins: reading their memory fails, in ``functionalize`` with the process.
    """
    transform = _functorch.peek_interpreter_stack()
    if transform is not None:
        _refuse(f"a transform of torch.func ({transform.key().name.lower()})")
    if torch._C._get_tracing_state() is not None:
        _refuse("torch.jit.trace")


def refuse_fakes() -> None:
    """Raise RunError where :func:`refuse_transforms` does, and within modes in which tensors hold nothing."""
    refuse_transforms()
    for name, key in _MODES.items() if torch._C._len_torch_dispatch_stack() else ():
        if torch._C._get_dispatch_mode(key) is not None:
            _refuse(name)


def _refuse(where: str) -> None:
    raise RunError(f"within {where} tensors are stand-ins, with no values to read or write: call this outside of it")


def check_values(name: str, tensor: Tensor) -> None:
    """Raise RunError for a tensor that has no values to read or write, here or at all."""
    if _functorch.peek_interpreter_stack() is not None or _tracing() is not None or _modes():  # nearly never
        refuse_fakes()
    if type(tensor) not in _ORDINARY and isinstance(tensor, (FakeTensor, FunctionalTensor)):
        advice = "build the model outside of its mode, or on the meta device for torchinit.materialize"
        raise RunError(f"{name}: is a {type(tensor).__name__}, which holds no values; {advice}")
    if _functorch.is_functorch_wrapped_tensor(tensor) or torch._is_functional_tensor(tensor):
        raise RunError(f"{name}: is a stand-in within a transform of torch.func, which holds no values of its own")


_Answer = TypeVar("_Answer")

SECONDS = 10.0
"""The time that a question may take. Layers answer within milliseconds; only one that hangs takes longer."""

_OPERATIONS = 1000
_LARGEST = 1 << 20

INTERNAL = frozenset(vars(nn.Module()))
"""The attributes of a module that are torch's own: its tensors, its children, its hooks."""


class Refused(Exception):  # noqa: N818  # no fault of anybody's: the layer cannot be run here
    """The layer wants to do what a copy of it must not, or is too large to be copied."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A layer whose parameters hold a number each, all others of its tensors ``rest``.

    ``shapes`` are those of the layer's own parameters as the model has them: of a DTensor the whole, of a parametrized
    tensor what its parametrization gives. Values are never looked at, so a layer on the meta device, under FSDP2 or in
    a quantized model gives the same answers as in one process. The copy has the layer's class and attributes, no hooks
    and no compiled code: hooks gather shards, move weights between devices and count calls.

    >>> with torch.device("meta"):
    ...     norm = nn.RMSNorm(4)
    >>> Sandbox(norm, {"weight": (4,)})({"weight": 2.0}, torch.ones(1, 4))
    (tensor([[2., 2., 2., 2.]]),)
    """

    module: nn.Module
    shapes: Mapping[str, tuple[int, ...]]
    training: bool = True
    rest: float = 1.0

    def __call__(self, values: Mapping[str, float], *inputs: Tensor) -> tuple[Tensor, ...]:
        """The tensors that the layer returns; raises whatever its code does, and Refused."""
        model = tuple(self.module.parameters()) + tuple(self.module.buffers())
        if sum(tensor.numel() for tensor in model) > _LARGEST:
            raise Refused("too large to be copied")
        copy = self._copy(self.module)
        for leaf, value in values.items():
            vars(copy).pop(leaf, None)  # the older hooks of torch.nn.utils keep what they compute as an attribute
            full = torch.full(self.shapes[leaf], value, dtype=torch.float32, device="cpu")
            copy._parameters[leaf] = nn.Parameter(full, requires_grad=False)
        with torch.no_grad(), _watched(model):
            result: Any = copy._compiled_call_impl(*inputs)  # type: ignore[misc]
        results = result if isinstance(result, (tuple, list)) else (result,)
        tensors = tuple(tensor for tensor in results if isinstance(tensor, Tensor))
        if not tensors:
            raise Refused(f"it returns {type(result).__name__}")
        return tensors

    def _copy(self, module: nn.Module) -> nn.Module:
        cls: Any = type_before_parametrizations(module)
        copy: nn.Module = object.__new__(cls)
        vars(copy).update(vars(nn.Module()))
        vars(copy).update({k: self._own(v, module, copy) for k, v in vars(module).items() if k not in INTERNAL})
        copy.training = self.training and not isinstance(module, nn.modules.dropout._DropoutNd)
        # Torch calls this in place of `forward` and of all hooks, those for every module included.
        forward = getattr(cls.forward, "_torchdynamo_orig_callable", cls.forward)
        copy._compiled_call_impl = MethodType(forward, copy)
        copy._parameters = self._own(dict(module._parameters), module, copy)
        copy._buffers = self._own(dict(module._buffers), module, copy)
        children = {key: child for key, child in module._modules.items() if key != "parametrizations"}
        copy._modules = {key: None if child is None else self._copy(child) for key, child in children.items()}
        return copy

    def _own(self, value: Any, module: nn.Module, copy: nn.Module) -> Any:
        """An attribute for the copy: its own container or method, numbers for a tensor, any other object as it is."""
        if isinstance(value, Tensor):
            dtype = torch.float32 if value.is_floating_point() else value.dtype
            return torch.full(tuple(value.shape), self.rest, dtype=dtype, device="cpu")
        if isinstance(value, MethodType) and value.__self__ is module:
            return MethodType(value.__func__, copy)
        if type(value) in (list, tuple, set):
            return type(value)(self._own(item, module, copy) for item in value)
        if type(value) is dict:
            return {key: self._own(item, module, copy) for key, item in value.items()}
        return value


_TALKS = frozenset({"c10d", "_c10d_functional", "c10d_functional", "_dtensor"})


class OperationMode(TorchDispatchMode):
    """Within it a function carries out each operation of torch: it gets the operation and its arguments."""

    def __init__(self, carry_out: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.carry_out = carry_out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler for the first operation, only to keep it away: a second

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return self.carry_out(func, args, kwargs or {})


def _watched(model: Iterable[Tensor]) -> OperationMode:
    """The operations that a copy may do: no random numbers, no talk with other ranks, nothing of the model, an end."""
    tensors, numbers = frozenset(map(id, model)), count()

    def carry_out(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if next(numbers) >= _OPERATIONS:
            raise Refused("it does not come to an end")
        if getattr(func, "namespace", "") in _TALKS:
            raise Refused("it talks with other ranks")
        if torch.Tag.nondeterministic_seeded in getattr(func, "tags", ()):
            raise Refused("it draws random numbers")
        if not tensors.isdisjoint(map(id, tree_leaves((args, kwargs)))):
            raise Refused("it holds on to the model's own tensors")
        return func(*args, **kwargs)

    return OperationMode(carry_out)


_ALONE = threading.Lock()
"""Standard output and the filters of warnings are the whole process's."""


def answer(question: Callable[[], _Answer]) -> _Answer | None:
    """The answer to a question that runs other people's code; None if it raises or does not come back in time.

    It is asked in a thread of its own. Torch keeps its modes by thread, so a default device, autocast, inference mode,
    a fake tensor mode or a trace of the caller's do not reach it; and a thread can be left behind, which is the only
    way out of code that waits for what never comes. Before that its Python code is ended from outside. Its prints and
    warnings are not shown.

    >>> answer(lambda: print("hello") or 1), answer(lambda: 1 / 0)
    (1, None)
    """
    answers: list[_Answer] = []

    def work() -> None:
        with contextlib.suppress(BaseException):
            answers.append(question())

    thread = threading.Thread(target=work, name="torchinit.sandbox", daemon=True)
    out, err = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with _ALONE, warnings.catch_warnings(action="ignore"), out, err:
        thread.start()
        try:
            thread.join(SECONDS)
        finally:
            if thread.is_alive():
                _end(thread)
    return answers[0] if answers else None


def _end(thread: threading.Thread) -> None:
    """Raise SystemExit where the thread's Python code is; it takes effect when that code runs again."""
    ident = ctypes.c_ulong(thread.ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit))
    thread.join(0.1)


# --- memory without values -------------------------------------------------------------------------------------------

ALLOCATING: Final = frozenset(
    getattr(torch.ops.aten, name)
    for name in ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
)
"""The operations that hand out memory without values."""


class Poison(NamedTuple):
    """The content of memory that nobody has filled: of floats, and of any other dtype (None: the largest number)."""

    floating: float = torch.nan
    whole: int | None = None

    def of(self, dtype: torch.dtype) -> float:
        """The poison of memory of this dtype."""
        if dtype.is_floating_point or dtype.is_complex:
            return self.floating
        return self.whole if self.whole is not None else 1 if dtype == torch.bool else torch.iinfo(dtype).max


def poisoned_memory(poison: Poison | None = None) -> OperationMode:
    """A context in which memory that this thread allocates without values holds poison, so that it shows.

    >>> with poisoned_memory():
    ...     torch.empty(2)
    tensor([nan, nan])
    """
    content = poison or Poison()

    def carry_out(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        is_resize = func is torch.ops.aten.resize_.default
        before = args[0].numel() if is_resize else 0
        result = fresh = func(*args, **kwargs)
        if is_resize:
            fresh = result.flatten()[before:]  # a view, since a tensor that has grown is contiguous
        elif func.overloadpacket not in ALLOCATING:
            return result
        if not fresh.is_meta and fresh.layout == torch.strided:
            fresh.fill_(content.of(fresh.dtype))
        return result

    return OperationMode(carry_out)
