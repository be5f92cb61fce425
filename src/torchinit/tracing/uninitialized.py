"""Uninitialized memory: tensors that were handed memory without values and have not been written since."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack
from torch.utils.weak import WeakIdKeyDictionary

from torchinit.model.sandbox import ALLOCATING, OperationMode
from torchinit.model.traversal import HeldTensor, walk_tensors
from torchinit.tracing.locks import Snapshot, snapshot
from torchinit.tracing.observer import written_by
from torchinit.tracing.regions import memory_of, storage_of

_COPYING = frozenset((torch.ops.aten.clone, torch.ops.aten._to_copy))
_HANDING_OUT: Final[dict[int, tuple[Any, bool, bool]]] = {}
"""By the id of an operation, which is kept: itself, whether it allocates empty memory, whether it copies."""

# Whether memory has been written to cannot be read off a tensor: fresh memory is often all zeros, like zeros that were
# written, and torch's version counters see neither `.data.zero_()` nor what NumPy and other libraries write. So memory
# that is handed out while a module is watched is stamped: its first bytes get a pattern that nothing means to write,
# and as long as they hold it the tensor has not been filled. The stamp comes the moment the memory is handed out, when
# there are no values that it could hurt, and is below the smallest normal number of the formats of 16 and more bits, as
# harmless as what may stand there anyway. After init_weights() what stood there before is put back, so that a tensor
# that is never written holds what it would have held, and MMEngine's bits stay. What can go wrong: a copy that is made
# while nothing is watched is not known; neither is a write that torch does not count and that leaves the first bytes
# alone, or, where there is no stamp, writes what is there already: on other devices than the CPU, after init_weights(),
# and in a tensor that does not begin where its memory does. Nothing is watched within other people's dispatch modes,
# where memory may not be what it seems, unless the caller knows them.
_STAMP: Final = bytes((0x17, 0, 0x2B, 0, 0x05, 0, 0x0B, 0)) * 2
_SAMPLE: Final = 4096


class _Blank(NamedTuple):
    """A tensor as it was when it had been handed unfilled memory, and the bytes that the stamp in it replaced."""

    snapshot: Snapshot
    before: bytes


_KNOWN: WeakIdKeyDictionary = WeakIdKeyDictionary()
_WATCHING: ContextVar[bool] = ContextVar("torchinit_watching_allocations", default=False)

Remember: TypeAlias = Callable[[nn.Module], None]
"""Keeps in mind which tensors of a module hold memory that was handed out while it was watched, and not filled."""


class Allocations:
    """The memory that was handed out empty and that no operation has written since."""

    def __init__(self) -> None:
        # The storages are kept, so that the address of a freed one does not stand for another.
        self.empty: dict[int | None, tuple[torch.UntypedStorage, bytes]] = {}

    def carry_out(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if self.empty:
            self.forget(written_by(func, args, kwargs))
        result = func(*args, **kwargs)
        known = _HANDING_OUT.get(id(func))
        if known is None:
            packet = func.overloadpacket
            known = _HANDING_OUT[id(func)] = func, packet in ALLOCATING, packet in _COPYING
        _, allocates, copies = known
        if allocates or (copies and self._is_blank(args[0])):
            self._hand_out(result)
        return result

    def forget(self, written: Iterable[Tensor]) -> None:
        """Give the memory of tensors that are about to be written its own first bytes back."""
        for tensor in written if self.empty else ():
            storage, before = self.empty.pop(storage_of(tensor), (None, b""))
            if storage is not None and _head(storage) == _STAMP[: len(before)]:
                _put(storage, before)  # a part may be all that is written

    def _is_blank(self, tensor: Tensor) -> bool:
        return storage_of(tensor) in self.empty or is_unfilled(tensor)

    def _hand_out(self, tensor: Tensor) -> None:
        memory = memory_of(tensor)
        if memory is not None and memory.numel() and not memory.is_meta:
            storage = memory.untyped_storage()
            self.empty[storage._cdata] = storage, _head(storage)
            _put(storage, _STAMP)

    def remember(self, module: nn.Module) -> None:
        with _disable_current_modes():  # which would take what is looked at here for the user's
            for tensor in chain(module.parameters(), module.buffers()) if self.empty else ():
                storage, before = self.empty.get(storage_of(tensor), (None, b""))
                if storage is not None and _head(storage) == _STAMP[: len(before)]:
                    _KNOWN[tensor] = _Blank(snapshot(tensor), before)


def _head(storage: torch.UntypedStorage) -> bytes:
    """The bytes of a memory that a stamp takes; none on other devices than the CPU."""
    size = min(storage.nbytes(), len(_STAMP)) if storage.device.type == "cpu" else 0
    return ctypes.string_at(storage.data_ptr(), size) if size else b""


def _put(storage: torch.UntypedStorage, head: bytes) -> None:
    if storage.device.type == "cpu":
        ctypes.memmove(storage.data_ptr(), head, min(storage.nbytes(), len(head)))


@contextmanager
def watching(*, within_modes: bool = False) -> Iterator[Remember]:
    """Watch the memory that a module is given; the outermost of nested calls does."""
    if _WATCHING.get() or (_get_current_dispatch_mode_stack() and not within_modes):
        yield lambda _: None
        return
    token = _WATCHING.set(True)
    try:
        allocations = Allocations()
        with OperationMode(allocations.carry_out):
            yield allocations.remember
    finally:
        _WATCHING.reset(token)


def is_unfilled(tensor: Tensor) -> bool:
    """Whether the tensor was made without values, and has not been written since."""
    known = _KNOWN.get(tensor) if _KNOWN.data else None  # whose length takes longer
    return known is not None and known.snapshot == snapshot(tensor)


def unstamp(tensors: Iterable[Tensor]) -> None:
    """Give memory that has not been filled its own first bytes back."""
    left = [tensor for tensor in tensors if is_unfilled(tensor)]
    for tensor in left:
        memory = memory_of(tensor)
        if memory is not None:
            _put(memory.untyped_storage(), _KNOWN[tensor].before)
    for tensor in left:
        _KNOWN[tensor] = _Blank(snapshot(tensor), b"")


def looks_unfilled(tensor: Tensor) -> bool:
    """Whether the values look as if never written: all are NaN, or many lie below the smallest normal number.

    Integers and addresses that memory held before look so when they are read as floats. A sample of some thousand
    values is enough, a quarter of which, zeros aside, have to be so small: tails of exponentials have fewer. The small
    numbers of float16 and of formats of 8 bits show nothing.
    """
    memory = memory_of(tensor)
    if memory is None or memory.is_meta or not memory.numel() or not memory.is_floating_point():
        return False
    sample = memory.detach().flatten()[:: max(1, memory.numel() // _SAMPLE)].double()
    smallest = torch.finfo(memory.dtype).smallest_normal
    low, high = map(float, sample.aminmax())
    if low == high == 0 or low >= smallest or high <= -smallest:  # as buffers often are
        return False
    tiny = int(((sample != 0) & (sample.abs() < smallest)).sum()) if smallest < 1e-30 else 0
    return bool(sample.isnan().all()) or tiny * 4 > int((sample != 0).sum())


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
    return not is_lazy(tensor) and (is_unfilled(tensor) or (not written and looks_unfilled(tensor)))
