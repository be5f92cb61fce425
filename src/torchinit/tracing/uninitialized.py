"""Uninitialized memory: tensors that were handed memory without values and have not been written since."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, Final, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.library import Library, fallthrough_kernel
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes, _pop_mode, _push_mode
from torch.utils.weak import WeakIdKeyDictionary

from torchinit.model.modules import tensors_of
from torchinit.model.sandbox import ALLOCATING, OperationMode
from torchinit.model.storage import extent
from torchinit.model.traversal import HeldTensor, walk_tensors
from torchinit.tracing.allocator import Allocator, allocator
from torchinit.tracing.ends import LONG, STAMPS, Ends, ends_of
from torchinit.tracing.regions import Snapshot, memory_of, snapshot, storage_of

# Whether memory has been written to cannot be read off a tensor: fresh memory is often all zeros, like zeros that were
# written, and torch's version counters see neither `.data.zero_()` nor what NumPy and other libraries write. So memory
# that is handed out while a module is watched is stamped: its first and its last bytes get a pattern that nothing means
# to write, and as long as both hold it the tensor has not been filled. The stamp comes the moment the memory is handed
# out, when there are no values that it could hurt, and is below the smallest normal number of the formats of 16 and
# more bits, as harmless as what may stand there anyway. After init_weights() what stood there before is put back, so
# that a tensor that is never written holds what it would have held, and MMEngine's bits stay.
#
# On the host the moment is told by torch's allocator, in compiled code (csrc/allocations.c), which sees all memory,
# whoever asks for it, and costs next to nothing. Without a compiler, and for other devices, it is told by torch's
# dispatcher. A dispatch mode was tried: it sees every operation of a constructor, and made building half as dear again.
# All ways to memory without values end in two operations, and the dispatcher has a key, DeferredInit, that torch
# reserves for those who watch how modules come to be and uses for nothing itself. What is registered under it for those
# two, and for copies, is called only in a thread that has switched the key on; all other operations pass it by at no
# cost. But a call into Python takes ten microseconds among others, a fifth of the time of a model of many small layers.
# What can go wrong: a copy that is made while nothing is watched is not known; neither is a write that leaves both ends
# alone and comes before a constructor has ended or is not counted by torch, as those through `.data`; nor, after
# init_weights(), one that writes what is there already. Nothing is watched within other people's dispatch modes, where
# memory may not be what it seems, unless the caller knows them.
_KEY: Final = torch._C._dispatch_key_parse("DeferredInit")
WATCHED: Final = torch._C.DispatchKeySet(_KEY)
"""What is excluded where allocations are nobody's concern."""
_BELOW: Final = torch._C._dispatch_keyset_full_after(_KEY)

_STRIDED: Final = torch.strided
_SAMPLE: Final = 4096


class _Blank(NamedTuple):
    """A tensor as it was when it had been handed unfilled memory, and what the stamp at the ends of that replaced."""

    snapshot: Snapshot
    before: tuple[int, int]


_KNOWN: WeakIdKeyDictionary = WeakIdKeyDictionary()
_WATCH: ContextVar[_Watch | None] = ContextVar("torchinit_watch_on_allocations", default=None)

Remember: TypeAlias = Callable[[nn.Module], None]
"""Keeps in mind which tensors of a module hold memory that was handed out while it was watched, and not filled."""


