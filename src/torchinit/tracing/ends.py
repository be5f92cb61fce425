"""Ends of memory: its first and its last bytes, where a stamp shows that nobody has written."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from torchinit._frozen import made
from torchinit.tracing.regions import memory_of

STAMPS: Final = {
    8: (0x000B_0005_002B_0017, 0x000B_0005_002B_0017),
    4: (0x002B_0017, 0x000B_0005),
    2: (0x0017, 0x000B),
    1: (0x17, 0),
    0: (0x17, 0x17),  # of a single byte, which is both ends
}
"""What stands at the ends of memory that nobody has filled, by the size of an end."""
_ELEMENTS: Final = {
    unit: tuple((1 << 8 * unit) - 1 << shift for shift in range(0, 64, 8 * unit)) for unit in (1, 2, 4, 8, 16)
}
"""Where the elements of so many bytes are in an end."""
_WORDS: Final = {8: ctypes.c_uint64, 4: ctypes.c_uint32, 2: ctypes.c_uint16, 1: ctypes.c_uint8}
LONG: Final[Callable[[int], Any]] = _WORDS[8].from_address


class Word:
    """An end of memory that is on another device."""

    def __init__(self, part: Tensor) -> None:
        self.part = part

    @property
    def value(self) -> int:
        return int.from_bytes(bytes(self.part.tolist()), "little")

    @value.setter
    def value(self, number: int) -> None:
        self.part.copy_(torch.tensor(list(number.to_bytes(len(self.part), "little")), dtype=torch.uint8, device="cpu"))


class Ends(NamedTuple):
    """The first and the last bytes of memory, the stamp that is put there, the bytes of an element."""

    head: Any
    tail: Any
    stamp: tuple[int, int]
    unit: int

    @property
    def values(self) -> tuple[int, int]:
        return self.head.value, self.tail.value

    @property
    def are_written(self) -> bool:
        """Whether nothing is left of the stamp; False where that takes a closer look."""
        head, tail = self.head.value ^ self.stamp[0], self.tail.value ^ self.stamp[1]
        for mask in _ELEMENTS[self.unit]:  # noqa: SIM110  # all() takes twice as long
            if not head & mask or not tail & mask:
                return False
        return True

    def put(self, values: tuple[int, int]) -> None:
        self.head.value, self.tail.value = values

    def put_back(self, before: tuple[int, int]) -> None:
        """Replace what is left of the stamp by what was there before; a part may be all that has been written."""
        ends = zip(self.values, self.stamp, before, strict=True)
        self.head.value, self.tail.value = (self._merged(*end) for end in ends)

    def _merged(self, now: int, stamp: int, before: int) -> int:
        """An end with its own elements in the place of those that still hold the stamp."""
        if now == stamp:  # elements that are zero in it, too
            return before
        for mask in _ELEMENTS[self.unit]:
            if stamp & mask and not (now ^ stamp) & mask:
                now = now & ~mask | before & mask
        return now


def ends_of(tensor: Tensor) -> Ends | None:
    """The ends of the memory that a tensor lies in; None where it has none here."""
    memory = memory_of(tensor)
    if memory is None or memory.is_meta:
        return None
    storage = memory.untyped_storage()
    start, number, unit = storage.data_ptr(), storage.nbytes(), memory.itemsize
    if number >= 16 and start and memory.is_cpu:  # most is
        return made(Ends, (LONG(start), LONG(start + number - 8), STAMPS[8], unit))
    if not number or not start:
        return None
    size = 8 if number >= 16 else 4 if number >= 8 else 2 if number >= 4 else 1
    stamp = STAMPS[size if number > 1 else 0]
    if memory.is_cpu:
        word = _WORDS[size].from_address
        return Ends(word(start), word(start + number - size), stamp, unit)
    flat = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    return Ends(Word(flat[:size]), Word(flat[number - size :]), stamp, unit)
