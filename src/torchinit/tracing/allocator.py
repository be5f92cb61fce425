"""The watch on torch's allocator: compiled code stamps the memory that torch hands out on the host."""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final, final

import torch
from torch import Tensor

from torchinit.noise.engines import dispatch
from torchinit.noise.engines.kernel import LIBRARY

_SYMBOLS: Final = (
    "_ZN3c1015GetCPUAllocatorEv",
    "_ZN3c1022GetDefaultCPUAllocatorEv",
    "_ZN3c1015SetCPUAllocatorEPNS_9AllocatorEh",
    "_ZNK3c109Allocator18is_simple_data_ptrERKNS_7DataPtrE",
)
"""What the compiled code needs of torch: the allocator in use, torch's own, how it is set, an entry of its table."""
_TRACE: Final = struct.Struct("<3Q")
_RECORD: Final = struct.Struct("<4Q")


@final
class Allocator:
    """The allocator that stamps; it does so for a thread between ``begin`` and ``end``, which may nest."""

    def __init__(self, library: ctypes.PyDLL) -> None:
        self._begin, self._end = library.torchinit_watch_begin, library.torchinit_watch_end
        self._hand_out, self._traces = library.torchinit_watch_hand_out, library.torchinit_watch_traces
        self._records = library.torchinit_watch_records
        self._end.restype = self._hand_out.restype = self._records.restype = None
        self.places: Callable[[], int] = library.torchinit_watch_places
        """How many places in memory were handed out since a watch began."""
        library.torchinit_watch_places.restype = ctypes.c_uint64
        self._hand_out.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
        self._traces.restype = ctypes.c_uint64
        self._traces.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_char_p]

    def begin(self) -> bool:
        """Begin a watch; False, and there is none, where another allocator has come to be in use since."""
        return bool(self._begin())

    def end(self) -> None:
        self._end()

    def hand_out(self, memory: Tensor) -> None:
        """Take memory for handed out just now."""
        storage = memory.untyped_storage()
        if storage.nbytes():
            self._hand_out(storage.data_ptr(), storage.nbytes())

    def records(self) -> dict[int, tuple[int, int]]:
        """What stood at the ends of all memory that was handed out, by address."""
        records = ctypes.create_string_buffer(_RECORD.size * self.places())
        self._records(records)
        return {start: (head, tail) for start, _, head, tail in _RECORD.iter_unpack(records)}

    def traces(self, memories: Sequence[Tensor]) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield which of the tensors lie in memory that was handed out since and not filled, and what its ends held.

        Memory that has been filled in part is among it, and a little that has been filled.
        """
        numbers: list[int] = []
        for memory in memories:
            storage = memory.untyped_storage()
            numbers += storage.data_ptr(), storage.nbytes()
        traces = ctypes.create_string_buffer(_TRACE.size * len(memories))
        found = self._traces(struct.pack(f"<{len(numbers)}Q", *numbers), len(memories), traces)
        for index, *ends in _TRACE.iter_unpack(traces.raw[: found * _TRACE.size]):
            yield index, (ends[0], ends[1])


@cache
def allocator() -> Allocator | None:
    """The allocator, put in the place of torch's; None where there is no compiled code, or torch is not as expected."""
    if dispatch.chosen_kernel() is None:
        return None
    try:
        library = ctypes.PyDLL(str(LIBRARY))
        functions = ctypes.CDLL(torch_library())
        addresses = [ctypes.cast(getattr(functions, symbol), ctypes.c_void_p) for symbol in _SYMBOLS]
        return Allocator(library) if library.torchinit_watch_allocator(*addresses) else None
    except (OSError, AttributeError):
        return None


def torch_library() -> str:
    """The file in which torch's allocators are."""
    return str(Path(torch.__file__).parent / "lib" / ("libc10.dylib" if sys.platform == "darwin" else "libc10.so"))