class _Watch:
    """The memory that was handed out while it lasted: what stood at its ends, by storage.

    No storage is kept: one that has been freed takes the stamp along, or another comes to where nobody has written. On
    the host the allocator stamps what it hands out, where there is one, and knows what stood there.
    """

    def __init__(self, host: Allocator | None) -> None:
        self.depth: int = torch._C._len_torch_dispatch_stack()
        self.before: dict[int | None, tuple[int, int]] = {}
        self.host = host
        self._kept: dict[int, tuple[int, int]] = {}

    def end(self, *, kept: bool) -> None:
        """Leave the allocator to others; what it knows is kept for those who ask later."""
        if self.host:
            self._kept = self.host.records() if kept else {}
            self.host.end()
            self.host = None

    def hand_out(self, tensor: Tensor) -> None:
        """Stamp memory that holds nothing."""
        if type(tensor) is not Tensor or tensor.layout is not _STRIDED:
            return
        if self.host and tensor.is_cpu:
            self.host.hand_out(tensor)
            return
        storage = tensor.untyped_storage()
        key, number, start = storage._cdata, storage.nbytes(), storage.data_ptr()
        if number >= 16 and start and tensor.is_cpu:  # without the detours of ends_of, since a model has thousands
            head, tail, stamp = LONG(start), LONG(start + number - 8), STAMPS[8]
        else:
            ends = ends_of(tensor)
            if ends is None:
                return
            head, tail, stamp, _ = ends
        before = head.value, tail.value
        if before != stamp or key not in self.before:  # else by the part of an operation that is one, too
            self.before[key] = before
            head.value, tail.value = stamp

    def is_stamped(self, tensor: Tensor, kwargs: Mapping[str, Any]) -> bool:
        """Whether the allocator has stamped what was handed out: pinned memory is another one's."""
        return self.host is not None and tensor.is_cpu and not kwargs.get("pin_memory")

    def carry_out(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], call: Callable[..., Any] | None = None
    ) -> Any:
        """Do an operation, and stamp the memory that comes of it if that holds nothing."""
        call = call or func
        if func not in _COPYING:
            result = call(*args, **kwargs)
            if func.overloadpacket in ALLOCATING and not self.is_stamped(result, kwargs):
                self.hand_out(result)
            return result
        ends = ends_of(args[0])
        before = None if ends is None else self._before(args[0], ends)
        if ends is None or before is None:
            return call(*args, **kwargs)
        now = ends.values
        ends.put_back(before)  # for the copy
        result = call(*args, **kwargs)
        ends.put(now)
        self.hand_out(result)
        return result

    def _before(self, tensor: Tensor, ends: Ends) -> tuple[int, int] | None:
        """What stood at the ends of a tensor's memory if nobody has filled it."""
        if is_unfilled(tensor):
            return cast("tuple[int, int]", _KNOWN[tensor].before)
        traces = self._traces([tensor]) if ends.values == ends.stamp else ()
        return next((before for _, before in traces), None)

    def _traces(self, tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        """Yield those of some tensors whose memory may show the stamp, and what stood at its ends."""
        here = [(tensor, memory) for tensor in tensors if (memory := memory_of(tensor)) is not None]
        if self.host:
            host = [(tensor, memory) for tensor, memory in here if memory.is_cpu]
            for index, before in self.host.traces([memory for _, memory in host]):
                yield host[index][0], before
        for tensor, memory in here if self.before or self._kept else ():
            storage = memory.untyped_storage()
            known = self.before.get(storage._cdata) or self._kept.get(storage.data_ptr())
            if known is not None:
                yield tensor, known

    def remember(self, module: nn.Module) -> None:
        """Keep in mind which tensors of a module nobody has filled; those that were in part get their ends back."""
        blank: dict[Tensor, tuple[int, int]] = {}
        is_any = self.before or self._kept or (self.host and self.host.places())  # not so of most code that only writes
        for tensor, before in self._traces(tensors_of(module)) if is_any else ():
            ends = ends_of(tensor)
            if ends is None or ends.are_written or not tensor.numel() or is_unfilled(tensor):
                continue
            if ends.values != ends.stamp:
                ends.put_back(before)
            elif not (tensor._version and _is_between(tensor)):
                blank[tensor] = before
        # Without whatever would take what is looked at here for the user's.
        with _disable_current_modes(), torch._C._ExcludeDispatchKeyGuard(WATCHED):
            for tensor, before in blank.items():
                _KNOWN[tensor] = _Blank(snapshot(tensor), before)


def _is_between(tensor: Tensor) -> bool:
    """Whether a tensor reaches neither end of its memory, so that these do not tell whether it has been written."""
    memory = memory_of(tensor)
    if memory is None:
        return False
    first, end = extent(memory)
    return first > 0 and end < memory.untyped_storage().nbytes()


# --- what the dispatcher calls -----------------------------------------------------------------------------

_FAST: Final[dict[Any, Callable[..., Tensor]]] = {
    torch.ops.aten.empty.memory_format: torch.empty,
    torch.ops.aten.empty_strided.default: torch.empty_strided,
    # These fill at once what they are handed, as the statistics of norms: it needs no stamp.
    torch.ops.aten.zeros.default: torch.zeros,
    torch.ops.aten.ones.default: torch.ones,
}
"""The functions that do what an operation does in half the time."""
_COPYING: Final = frozenset({torch.ops.aten.clone.default, torch.ops.aten._to_copy.default})


def _kernel(operation: torch._ops.OpOverload) -> Callable[..., Any]:
    def kernel(keys: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], (float, complex, int)):  # of torch's own, which Python gets as a number
            dtype = {float: torch.float64, complex: torch.complex128}.get(type(args[0]))
            args = (torch.tensor(args[0], dtype=dtype, device="cpu"), *args[1:])
        watch, depth = _WATCH.get(), torch._C._len_torch_dispatch_stack()
        if watch is None:
            return operation.redispatch(keys & _BELOW, *args, **kwargs)
        if depth > watch.depth:
            with _beneath_modes(depth - watch.depth, watch.carry_out):
                return operation.redispatch(keys & _BELOW, *args, **kwargs)
        return watch.carry_out(operation, args, kwargs, partial(operation.redispatch, keys & _BELOW))

    return kernel


