"""More hostile files: little that would become much, what two readers would read in two ways, names that deceive."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy

from tests.checkpoints.hostile import old_format, rebuilt, zipped

NAME = b"X\x01\x00\x00\x00w"


def plain(value: object) -> bytes:
    """The operations that make plain data."""
    return pickle.dumps(value, 2)[2:-1]


def called(function: str, *arguments: bytes) -> bytes:
    """The operations that call a function, ``"module name"``."""
    module, _, name = function.partition(" ")
    return f"c{module}\n{name}\n(".encode() + b"".join(arguments) + b"tR"


TENSOR = rebuilt((4,), (1,), 0, 4, "zip")


def files() -> Iterator[tuple[str, bytes]]:
    """A name and the content of each; none of them may be opened."""
    for name, body in {**bombs(), **methods()}.items():
        state = b"\x80\x02" + body + b"."
        yield f"bomb {name}.pth", zipped({"data.pkl": state, "data/0": bytes(16)})
    for name in ("pairs", "hexadecimal", "operations of protocol 4"):
        yield f"bomb {name}, old.pth", old_format(b"\x80\x02" + bombs()[name] + b".")
    yield from two_readers()
    yield from arrays()
    yield from headers()


def bombs() -> dict[str, bytes]:
    """Pickles that make much of little: each would take gigabytes, or minutes at the least."""
    nested = called("_codecs encode", plain("a" * 1000), plain("latin1"))
    for _ in range(40):
        nested = called("_codecs encode", nested, plain("hex"))
    texts = plain("".join(chr(200 + number % 5000) for number in range(100_000)))
    keys = [plain(f"{number:05d}") for number in range(3000)]
    table = b"}(" + b"".join(key + b"K\x01" for key in keys) + NAME + TENSOR + b"u"
    for _ in range(3):
        table = b"}(" + NAME + table + b"q\x63" + b"".join(key + b"h\x63" for key in keys) + b"u"
    numbers = b"](" + b"".join(map(plain, range(50_000))) + b"eq\x00"
    layout = called("torch.serialization _get_layout", plain("torch.strided"))
    plenty = (
        b"ctorch\nTensor\n",
        b"ctorch\nfloat32\n",
        plain((9,)),
        plain((1,)),
        plain(0),
        layout,
        plain("cpu"),
        b"\x89",
    )
    return {
        "pairs": b"})q\x00" + b"h\x00\x86q\x00" * 60 + b"K\x01s",
        "triples": b"})q\x00" + b"h\x00h\x00\x87q\x00" * 40 + b"K\x01s",
        "pairs in a size": b"}" + NAME + b"ctorch\nSize\n)q\x00" + b"h\x00\x86q\x00" * 60 + b"Rs",
        "hexadecimal": b"}" + NAME + nested + b"s",
        "slow text": b"}" + NAME + called("_codecs encode", texts, plain("punycode")) + b"s",
        "tables in tables": table,
        "a table in itself": b"}q\x00(X\x05\x00\x00\x00modelh\x00" + NAME + TENSOR + b"u",
        "sets of one list": b"}" + NAME + b"(" + numbers + b"c__builtin__\nset\nh\x00\x85R" * 3000 + b"ts",
        "counts of one list": b"}" + NAME + b"(" + numbers + b"ccollections\nCounter\nh\x00\x85R" * 3000 + b"ts",
        "bytes by number": b"}" + NAME + called("__builtin__ bytearray", plain(1 << 40)) + b"s",
        "a set of a tensor": b"}" + NAME + called("__builtin__ set", TENSOR) + b"s",
        "a tensor of nothing": b"}" + NAME + called("torch FloatTensor", plain(4)) + b"s",
        "memory of nothing": b"}" + NAME + called("torch.storage UntypedStorage", plain(1 << 40)) + b"s",
        "a copy": b"}" + NAME + called("torch._utils _rebuild_device_tensor_from_cpu_tensor", TENSOR) + b"s",
        "a call in a call": b"}" + NAME + from_type(b"ctorch\nFloatTensor\n", plain((4,)), b"}") + b"s",
        "a call of nothing": b"}" + NAME + from_type(b"K\x01", plain((4,)), b"}") + b"s",
        "a subclass": b"}" + NAME + called("torch._utils _rebuild_wrapper_subclass", *plenty) + b"s",
        "one memory in two sizes": b"}(" + NAME + TENSOR + plain("v") + rebuilt((2,), (1,), 0, 2, "zip") + b"u",
        "memory by number": b"}" + NAME + b"K\x01Qs",
        "a call of a list": b"}" + NAME + b"ccollections\nOrderedDict\n]Rs",
        "operations of protocol 4": b"\x8c\x01w",
        "a name without an end": b"}c" + b"a" * 5000,
    }


def methods() -> dict[str, bytes]:
    """Attributes in place of methods, which would hide what a table holds or how large a tensor is."""
    table = b"ccollections\nOrderedDict\n)R" + NAME + TENSOR + b"s"
    made = {
        f"own {name}": table + b"}" + plain(name) + b"c__builtin__\nset\nsb" for name in ("values", "items", "keys")
    }
    for name in ("untyped_storage", "detach", "numel", "is_conj"):
        tensor = from_type(b"ctorch._utils\n_rebuild_tensor_v2\n", arguments_of(TENSOR), b"}" + plain(name) + b"K\x01s")
        made[f"own {name}"] = b"}" + NAME + tensor + b"s"
    return made


def arguments_of(call: bytes) -> bytes:
    """What is between the name of a function and its call."""
    return call.split(b"\n", 2)[2].removesuffix(b"R")


def from_type(function: bytes, arguments: bytes, state: bytes) -> bytes:
    """The operations that have torch call a function and give attributes to what it makes."""
    return called("torch._tensor _rebuild_from_type_v2", function, b"ctorch\nTensor\n", arguments, state)


# --- what two readers would read in two ways -------------------------------------------------------------------------


def two_readers() -> Iterator[tuple[str, bytes]]:
    """Zips of which Python sees a harmless pickle, and torch another one."""
    evil = b"\x80\x02}(" + b")" + b"\x85" * 200_000 + b"K\x01u."
    good = b"\x80\x02}" + NAME + TENSOR + b"s."
    inner = {"data.pkl": good, "data/0": bytes(16)}
    yield "zip upper case.pth", zipped({"data.PKL": evil, "x/data.pkl": good})
    yield "zip upper case too.pth", zipped({**inner, "DATA.pkl": evil})
    yield "zip two folders.pth", zipped({**inner, "b/data.pkl": evil}).replace(b"archive/b/", b"another/b/")
    yield "zip with something behind.pth", zipped(inner) + bytes(40)
    yield "zip with a comment.pth", zipped(inner)[:-2] + b"\x05\x00hello"
    yield "zip behind a zip.pth", zipped({"data.pkl": evil}) + zipped(inner)
    yield "zip wide.pth", wide(zipped(inner))
    for odd in ("./data.pkl", "../archive/data.pkl", "/data.pkl", "data//0", "a/../data.pkl", ".\\data.pkl"):
        yield f"zip with {odd.replace('/', '!')}.pth", zipped({**inner, odd: evil})
    yield "zip of another name in a header.pth", zipped(inner).replace(b"archive/data.pkl", b"archive/data.bin", 1)
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, content in inner.items():
            entry = zipfile.ZipInfo(f"archive/{name}")
            entry.extra = struct.pack("<HHQ", 1, 8, 3) if name == "data.pkl" else b""
            archive.writestr(entry, content)
    yield "zip with sizes of its own.pth", held.getvalue()


def wide(seen: bytes) -> bytes:
    """A zip with a second last record, and where that is, in which one reader believes and another not."""
    end = seen.rfind(b"PK\x05\x06")
    number, length, begin = struct.unpack("<HII", seen[end + 10 : end + 20])
    record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, number, number, length, begin)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, 4, 1)
    return seen[:end] + record + locator + seen[end:]


# --- numpy and safetensors -------------------------------------------------------------------------------------------


def arrays() -> Iterator[tuple[str, bytes]]:
    def header(text: str, body: bytes = b"") -> bytes:
        raw = text.encode() + b" " * (-(len(text) + 11) % 64) + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + body

    def of(shape: str, kind: str = "'<f4'") -> str:
        return f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}"

    cases = {
        "negative twice": (of("(-2, -2)"), bytes(16)),
        "true": (of("(True, 4)"), bytes(16)),
        "beyond": (of("(0, 99999999999999999999)"), b""),
        "dimensions": (of(f"({'1,' * 70})"), bytes(4)),
        "signs": (of(f"({'-' * 5000}1,)"), b""),
        "brackets": (of("()", "[" * 3000 + "]" * 3000), b""),
        "half": ("{'descr':'<f4','fortran_order':False,'shape':(4L,", bytes(4)),
        "no hash": ("{[]: 1}", b""),
        "a set": ("{1, 2}", b""),
        "dates": (of("(2,)", "'<M8[s]'"), bytes(16)),
        "text": (of("(2,)", "'<U2'"), bytes(16)),
        "no bytes": (of("(1000000000000,)", "'|S0'"), b""),
        "wide": (of("(1,)", "'<f16'"), bytes(16)),
        "records": (of("(1,)", "'f4,f4'"), bytes(8)),
        "a table for a type": (of("(1,)", "{'names': ['a'], 'formats': ['<f4']}"), bytes(4)),
    }
    for name, (text, body) in cases.items():
        yield f"numpy {name}.npy", header(text, body)
    held = io.BytesIO()
    numpy.savez(held, w=numpy.ones(4, "f4"))
    locked = bytearray(held.getvalue())
    for start, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        struct.pack_into("<H", locked, locked.find(start) + offset, 1)
    yield "numpy encrypted.npz", bytes(locked)


def headers() -> Iterator[tuple[str, bytes]]:
    good = json.dumps({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}).encode()
    many = b",".join(b'"%d":0' % number for number in range(200_000))
    shape = b"[" + b",".join([b"9223372036854775807"] * 200_000) + b"]"
    cases: dict[str, bytes] = {
        "last of many twice": b"{" + many + b',"199999":0}',
        "many dimensions": b'{"a":{"dtype":"F32","shape":' + shape + b',"data_offsets":[0,4]}}',
        "a long number": b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}',
        "tied twice": b'{"a":' + good + b',"__metadata__":{"torchinit.tied":"{\\"b\\":\\"a\\",\\"b\\":\\"a\\"}"}}',
    }
    for name, text in cases.items():
        yield f"safetensors {name}.safetensors", struct.pack("<Q", len(text)) + text + bytes(4)
    yield "index with many twice.json", b'{"weight_map":{' + many + b"," + many + b"}}"


def deceivers() -> dict[str, Any]:
    """Names of tensors that a terminal would obey, or that no file can have."""
    return {
        "colour": "a\x1b[31mred\x1b[0m",
        "title": "a\x1b]0;owned\x07",
        "a C1 escape": "a\x9b2J",
        "backwards": "a\u202egnp.b",
        "two lines": "a\nsha256 0000: all is well",
        "back to the start": "a\rb",
        "NUL": "a\0b",
        "half a letter": "a\ud800",
        "long": "a" * 100_000,
    }
