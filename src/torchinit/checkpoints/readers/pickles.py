"""Pickles: how deep their tuples are nested, told without unpickling anything.

Python hashes a tuple by a recursion that nothing bounds: a key of a dict that is nested deep enough ends the process,
under torch's restricted unpickler, too.
"""

from __future__ import annotations

import io
import pickletools
from dataclasses import dataclass
from typing import IO, Any, Final

from torchinit.errors import CheckpointError

_DEEPEST: Final = 100
_FEW: Final = 1000
"""So many tuples cannot be nested deep enough to harm, so that nothing more is looked at."""

_TUPLES: Final = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}


def check_pickle(name: str, data: bytes) -> None:
    """Raises CheckpointError where tuples are nested deeper than any checkpoint's, or the pickle is damaged."""
    if sum(data.count(code) for code in (b"\x85", b"\x86", b"\x87", b"t", b")")) >= _FEW:
        _walk(name, io.BytesIO(data))


def check_pickles(name: str, file: IO[bytes]) -> list[int]:
    """The same for the pickles at the beginning of one of torch's older files; the sizes of the memory behind them.

    Raises CheckpointError, too, where that memory is not what the tensors ask for.
    """
    for _ in range(3):
        _walk(name, file)
    asked, there = _walk(name, file).memory, _walk(name, file).texts
    if asked.keys() != {*there}:
        raise CheckpointError(f"{name}: the memory of its tensors is not in the file")
    return [*asked.values()]


def _walk(name: str, file: IO[bytes]) -> _Walk:
    walk = _Walk(name)
    try:
        for code, argument, _ in pickletools.genops(file):
            walk.do(code, argument)
    except (ValueError, IndexError, KeyError, TypeError, EOFError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{name}: its pickle is damaged: {error}") from error
    return walk


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is known of an object without making it: how deep it is, and its text, number or items, if it has any."""

    depth: int = 0
    value: Any = None


class _Walk:
    """A pickle's operations, followed without unpickling: how deep tuples are nested, what memory is asked for.

    ``memory`` has the bytes of each piece that a tensor lies in, by its key, ``texts`` every text.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.memo: dict[object, _Seen] = {}
        self.stack: list[_Seen | None] = []
        self.memory: dict[str, int] = {}
        self.texts: list[str] = []

    def do(self, code: pickletools.OpcodeInfo, argument: Any) -> None:
        """Follows one operation."""
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1] or _Seen()
        elif code.name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo.get(argument, _Seen()))
        elif code.name == "MARK":
            self.stack.append(None)
        else:
            self._make(code, argument)

    def _make(self, code: pickletools.OpcodeInfo, argument: Any) -> None:
        taken = self._taken(code)
        is_tuple = code.name in _TUPLES
        depth = max((one.depth for one in taken), default=0) + is_tuple
        if depth > _DEEPEST:
            raise CheckpointError(f"{self.name}: tuples are nested more than {_DEEPEST} deep in its pickle; refused")
        if isinstance(argument, str) and code.name.endswith(_TEXTS):
            self.texts.append(argument)
        value = tuple(one.value for one in taken) if is_tuple and len(taken) < _ITEMS else argument
        if code.name == "BINPERSID":
            self._ask(taken[0].value)
        self.stack += [_Seen(depth, value)] * len(code.stack_after)

    def _ask(self, wanted: Any) -> None:
        """Notes a piece of memory: ``("storage", "torch FloatStorage", key, device, number of elements, ...)``."""
        if isinstance(wanted, tuple) and len(wanted) > 4 and isinstance(wanted[2], str) and isinstance(wanted[4], int):
            kind = str(wanted[1]).removeprefix("torch ").removesuffix("Storage")
            self.memory[wanted[2]] = wanted[4] * _SIZES.get(kind, 1)

    def _taken(self, code: pickletools.OpcodeInfo) -> list[_Seen]:
        """What an operation takes from the stack, in order, down to the last mark where it takes so much."""
        taken: list[_Seen] = []
        names = [item.name for item in code.stack_before]
        if "mark" in names:
            while (one := self.stack.pop()) is not None:
                taken.append(one)
            names = names[: names.index("mark")]
        taken += [self.stack.pop() or _Seen() for _ in names]
        return taken[::-1]


_ITEMS: Final = 8
_TEXTS: Final = ("UNICODE", "UNICODE8", "STRING")
"""The ends of the names of the operations that make text; the last is Python 2's."""
_SIZES: Final = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "ComplexDouble": 16,
    "ComplexFloat": 8, "QInt32": 4,
}  # fmt: skip
"""The bytes of an element in what torch calls memory of a type; the others' are 1."""