def _quick(operation: torch._ops.OpOverload) -> Callable[..., Any]:
    """The same where nothing is out of the ordinary, as nearly always."""
    kernel, function = _kernel(operation), _FAST[operation]
    is_empty, is_allocating = function is torch.empty, operation.overloadpacket in ALLOCATING
    modes, function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
    include = torch._C._dispatch_tls_set_dispatch_key_included

    def quick(keys: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
        watch = _WATCH.get()
        if watch is None or modes() != watch.depth or function_modes() or "device" not in kwargs:
            return (
                kernel(keys, *args, **kwargs) if is_allocating else operation.redispatch(keys & _BELOW, *args, **kwargs)
            )
        if is_empty and args[0]:
            args = args[0]  # the same to torch, which takes longer to see that a list is one of numbers
        include(_KEY, False)
        try:
            tensor = function(*args, **kwargs)
        finally:
            include(_KEY, True)
        if is_allocating and not watch.is_stamped(tensor, kwargs):
            watch.hand_out(tensor)
        return tensor

    return quick


@contextmanager
def _beneath_modes(number: int, carry_out: Callable[..., Any]) -> Iterator[None]:
    """Let the innermost modes have their way with an operation, and carry out what is left of it."""
    # Within a mode torch passes our key by, and what a mode does to memory must not be done before the stamp.
    modes = [_pop_mode() for _ in range(number)]
    try:
        with OperationMode(carry_out):
            for mode in reversed(modes):
                _push_mode(mode)
            try:
                yield
            finally:
                for _ in modes:
                    _pop_mode()
    finally:
        for mode in reversed(modes):
            _push_mode(mode)


# What is registered stays so as long as its library is kept.


@cache
def _copies_are_seen() -> tuple[Library, Library]:
    every = Library("_", "IMPL", "DeferredInit")
    every.fallback(fallthrough_kernel)
    return every, _registered({operation: _kernel(operation) for operation in _COPYING})


@cache
def _allocations_are_seen() -> Library:
    packets = [getattr(packet, name) for packet in ALLOCATING for name in packet.overloads() if "out" not in name]
    return _registered({each: _quick(each) if each in _FAST else _kernel(each) for each in {*packets, *_FAST}})


def _registered(kernels: Mapping[torch._ops.OpOverload, Callable[..., Any]]) -> Library:
    aten = Library("aten", "IMPL", "DeferredInit")
    for operation, kernel in kernels.items():
        aten.impl(operation, kernel, with_keyset=True)
    return aten


@contextmanager
def watching(*, within_modes: bool = False) -> Iterator[Remember]:
    """Watch the memory that a module is given; the outermost of nested calls does.

    With ``within_modes`` also within other people's modes, and what was handed out may be asked for later, too.
    """
    if _WATCH.get() is not None or (torch._C._len_torch_dispatch_stack() and not within_modes):
        yield lambda _: None
        return
    # The allocator's stamp is lost where memory is filled as it is handed out: by torch itself, so that programs are
    # deterministic, or by a mode that lies around the watch.
    is_filled = torch.are_deterministic_algorithms_enabled() and torch._C._get_deterministic_fill_uninitialized_memory()
    host = None if is_filled or torch._C._len_torch_dispatch_stack() else allocator()
    host = host if host and host.begin() else None
    _copies_are_seen()
    if host is None or torch.accelerator.current_accelerator() is not None:
        _allocations_are_seen()
    watch = _Watch(host)
    token = _WATCH.set(watch)
    torch._C._dispatch_tls_set_dispatch_key_included(_KEY, True)
    try:
        yield watch.remember
    finally:
        watch.end(kept=within_modes)
        torch._C._dispatch_tls_set_dispatch_key_included(_KEY, False)
        _WATCH.reset(token)


def is_unfilled(tensor: Tensor) -> bool:
    """Whether the tensor was made without values, and has not been written since."""
    known = _KNOWN.get(tensor) if _KNOWN.data else None  # whose length takes longer
    return known is not None and known.snapshot == snapshot(tensor)


def unstamp(tensors: Iterable[Tensor]) -> None:
    """Give memory that has not been filled, or only in part, its own ends back."""
    known = [tensor for tensor in tensors if tensor in _KNOWN] if _KNOWN.data else []
    left = [tensor for tensor in known if is_unfilled(tensor)]
    for tensor in known:
        ends = ends_of(tensor)
        if ends is not None and _KNOWN[tensor].snapshot.storage == storage_of(tensor):
            ends.put_back(_KNOWN[tensor].before)
    for tensor in left:
        _KNOWN[tensor] = _KNOWN[tensor]._replace(snapshot=snapshot(tensor))


def looks_unfilled(tensor: Tensor) -> bool:
    """Whether the values look as if never written: all are NaN, or many lie below the smallest normal number.

    Integers and addresses that memory held before look so when they are read as floats. A sample of some thousand
    values is enough, a quarter of which, zeros aside, have to be so small: tails of exponentials have fewer. The small
    numbers of float16 and of formats of 8 bits show nothing.
    """
    memory = memory_of(tensor)
    if memory is None or memory.is_meta or not memory.numel() or not memory.is_floating_point():
        return False
    number = _number_in(memory)
    if number is not None:
        return not (number == 0 or abs(number) >= torch.finfo(memory.dtype).smallest_normal)
    sample = memory.detach().flatten()[:: max(1, memory.numel() // _SAMPLE)].double()
    smallest = torch.finfo(memory.dtype).smallest_normal
    low, high = map(float, sample.aminmax())
    if low == high == 0 or low >= smallest or high <= -smallest:  # as buffers often are
        return False
    if math.isnan(low) and bool(sample.isnan().all()):
        return True
    given = int(sample.count_nonzero())
    tiny = int((sample.abs() < smallest).sum()) - (sample.numel() - given)  # without the zeros
    return smallest < 1e-30 and tiny * 4 > given


def _number_in(memory: Tensor) -> float | None:
    """The number that all elements of a small tensor are, as those of buffers often are; None where that is not so."""
    word = _NUMBERS.get(memory.dtype)
    if word is None or memory.numel() > _SAMPLE or not (memory.is_cpu and memory.is_contiguous()):
        return None
    start, size = memory.data_ptr(), ctypes.sizeof(word)
    raw = ctypes.string_at(start, size * memory.numel()) if start else b""
    return word.from_buffer_copy(raw).value if raw and raw == raw[:size] * memory.numel() else None


_NUMBERS: Final = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}


def unfilled(model: nn.Module, written: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """The parameters and buffers that hold what their memory held before; ``written`` are known to have values."""
    return unfilled_among(walk_tensors(model), written)


def unfilled_among(held: Iterable[HeldTensor], written: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """The same of the tensors that the modules of a model hold."""
    found: dict[object, str] = {}
    for holder in held:
        if not _KNOWN.data and holder.name in written:  # most are, and nothing is known of any
            continue
        if any(holds_no_values(tensor, written=holder.name in written) for tensor in holder.sources):
            found.setdefault(holder.key, holder.name)
    return tuple(found.values())


def holds_no_values(tensor: Tensor, *, written: bool) -> bool:
    """Whether a tensor is known to be unfilled, or looks so and is not known to be written."""
    if written and not _KNOWN.data:  # as nearly all are
        return False
    return not is_lazy(tensor) and (is_unfilled(tensor) or (not written and looks_unfilled(tensor)))
