"""Pickles: how deep their tuples are nested, told without unpickling anything.

Python hashes a tuple by a recursion that nothing bounds: a key of a dict that is nested deep enough ends the process,
under torch's restricted unpickler, too.
"""

from __future__ import annotations

import io
import pickletools
from typing import IO, Final

from torchinit.errors import CheckpointError

_DEEPEST: Final = 100
_FEW: Final = 1000
"""So many tuples cannot be nested deep enough to harm, so that nothing more is looked at."""

_SEVERAL: Final = 5
"""A number, a version, what wrote it, the object, the names of its memory."""

_TUPLES: Final = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}


def check_pickle(name: str, data: bytes) -> None:
    """Raises CheckpointError where tuples are nested deeper than any checkpoint's, or the pickle is damaged."""
    if sum(data.count(code) for code in (b"\x85", b"\x86", b"\x87", b"t", b")")) >= _FEW:
        _walk(name, io.BytesIO(data))


def check_pickles(name: str, file: IO[bytes]) -> None:
    """The same for the pickles that stand one behind the other at the beginning of torch's older files."""
    for _ in range(_SEVERAL):
        _walk(name, file)


def _walk(name: str, file: IO[bytes]) -> None:
    walk = _Walk(name)
    try:
        for code, argument, _ in pickletools.genops(file):
            walk.do(code, argument)
    except (ValueError, IndexError, KeyError, EOFError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{name}: its pickle is damaged: {error}") from error


class _Walk:
    """A pickle's operations done on numbers: for each object how deep the tuples in it are nested."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.memo: dict[object, int] = {}
        self.stack: list[int | None] = []

    def do(self, code: pickletools.OpcodeInfo, argument: object) -> None:
        """Carries out one operation."""
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1] or 0
            return
        if code.name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo.get(argument, 0))
            return
        if code.name == "MARK":
            self.stack.append(None)
            return
        depth = max(self._popped(code), default=0) + (code.name in _TUPLES)
        if depth > _DEEPEST:
            raise CheckpointError(f"{self.name}: tuples are nested more than {_DEEPEST} deep in its pickle; refused")
        self.stack += [depth] * len(code.stack_after)

    def _popped(self, code: pickletools.OpcodeInfo) -> list[int]:
        """The depths of what an operation takes from the stack, down to the last mark where it takes so much."""
        taken: list[int] = []
        names = [item.name for item in code.stack_before]
        if "mark" in names:
            while (depth := self.stack.pop()) is not None:
                taken.append(depth)
            names = names[: names.index("mark")]
        return taken + [self.stack.pop() or 0 for _ in names]
