"""Pickles: what they would make and ask for, told without unpickling anything.

torch's restricted unpickler runs no foreign code. What it does allow can still end the process or keep it busy for
good: a tuple that is nested too deep to be hashed, one that holds twice a tuple that holds twice a tuple, a text
written as hexadecimal time and again. So the operations are followed here first, on sizes instead of objects.
"""

from __future__ import annotations

import _compat_pickle
import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

from torchinit.checkpoints.readers.calls import PLAIN, fault, refused
from torchinit.errors import CheckpointError

_DEEPEST: Final = 100
"""Python hashes a tuple by a recursion that nothing bounds."""
_WORK: Final = 1 << 20
"""So much is done for nothing, and 64 times as much as the pickle is long."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A piece of memory that tensors lie in: how many elements of how many bytes."""

    numel: int
    itemsize: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.itemsize


def check_pickle(name: str, data: bytes) -> dict[str, Memory]:
    """The memory that a pickle asks for, by its keys.

    Raises CheckpointError for one that is damaged, and RefusedPickleError, which is one, where it does what
    ``torch.save`` does not, or would take more memory or time than its length explains.
    """
    walk = _Walk(name, io.BytesIO(data))
    walk.run()
    return walk.memory


def check_pickles(name: str, file: IO[bytes]) -> tuple[dict[str, Memory], list[str]]:
    """The same for the pickles at the beginning of one of torch's older files: the memory, and its keys in order.

    The file is then at the beginning of the memory.
    """
    walks = [_Walk(name, file) for _ in range(5)]
    for walk in walks:
        walk.run()
    return walks[3].memory, walks[4].texts


class _Global(str):
    """The full name of a function or class."""

    __slots__ = ()


class _Held:
    """What is known of an object without making it: its kind, how much it holds, how deep; a tuple's items."""

    __slots__ = ("depth", "items", "kind", "weight")

    def __init__(self, kind: str, weight: int = 1, items: Sequence[Any] = ()) -> None:
        self.kind = kind
        self.weight = weight
        self.items = items
        self.depth = 0


