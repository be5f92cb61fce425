"""Audit of pickles: the objects and the calls that they ask for, followed without unpickling anything.

torch's restricted unpickler runs no foreign code. What it does allow can still end the process or keep it busy for
good: a tuple that is nested too deep to be hashed, one that holds twice a tuple that holds twice a tuple, a text
written as hexadecimal time and again, a tensor that claims a billion elements and is taken apart. So the operations
are followed here first, on sizes instead of objects.

How it can fail: an operation that torch's unpickler learns is refused until it is added to ``_OPERATIONS``, as is a
function that ``torch.save`` begins to write until it is in ``TENSORS``. Neither opens a hole, since torch's own list
of what may be called stands behind this one, or ``COMMON``, where nothing else is asked for. Cheaper ways do not do: a
bound on the length of a pickle misses bombs of three hundred bytes, and a child process under limits would import torch
for each file.
"""

from __future__ import annotations

import _compat_pickle
import io
import math
import pickle
import pickletools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final, Literal, NamedTuple, TypeAlias, cast

import torchinit._limits as limits
from torchinit.checkpoints.formats.pickle_names import (
    COMMON,
    HEAVY,
    KINDS,
    PLAIN,
    TENSORS,
    allowed,
    is_leaf,
    refused,
)
from torchinit.errors import CheckpointError

_CODINGS: Final = ("latin1", "latin-1")
"""The codings in which Python writes bytes as text; others make much out of little, or take long over it."""
_WORK: Final = 1 << 20  # so much is done for nothing, and 64 times as much as the pickle is long
_BYTES: Final = {"table": 180, "set": 300, "tensor": 600, "bytes": 100}  # about what an object takes until it is read
_SIZES: Final = {  # the bytes of an element in what torch calls memory of a type; the others' are 1
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "ComplexDouble": 16,
    "ComplexFloat": 8, "QInt32": 4,
}  # fmt: skip


Filled: TypeAlias = Literal["object", "list", "table"]
Leaves: TypeAlias = dict[str, Filled]
"""The full names of functions and classes that are not to be called, and what their results are filled as."""


class Memory(NamedTuple):
    """The size of a piece of memory that tensors lie in, in elements and in bytes."""

    numel: int
    nbytes: int


def check_pickle(name: str, data: bytes) -> tuple[dict[str, Memory], Leaves, bool]:
    """The memory that a pickle asks for, by its keys, the functions and classes that are not to be called, and whether
    it has nothing but what all have: dicts, lists and plain tensors, made in the way of ``torch.save``.

    Raises CheckpointError for one that is damaged, and RefusedPickleError, which is one, where it does what
    ``torch.save`` does not, or would take more memory or time than its length explains.
    """
    audit = _Audit(name, io.BytesIO(data)).run()
    return audit.memory, audit.leaves, audit.is_common


def check_pickles(name: str, file: IO[bytes]) -> tuple[dict[str, Memory], list[str], Leaves]:
    """The same for the five pickles before the memory in a file of torch's older format; and its keys, in order."""
    audits = [_Audit(name, cast("IO[bytes]", _Bounded(file))).run() for _ in range(5)]
    return audits[3].memory, audits[4].texts, audits[3].leaves


class _Bounded:
    """A file of which no more is asked for than it has: Python makes room for what is asked before it reads."""

    def __init__(self, file: IO[bytes]) -> None:
        self.readline, self.tell = file.readline, file.tell
        here = file.tell()
        self._file, self._end = file, file.seek(0, io.SEEK_END)
        file.seek(here)

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, self._end - self.tell()))


class _Global(str):
    """The full name of a function or class."""

    __slots__ = ()


@dataclass(slots=True)
class _Object:
    """An object that is not made: its kind, how much it holds, how deep it is nested; the items of a tuple."""

    kind: str
    weight: int = 1
    items: Sequence[Any] = ()  # of a list, one of its tensors
    depth: int = 0


