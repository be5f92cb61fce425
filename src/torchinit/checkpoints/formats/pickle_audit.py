"""Audit of pickles: the objects and the calls that they ask for, followed without unpickling anything.

torch's restricted unpickler runs no foreign code. What it does allow can still end the process or keep it busy for
good: a tuple that is nested too deep to be hashed, one that holds twice a tuple that holds twice a tuple, a text
written as hexadecimal time and again. So the operations are followed here first, on sizes instead of objects.

How it can fail: an operation that torch's unpickler learns is refused until it is added to ``_OPERATIONS``, as is a
function that ``torch.save`` begins to write until it is in ``TENSORS``. Neither opens a hole, since torch's own list
of what may be called stands behind this one, or ``COMMON``, where nothing else is asked for. Cheaper ways do not do: a
bound on the length of a pickle misses bombs of three hundred bytes, and a child process under limits would import torch
for each file.
"""

from __future__ import annotations

import _compat_pickle
import io
import pickle
import pickletools
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final, Literal, NamedTuple, TypeAlias, cast

import torch

import torchinit._limits as limits
from torchinit.errors import CheckpointError

PLAIN: Final[Mapping[str, str]] = {  # the functions that make plain data out of plain data, and of which kind that is
    "_codecs.encode": "bytes",
    "builtins.bytearray": "bytes",
    "builtins.complex": "number",
    "builtins.set": "table",
    "collections.Counter": "table",
    "collections.OrderedDict": "dict",
    "torch.Size": "tuple",
    "torch.device": "name",
    "torch.serialization._get_layout": "name",
}
_REBUILD = "parameter parameter_with_state tensor tensor_v2 tensor_v3 sparse_tensor qtensor meta_tensor_no_storage"
TENSORS: Final = frozenset({"torch._tensor._rebuild_from_type_v2", "torch.nn.parameter.Parameter"}) | {
    f"torch._utils._rebuild_{name}" for name in _REBUILD.split()
}
"""The functions that make tensors of memory in the file. torch allows more, which make them of nothing or copy them."""
COMMON: Final[Mapping[str, Any]] = {  # what the files of most models name, and what each name stands for there
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    **{f"torch.{kind}Storage": dtype for kind, dtype in {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()},
}  # fmt: skip
_LEAVES: Final = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|typing\.Any|_?io\.BytesIO|collections\.(deque|defaultdict)|uuid\.UUID"
    r"|pathlib(\._local)?\.\w*Path|datetime\.(datetime|date|time|timedelta|timezone)|decimal\.Decimal|fractions\.Fraction"
    r"|builtins\.(slice|range|frozenset|object|list|dict|tuple|int|float|str|bool)|torch\.torch_version\.TorchVersion"
    r"|numpy(\._?core(\.\w+)?)?\.(dtype|ndarray|scalar|_reconstruct|_frombuffer|u?int\d+|float\d+|complex\d+|bool_?|str_)"
    r"|numpy\.dtypes\.\w+|numpy\.random\..+|(omegaconf|ml_collections)\..+|yacs\.config\.CfgNode"
    r"|easydict\.EasyDict|addict(\.addict)?\.Dict|mmengine\.logging\.history_buffer\.HistoryBuffer"
    r"|(mmengine\.config|mmcv\.utils)\.config\.\w+|(pytorch_)?lightning(_fabric)?\..+\.AttributeDict|megatron\..*enums?\.\w+"
)
"""What training code keeps beside the weights, arguments and scalars: it is not made, and what it holds is let go."""
_CODINGS: Final = ("latin1", "latin-1")
"""The codings in which Python writes bytes as text; others make much out of little, or take long over it."""
_WORK: Final = 1 << 20  # so much is done for nothing, and 64 times as much as the pickle is long
_BYTES: Final = {"table": 180, "set": 300, "tensor": 600, "bytes": 100}  # about what an object takes until it is read
_SIZES: Final = {  # the bytes of an element in what torch calls memory of a type; the others' are 1
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "ComplexDouble": 16,
    "ComplexFloat": 8, "QInt32": 4,
}  # fmt: skip


class RefusedPickleError(CheckpointError, pickle.UnpicklingError):
    """A pickle that asks for more than tensors and plain data; nothing of it was run."""