class _Walk:
    """A pickle's operations, followed in the way of torch's unpickler, which knows no others.

    On the stack are texts and whole numbers as they are, ``_Global`` and ``_Held``, and None for any other value.
    """

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self.name = name
        self.file = file
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.memory: dict[str, Memory] = {}
        self.texts: list[str] = []
        self.work = 0

    def run(self) -> None:
        """Follows the pickle to its end."""
        try:
            while (code := self.file.read(1)) != b".":
                if code not in _OPERATIONS:
                    raise self._unknown(code)
                _OPERATIONS[code](self)
        except (IndexError, KeyError, ValueError) as error:
            raise CheckpointError(f"{self.name}: its pickle is damaged: {type(error).__name__}: {error}") from error

    def _unknown(self, code: bytes) -> CheckpointError:
        if not code:
            return CheckpointError(f"{self.name}: its pickle is damaged: it has no end")
        how = ", as of a later protocol than 2" if code >= b"\x8c" else ""
        return refused(self.name, f"does what torch.save does not (operation {code!r}{how})")

    def next(self, number: int) -> bytes:
        """The next bytes, all of them."""
        data = self.file.read(number)
        if len(data) < number:
            raise ValueError("it is cut short")
        return data

    def number(self, form: str) -> int:
        """The next bytes as a number of a ``struct``."""
        value: int = struct.unpack(form, self.next(struct.calcsize(form)))[0]
        return value

    def text(self, data: bytes) -> None:
        """Takes up a text."""
        self.texts.append(data.decode("utf-8", "surrogatepass"))
        self.stack.append(self.texts[-1])

    def name_of(self) -> _Global:
        """The full name that the next two lines give, as Python 3 has it."""
        lines = self.file.readline(1 << 10), self.file.readline(1 << 10)
        if not all(line.endswith(b"\n") for line in lines):
            raise ValueError("it is cut short")
        module, last = (line[:-1].decode() for line in lines)
        module, last = _compat_pickle.NAME_MAPPING.get((module, last), (module, last))
        return _Global(f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{last}")

    def since_mark(self) -> list[Any]:
        """What was put on the stack since the last mark."""
        taken, self.stack = self.stack, self.marks.pop()
        return taken

    def take(self, number: int) -> list[Any]:
        """The last few of the stack."""
        if len(self.stack) < number:
            raise IndexError("nothing is left on its stack")
        taken = self.stack[len(self.stack) - number :]
        del self.stack[len(self.stack) - number :]
        return taken

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def fetch(self, key: int) -> None:
        """Takes up what was noted: a tuple is hashed anew each time."""
        one = self.memo[key]
        if type(one) is _Held and one.kind == "tuple":
            self.spend(one.weight)
        self.stack.append(one)

    def gather(self, items: Sequence[Any]) -> None:
        """Makes a tuple."""
        made = _Held("tuple", 1, items)
        for one in items:
            if type(one) is _Held:
                made.weight += one.weight
                made.depth = max(made.depth, one.depth)
            else:
                made.weight += 1
        made.depth += 1
        if made.depth > _DEEPEST:
            raise refused(self.name, f"nests tuples more than {_DEEPEST} deep")
        self.spend(made.weight)
        self.stack.append(made)

    def fill(self, items: Sequence[Any]) -> None:
        """Puts items into the table on the stack."""
        if type(held := self.stack[-1]) is _Held:
            held.weight += sum(map(_weight, items))

    def call(self) -> None:
        """Calls a function, and takes up what it makes."""
        function, arguments = self.take(2)
        if not isinstance(function, _Global) or not isinstance(arguments, _Held) or arguments.kind != "tuple":
            raise refused(self.name, "calls what is no function")
        self._check_call(function, arguments)
        self.spend(cost := _cost(arguments))
        made = _Held(PLAIN.get(function, "tensor"), cost, arguments.items)
        made.depth = arguments.depth
        self.stack.append(made)

    def _check_call(self, function: str, arguments: _Held) -> None:
        plain = not any(isinstance(one, _Held) and one.kind == "tensor" for one in arguments.items)
        if why := fault(function, arguments.items, plain=plain):
            raise refused(self.name, why)
        if function.endswith("._rebuild_from_type_v2"):  # which calls what it is given
            inner, _, given = (*arguments.items, None, None, None)[:3]
            if not isinstance(inner, _Global) or not isinstance(given, _Held):
                raise refused(self.name, "calls what is no function")
            self._check_call(inner, given)

    def build(self) -> None:
        """Gives the object on the stack its attributes."""
        self.spend(_cost(self.stack.pop()))

    def ask(self) -> None:
        """Asks for memory: ``("storage", kind, key, device, number of elements, ...)``."""
        wanted = self.stack.pop()
        items = wanted.items if isinstance(wanted, _Held) else ()
        kinds = (str, _Global, str, str, int)
        if len(items) < 5 or not all(map(isinstance, items, kinds)) or items[0] != "storage" or items[4] < 0:
            raise refused(self.name, "asks for memory as torch.save does not")
        kind = items[1].rpartition(".")[2].removesuffix("Storage")
        asked = Memory(items[4], _SIZES.get(kind, 1))
        if self.memory.setdefault(items[2], asked) != asked:
            raise refused(self.name, f"asks for the memory {items[2]!r} in two sizes")
        self.stack.append(_Held("memory"))

    def spend(self, work: int) -> None:
        """Counts what is hashed and copied."""
        self.work += work
        if self.work > _WORK and self.work > _WORK + 64 * self.file.tell():
            raise refused(self.name, "would make far more than it holds")


def _weight(one: Any) -> int:
    """How much an object holds, as far as it was filled when it was taken up."""
    return one.weight if type(one) is _Held else len(one) + 1 if isinstance(one, str) else 1


def _cost(one: Any) -> int:
    """How much an object holds by now, what is in a tuple with it."""
    is_tuple = isinstance(one, _Held) and one.kind == "tuple"
    return sum(map(_cost, one.items)) + 1 if is_tuple else _weight(one)


def _push(value: Any) -> Callable[[_Walk], None]:
    return lambda walk: walk.stack.append(value)


def _table(walk: _Walk) -> None:
    walk.stack.append(_Held("table"))


def _put(walk: _Walk, key: int) -> None:
    walk.memo[key] = walk.stack[-1]


_OPERATIONS: Final[dict[bytes, Callable[[_Walk], Any]]] = {
    b"\x80": lambda walk: walk.next(1),
    b"c": lambda walk: walk.stack.append(walk.name_of()),
    b"N": _push(None),
    b"\x88": _push(None),
    b"\x89": _push(None),
    b"K": lambda walk: walk.stack.append(walk.next(1)[0]),
    b"M": lambda walk: walk.stack.append(walk.number("<H")),
    b"J": lambda walk: walk.stack.append(walk.number("<i")),
    b"\x8a": lambda walk: walk.stack.append(int.from_bytes(walk.next(walk.next(1)[0]), "little", signed=True)),
    b"G": lambda walk: walk.stack.append(walk.next(8) and None),
    b"X": lambda walk: walk.text(walk.next(walk.number("<I"))),
    b"U": lambda walk: walk.text(walk.next(walk.next(1)[0])),
    b"(": _Walk.mark,
    b")": lambda walk: walk.gather(()),
    b"\x85": lambda walk: walk.gather(walk.take(1)),
    b"\x86": lambda walk: walk.gather(walk.take(2)),
    b"\x87": lambda walk: walk.gather(walk.take(3)),
    b"t": lambda walk: walk.gather(walk.since_mark()),
    b"]": _table,
    b"}": _table,
    b"\x8f": _table,
    b"a": lambda walk: walk.fill(walk.take(1)),
    b"e": lambda walk: walk.fill(walk.since_mark()),
    b"s": lambda walk: walk.fill(walk.take(2)),
    b"u": lambda walk: walk.fill(walk.since_mark()),
    b"q": lambda walk: _put(walk, walk.next(1)[0]),
    b"r": lambda walk: _put(walk, walk.number("<I")),
    b"h": lambda walk: walk.fetch(walk.next(1)[0]),
    b"j": lambda walk: walk.fetch(walk.number("<I")),
    b"R": _Walk.call,
    b"\x81": _Walk.call,
    b"b": _Walk.build,
    b"Q": _Walk.ask,
}
_SIZES: Final = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "ComplexDouble": 16,
    "ComplexFloat": 8, "QInt32": 4,
}  # fmt: skip
"""The bytes of an element in what torch calls memory of a type; the others' are 1."""