class _Audit:
    """A pickle's operations, followed as torch's unpickler follows them."""

    # On the stack are texts and whole numbers as they are, _Global and _Object, and None for any other value.
    # Work is counted where Python would do it: a tuple is hashed as a key, with all that is in it, each time that it
    # is used; a call copies what it is given; attributes are copied into an object. An object that lies in many places
    # was made once, so fetching it from the memo costs nothing, but for a tuple, which may be hashed there. A weight
    # is what an object held when it was put into another, so a cycle ends; what is put into it later is counted by
    # the call that copies it (_cost).

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self.name, self.file, self.work, self.bytes = name, file, 0, 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.memory: dict[str, Memory] = {}
        self.texts: list[str] = []
        self.leaves: Leaves = {}
        self.is_common = True

    def run(self) -> _Audit:
        try:
            while (code := self.file.read(1)) != pickle.STOP:
                if code not in _OPERATIONS:
                    raise self._unknown(code)  # before its argument is read, which may claim any length
                argument, action = _OPERATIONS[code]
                action(self, argument and argument.reader(self.file))
        except (IndexError, KeyError, ValueError) as error:
            raise CheckpointError(f"{self.name}: its pickle is damaged: {type(error).__name__}: {error}") from error
        return self

    def _unknown(self, code: bytes) -> CheckpointError:
        if not code:
            return CheckpointError(f"{self.name}: its pickle is damaged: it has no end")
        how = ", as of a later protocol than 2" if code >= b"\x8c" else ""
        return refused(self.name, f"does what torch.save does not (operation {code!r}{how})")

    def push(self, value: Any = None) -> None:
        self.stack.append(value)

    def push_text(self, text: str) -> None:
        self.texts.append(text)
        self.stack.append(text)

    def push_global(self, names: str) -> None:
        """Push the full name of a function or class, as Python 3 has it."""
        module, _, last = names.partition(" ")
        module, last = _compat_pickle.NAME_MAPPING.get((module, last), (module, last))
        name = _Global(f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{last}")
        if is_leaf(name):
            self.leaves.setdefault(name, "object")
        self.is_common &= name in COMMON
        self.stack.append(name)

    def mark(self) -> None:
        if len(self.marks) == limits.TUPLE_LEVELS:
            raise refused(self.name, f"nests lists and tables more than {limits.TUPLE_LEVELS} deep")
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        taken, self.stack = self.stack, self.marks.pop()
        return taken

    def take(self, number: int) -> list[Any]:
        if len(self.stack) < number:
            raise IndexError("nothing is left on its stack")
        taken = self.stack[len(self.stack) - number :]
        del self.stack[len(self.stack) - number :]
        return taken

    def push_object(self, kind: str, size: str, *content: Any) -> None:
        """Push an object that takes memory. A pickle says "a set" in one byte, of which Python makes 216."""
        self.bytes += _BYTES.get(size, 0)
        most = limits.UNPACKED_BYTES  # and eight times the pickle, of which torch.save's own make about as much
        if self.bytes > most and self.bytes > most + 8 * self.file.tell():
            raise refused(self.name, "would make far more than it holds")
        self.stack.append(_Object(kind, *content))

    def put(self, key: int) -> None:
        self.is_common &= key <= len(self.memo)  # Python's own unpickler has room for all numbers below
        self.memo[key] = self.stack[-1]

    def get(self, key: int) -> None:
        value = self.memo[key]
        if type(value) is _Object and value.kind == "tuple":
            self.spend(value.weight)
        self.stack.append(value)

    def push_tuple(self, items: Sequence[Any]) -> None:
        depth, weight = 1, 1 + len(items)
        for item in items:
            if type(item) is _Object:
                depth = max(depth, 1 + item.depth)
                weight += item.weight - 1
        if depth > limits.TUPLE_LEVELS:
            raise refused(self.name, f"nests tuples more than {limits.TUPLE_LEVELS} deep")
        self.spend(weight)
        self.stack.append(_Object("tuple", weight, items, depth))

    def fill(self, items: Sequence[Any], form: Filled) -> None:
        table = self.stack[-1]
        self.is_common &= _kind(table) in (("list",) if form == "list" else ("dict", "ordered"))
        if type(table) is _Object:
            table.weight += sum(map(_weight, items))
            if form == "list" and (heavy := [item for item in items if _kind(item) in HEAVY]):
                table.items = (*table.items[:1], heavy[0])
            if table.kind == "leaf":
                leaf = table.items[0]
                if self.leaves[leaf] not in ("object", form):
                    raise refused(self.name, f"asks for {leaf}")
                self.leaves[leaf] = form

    def call(self) -> None:
        function, arguments = self.take(2)
        if not isinstance(function, _Global) or not isinstance(arguments, _Object) or arguments.kind != "tuple":
            raise refused(self.name, "calls what is not a function")
        self.spend(cost := _cost(arguments))
        if self._is_of_leaf(function, arguments.items):
            self.leaves.setdefault(function, "object")
            self.push_object("leaf", "table", cost, (function,), arguments.depth)
            return
        claimed = self._check_call(function, arguments.items)
        kind = PLAIN.get(function, "tensor" if function in TENSORS else "own")
        size = "set" if kind in ("table", "ordered") else kind  # tables of classes are larger than Python's own
        self.push_object(kind, size, cost + claimed, arguments.items, arguments.depth)

    def make(self) -> None:
        self.is_common = False
        self.call()

    def _is_of_leaf(self, function: str, items: Sequence[Any]) -> bool:
        """Whether a call makes a leaf, or asks for a method of one."""
        return (items[0] if function == "builtins.getattr" and len(items) == 2 else function) in self.leaves

    def _check_call(self, function: str, items: Sequence[Any]) -> int:
        """Refuse what ``torch.save`` does not write, and a function that the program has not allowed; return the
        work of going through the tensor that is made.
        """
        kinds = KINDS.get(function, ())
        if (items and function in PLAIN and _is_odd(function, items)) or [*map(_kind, items[: len(kinds)])] != [*kinds]:
            raise refused(self.name, f"calls {function} with odd arguments")
        if function not in PLAIN and function not in TENSORS and function not in allowed():
            raise refused(self.name, f"asks for {function}")
        for item in items if self.leaves else ():  # which are not made, so nothing can be made of them
            leaf = item.items[0] if isinstance(item, _Object) and item.kind == "leaf" else item
            if isinstance(leaf, _Global) and leaf in self.leaves:
                raise refused(self.name, f"asks for {leaf}")
        if function.endswith("._rebuild_from_type_v2"):  # which calls what it is given
            inner, _, given, state = (*items, None)[:4]
            if not isinstance(inner, _Global):
                raise refused(self.name, "calls what is not a function")
            claimed = self._check_call(inner, given.items)
            self.spend(claimed if _weight(state) > 1 else 0)  # an attribute `real` is copied into the tensor
            return claimed
        return _claimed(items)

    def build(self) -> None:
        self.spend(cost := _cost(state := self.stack.pop()))
        built, kind = self.stack[-1], _kind(self.stack[-1])
        if _kind(state) != "tuple" if kind == "tensor" else kind != "own" and _unrolls(state):
            raise refused(self.name, "gives attributes as torch.save does not")
        self.is_common &= _kind(state) == "dict" and kind == "ordered"
        if kind == "tensor":
            built.weight += cost + _claimed(state.items)
        elif kind == "ordered":  # once: Python's own unpickler would call a __setstate__ among the attributes
            built.kind = "built"

    def ask(self) -> None:
        """Ask for memory: ``("storage", kind, key, device, number of elements, ...)``."""
        wanted = self.stack.pop()
        items = wanted.items if isinstance(wanted, _Object) else ()
        kinds = (str, _Global, str, str, int)
        if len(items) < 5 or not all(map(isinstance, items, kinds)) or items[0] != "storage" or items[4] < 0:
            raise refused(self.name, "asks for memory as torch.save does not")
        kind, numel = items[1].rpartition(".")[2].removesuffix("Storage"), items[4]
        asked = Memory(numel, numel * _SIZES.get(kind, 1))
        if self.memory.setdefault(items[2], asked) != asked:
            raise refused(self.name, f"asks for the memory {items[2]!r} in two sizes")
        self.stack.append(_Object("memory", items=(numel,)))

    def spend(self, work: int) -> None:
        """Count what is hashed and copied."""
        self.work += work
        is_much = self.work > _WORK and self.work > _WORK + 64 * self.file.tell()
        if is_much or len(self.stack) > limits.PICKLE_STACK:
            raise refused(self.name, "would make far more than it holds")


def _kind(item: Any) -> str:
    return item.kind if type(item) is _Object else ""


def _is_odd(function: str, items: Sequence[Any]) -> bool:
    """Whether a function that makes plain data is given what it would make much of."""
    sizes = function == "builtins.bytearray" and any(isinstance(item, int) for item in items)
    coded = function in ("builtins.bytearray", "_codecs.encode") and any(c not in _CODINGS for c in items[1:])
    pairs = function == "collections.OrderedDict" and any(map(_unrolls, items))
    return sizes or coded or pairs or any(_kind(item) in (*HEAVY, "own") for item in items)


def _unrolls(item: Any) -> bool:
    """Whether reading it as pairs would make an object of each element of a tensor."""
    return _kind(item) in (*HEAVY, "table") or (
        type(item) is _Object and any(_kind(part) in HEAVY for part in item.items)
    )


def _claimed(items: Sequence[Any]) -> int:
    """The work of going through a tensor that is made of these, where it claims more elements than its memory has."""
    if len(items) < 3 or _kind(items[0]) != "memory" or _kind(items[2]) != "tuple":
        return 0
    numel = math.prod([size for size in items[2].items if type(size) is int and size != 1][: limits.DIMENSIONS])
    return numel >> 6 if numel > items[0].items[0] else 0


def _weight(item: Any) -> int:
    """The size of an object, as far as it was filled when it was taken up."""
    return item.weight if type(item) is _Object else len(item) + 1 if isinstance(item, str) else 1


def _cost(item: Any) -> int:
    """The size of an object by now, with all that is in a tuple."""
    is_tuple = isinstance(item, _Object) and item.kind == "tuple"
    return sum(map(_cost, item.items)) + 1 if is_tuple else _weight(item)


_Action: TypeAlias = Callable[[_Audit, Any], Any]
_ACTIONS: Final[Mapping[str, _Action]] = {
    "PROTO": lambda audit, _: None,
    "NONE NEWTRUE NEWFALSE BINFLOAT": lambda audit, _: audit.push(),
    "BININT BININT1 BININT2 LONG1": _Audit.push,
    "BINUNICODE SHORT_BINSTRING": _Audit.push_text,
    "EMPTY_LIST": lambda audit, _: audit.push_object("list", "table"),
    "EMPTY_DICT": lambda audit, _: audit.push_object("dict", "table"),
    "EMPTY_SET": lambda audit, _: audit.push_object("table", "set"),
    "MARK": lambda audit, _: audit.mark(),
    "EMPTY_TUPLE": lambda audit, _: audit.push_tuple(()),
    "TUPLE1": lambda audit, _: audit.push_tuple(audit.take(1)),
    "TUPLE2": lambda audit, _: audit.push_tuple(audit.take(2)),
    "TUPLE3": lambda audit, _: audit.push_tuple(audit.take(3)),
    "TUPLE": lambda audit, _: audit.push_tuple(audit.since_mark()),
    "APPEND": lambda audit, _: audit.fill(audit.take(1), "list"),
    "SETITEM": lambda audit, _: audit.fill(audit.take(2), "table"),
    "APPENDS": lambda audit, _: audit.fill(audit.since_mark(), "list"),
    "SETITEMS": lambda audit, _: audit.fill(audit.since_mark(), "table"),
    "BINPUT LONG_BINPUT": _Audit.put,
    "BINGET LONG_BINGET": _Audit.get,
    "GLOBAL": _Audit.push_global,
    "REDUCE": lambda audit, _: audit.call(),
    "NEWOBJ": lambda audit, _: audit.make(),
    "BUILD": lambda audit, _: audit.build(),
    "BINPERSID": lambda audit, _: audit.ask(),
}
_OPERATIONS: Final[Mapping[bytes, tuple[pickletools.ArgumentDescriptor | None, _Action]]] = {
    opcode.code.encode("latin-1"): (opcode.arg, action)
    for names, action in _ACTIONS.items()
    for opcode in pickletools.opcodes
    if opcode.name in names.split()
}
"""All that torch's unpickler knows: by its code, how the argument of an operation is read, and what it does."""