def refused(name: str, deed: str) -> RefusedPickleError:
    """The error for a pickle that does what it may not."""
    how = "Get the weights as .safetensors, or save their state_dict alone"
    asked = re.fullmatch(r"asks for ((\w+)\.[\w.]*\b[A-Z]\w*)", deed)
    if asked and (is_leaf(asked[1]) or asked[2] not in (*sys.stdlib_module_names, "torch")):
        how += f"; or, if you trust the file, load it under torch.serialization.safe_globals([{asked[1]}])"
    if re.search(r"_rebuild_wrapper_subclass|torchao|quanto|bitsandbytes|hqq", deed):
        how = "Its tensors are of a library's own class (quantized?): load it there, dequantize() them and save those"
    only = "and only tensors and plain data are read. Nothing in it was run"
    return RefusedPickleError(f"{name}: is refused: its pickle {deed}, {only}. {how}")


def is_leaf(name: str) -> bool:
    """Whether a full name is of what may lie beside the weights, and need not be made; what a program allows is."""
    return bool(_LEAVES.fullmatch(name)) and name not in _allowed()


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
    items: Sequence[Any] = ()
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
        self.is_common &= _kind(table) == ("list" if form == "list" else "dict")
        if type(table) is _Object:
            table.weight += sum(map(_weight, items))
            if table.kind == "leaf":
                (leaf,) = table.items
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
        self._check_call(function, arguments.items)
        kind = PLAIN.get(function, "tensor")
        size = "set" if kind in ("table", "dict") else kind  # tables of classes are larger than Python's own
        self.push_object(kind, size, cost, arguments.items, arguments.depth)

    def make(self) -> None:
        self.is_common = False
        self.call()

    def _is_of_leaf(self, function: str, items: Sequence[Any]) -> bool:
        """Whether a call makes a leaf, or asks for a method of one."""
        return (items[0] if function == "builtins.getattr" and len(items) == 2 else function) in self.leaves

    def _check_call(self, function: str, items: Sequence[Any]) -> None:
        """Refuse a call that ``torch.save`` does not write, and that of a function that the program has not allowed."""
        if function in PLAIN:
            sizes = function == "builtins.bytearray" and any(isinstance(item, int) for item in items)
            coded = function in ("builtins.bytearray", "_codecs.encode") and any(c not in _CODINGS for c in items[1:])
            if sizes or coded or any(isinstance(item, _Object) and item.kind == "tensor" for item in items):
                raise refused(self.name, f"calls {function} with odd arguments")
        elif function not in TENSORS and function not in _allowed():
            raise refused(self.name, f"asks for {function}")
        for item in items:  # which is not made, so nothing can be made of it
            leaf = item.items[0] if isinstance(item, _Object) and item.kind == "leaf" else item
            if isinstance(leaf, _Global) and leaf in self.leaves:
                raise refused(self.name, f"asks for {leaf}")
        if function.endswith("._rebuild_from_type_v2"):  # which calls what it is given
            inner, _, given = (*items, None, None, None)[:3]
            if not isinstance(inner, _Global) or not isinstance(given, _Object):
                raise refused(self.name, "calls what is not a function")
            self._check_call(inner, given.items)

    def build(self) -> None:
        self.spend(_cost(state := self.stack.pop()))
        self.is_common &= _kind(state) == _kind(self.stack[-1]) == "dict"

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
        self.stack.append(_Object("memory"))

    def spend(self, work: int) -> None:
        """Count what is hashed and copied."""
        self.work += work
        is_much = self.work > _WORK and self.work > _WORK + 64 * self.file.tell()
        if is_much or len(self.stack) > limits.PICKLE_STACK:
            raise refused(self.name, "would make far more than it holds")


def _kind(item: Any) -> str:
    return item.kind if type(item) is _Object else ""


def _weight(item: Any) -> int:
    """The size of an object, as far as it was filled when it was taken up."""
    return item.weight if type(item) is _Object else len(item) + 1 if isinstance(item, str) else 1


def _cost(item: Any) -> int:
    """The size of an object by now, with all that is in a tuple."""
    is_tuple = isinstance(item, _Object) and item.kind == "tuple"
    return sum(map(_cost, item.items)) + 1 if is_tuple else _weight(item)


def _allowed() -> set[str]:
    """The functions that the program has registered with ``torch.serialization.add_safe_globals``."""
    safe = torch.serialization.get_safe_globals()
    names = {item[1] if isinstance(item, tuple) else f"{item.__module__}.{item.__qualname__}" for item in safe}
    return {name for name in names if not name.startswith("torch.")}


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
