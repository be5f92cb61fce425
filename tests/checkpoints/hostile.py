"""Hostile files: what somebody may send instead of weights. Each payload would make a marker file if it ran."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import torch

from tests.checkpoints.files import raw_safetensors

Build = Callable[[Path], None]


def files(marker: Path) -> Iterator[tuple[str, bytes]]:
    """A name and the content of every hostile file; none of them may be opened."""
    for family in (payloads(marker), zips(), strides(), headers(), arrays(marker), indices(), monsters(), cut_short()):
        yield from family


# --- pickles that would run something --------------------------------------------------------------------------------


def calls(marker: Path) -> dict[str, bytes]:
    """Twenty ways in which a pickle can run code, as the operations that do so."""
    touch = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w').close()"
    simple: dict[str, tuple[str, tuple[Any, ...]]] = {
        "os.system": ("os system", (touch,)),
        "posix.system": ("posix system", (touch,)),
        "os.popen": ("os popen", (touch,)),
        "subprocess.Popen": ("subprocess Popen", (["touch", str(marker)],)),
        "subprocess.check_output": ("subprocess check_output", (["touch", str(marker)],)),
        "eval": ("builtins eval", (code,)),
        "exec": ("builtins exec", (code,)),
        "old eval": ("__builtin__ eval", (code,)),
        "open": ("builtins open", (str(marker), "w")),
        "io.open": ("io open", (str(marker), "w")),
        "pathlib": ("pathlib Path.touch", (str(marker),)),
        "shutil": ("shutil copyfile", ("/etc/hostname", str(marker))),
        "import": ("builtins __import__", ("this",)),
        "importlib": ("importlib import_module", ("antigravity",)),
        "getattr": ("builtins getattr", ("os", "system")),
        "runpy": ("runpy _run_code", (code, {})),
        "timeit": ("timeit timeit", (code,)),
        "pickle.loads": ("pickle loads", (pickle.dumps(3),)),
        "torch.load": ("torch load", (str(marker),)),
        "torch.hub": ("torch.hub load", ("a/b", "c")),
        "numpy.load": ("numpy load", (str(marker),)),
        "code of a function": ("types FunctionType", (3,)),
        "operator": ("operator methodcaller", ("system", touch)),
        "functools": ("functools partial", (print, touch)),
    }
    made = {}
    for name, (function, arguments) in simple.items():
        module, _, attribute = function.partition(" ")
        made[name] = f"c{module}\n{attribute}\n".encode() + pickle.dumps(arguments, 2)[2:-1] + b"R"
    made["an object that builds itself"] = b"cargparse\nNamespace\n)\x81}X\x01\x00\x00\x00aK\x01sb"
    made["inst"] = b"(" + pickle.dumps(touch, 2)[2:-1] + b"ios\nsystem\n"
    return made


def payloads(marker: Path) -> Iterator[tuple[str, bytes]]:
    """Each of them alone, beside a tensor, in a zip and in torch's older format."""
    for name, call in calls(marker).items():
        state = b"\x80\x02}(X\x01\x00\x00\x00w" + call + b"u."
        yield f"payload {name}, raw.pkl", b"\x80\x02" + call + b"."
        yield f"payload {name}, in a dict.pkl", state
        yield f"payload {name}, in a zip.pth", zipped({"data.pkl": state})
        yield f"payload {name}, in the old format.pth", old_format(state)


def zipped(entries: dict[str, bytes], kind: int = zipfile.ZIP_STORED, root: str = "archive") -> bytes:
    """A zip file as ``torch.save`` makes it, with these entries."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", kind) as archive:
        for name, content in {"version": b"3\n", "byteorder": b"little", **entries}.items():
            archive.writestr(f"{root}/{name}" if root else name, content)
    return held.getvalue()


def old_format(state: bytes) -> bytes:
    """A file as ``torch.save`` made it before it made zip files."""
    held = io.BytesIO()
    torch.save({}, held, _use_new_zipfile_serialization=False)
    parts = held.getvalue()
    at = 0
    for _ in range(3):  # what stands before the object
        reader = io.BytesIO(parts[at:])
        pickle.load(reader)
        at += reader.tell()
    return parts[:at] + state + pickle.dumps([], 2)


# --- zips that lie ---------------------------------------------------------------------------------------------------


def sound(form: str = "zip") -> bytes:
    """A checkpoint of a few kilobytes with nothing wrong."""
    held = io.BytesIO()
    tensors = {f"{n}.weight": torch.arange(640.0).view(32, 20) + n for n in range(6)}
    if form == "safetensors":
        from safetensors.torch import save

        return save(tensors)
    if form == "npz":
        numpy.savez(held, **{key: value.numpy() for key, value in tensors.items()})  # type: ignore[arg-type]
        return held.getvalue()
    torch.save(tensors, held, _use_new_zipfile_serialization=form == "zip")
    return held.getvalue()


def zips() -> Iterator[tuple[str, bytes]]:
    inner = {name: content for name, content in entries_of(sound()).items() if name not in ("version", "byteorder")}
    for kind in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield f"zip compressed {kind}.pth", zipped(inner, kind)
    yield "zip bomb.pth", zipped({"data.pkl": inner["data.pkl"], "data/0": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    yield "zip torchscript.pth", zipped({**inner, "code/__torch__.py": b"import os", "constants.pkl": b"\x80\x02)."})
    yield "zip constants.pth", zipped({**inner, "constants.pkl": b"\x80\x02)."})
    yield "zip without a pickle.pth", zipped({"data/0": b"1234"})
    yield "zip empty.pth", b"PK\x05\x06" + bytes(18)
    yield "zip of text.pth", zipped({"readme.txt": b"hello"})
    yield "zip out of it.pth", zipped({**inner, "../../../tmp/x": b"x", "data.pkl": b"\x80\x02}."})
    yield "zip without tensors' bytes.pth", zipped({"data.pkl": inner["data.pkl"]})
    yield "zip with too few bytes.pth", zipped({**inner, "data/0": b"1234"})
    raw = bytearray(sound())
    for name, offset, value in (("size", 24, 0x7FFFFFFF), ("packed", 20, 0x7FFFFFFF), ("offset", 42, 0x7FFFFFFF)):
        entry = raw.rfind(b"PK\x01\x02")
        changed = bytearray(raw)
        struct.pack_into("<I", changed, entry + offset, value)
        yield f"zip wrong {name}.pth", bytes(changed)
    overlapping, entry = bytearray(raw), raw.rfind(b"PK\x01\x02")
    struct.pack_into("<I", overlapping, entry + 42, 0)
    yield "zip overlapping.pth", bytes(overlapping)
    locked = bytearray(raw)
    struct.pack_into("<H", locked, entry + 8, 1)
    yield "zip encrypted.pth", bytes(locked)


def entries_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


# --- tensors that claim more than there is ---------------------------------------------------------------------------


def strides() -> Iterator[tuple[str, bytes]]:
    cases: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, int]] = {
        "stride 0": ((10**9,), (0,), 0, 4),
        "two strides 0": ((10**6, 10**6), (0, 0), 0, 4),
        "rows that overlap": ((1000, 1000), (1, 1), 0, 2000),
        "beyond the end": ((4,), (1,), 2, 4),
        "far beyond": ((4,), (1,), 1 << 60, 4),
        "negative offset": ((4,), (1,), -1, 4),
        "negative size": ((-4,), (1,), 0, 4),
        "negative stride": ((2, 2), (-1, 1), 0, 4),
        "more than the file": ((1 << 40,), (1,), 0, 1 << 40),
        "overflow": ((1 << 33, 1 << 33), (1, 1), 0, 4),
        "overflow to zero": ((1 << 32, 1 << 32), (0, 0), 0, 4),
    }
    for name, (shape, stride, offset, claimed) in cases.items():
        for form in ("zip", "old"):
            state = b"\x80\x02}X\x01\x00\x00\x00w" + rebuilt(shape, stride, offset, claimed, form) + b"s."
            content = zipped({"data.pkl": state, "data/0": bytes(16)}) if form == "zip" else old_format(state)
            yield f"stride {name}, {form}.pth", content


def rebuilt(shape: tuple[int, ...], stride: tuple[int, ...], offset: int, claimed: int, form: str) -> bytes:
    """The operations that make a tensor of the memory ``"0"``, whatever they say of it."""

    def plain(value: object) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    memory = b"(" + plain("storage") + b"ctorch\nFloatStorage\n" + plain("0") + plain("cpu") + plain(claimed)
    memory += (b"N" if form == "old" else b"") + b"tQ"
    rest = plain(offset) + plain(shape) + plain(stride) + plain(False) + b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + memory + rest + b"tR"


# --- safetensors -----------------------------------------------------------------------------------------------------


def headers() -> Iterator[tuple[str, bytes]]:
    good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    body = bytes(8)
    cases: dict[str, tuple[object, bytes]] = {
        "overlap": ({"a": good, "b": good}, body),
        "overlap by a byte": ({"a": good, "b": {**good, "data_offsets": [7, 15]}}, bytes(15)),
        "hole": ({"a": good, "b": {**good, "data_offsets": [12, 20]}}, bytes(20)),
        "hole at the start": ({"a": {**good, "data_offsets": [4, 12]}}, bytes(12)),
        "backwards": ({"a": {**good, "data_offsets": [8, 0]}}, body),
        "negative": ({"a": {**good, "data_offsets": [-8, 0]}}, body),
        "beyond the end": ({"a": {**good, "shape": [4], "data_offsets": [0, 16]}}, body),
        "bytes behind": ({"a": good}, bytes(9)),
        "size": ({"a": {**good, "shape": [3]}}, body),
        "overflow": ({"a": {**good, "shape": [1 << 62, 4]}}, body),
        "overflow to the size": ({"a": {**good, "shape": [1 << 32, 1 << 32, 2]}}, body),
        "huge number": ({"a": {**good, "shape": [10**30]}}, body),
        "float shape": ({"a": {**good, "shape": [2.0]}}, body),
        "true shape": ({"a": {**good, "shape": [True, 2]}}, body),
        "negative shape": ({"a": {**good, "shape": [-1, -2]}}, body),
        "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, body),
        "more keys": ({"a": {**good, "code": "x"}}, body),
        "one offset": ({"a": {**good, "data_offsets": [8]}}, body),
        "dtype of another size": ({"a": {**good, "dtype": "F64"}}, body),
        "dtype no text": ({"a": {**good, "dtype": 3}}, body),
        "a list": ([good], body),
        "an entry of text": ({"a": "x"}, body),
        "metadata no text": ({"a": good, "__metadata__": {"a": 1}}, body),
        "metadata a list": ({"a": good, "__metadata__": []}, body),
        "tied to nothing": ({"a": good, "__metadata__": {"torchinit.tied": '{"b": "c"}'}}, body),
        "tied no JSON": ({"a": good, "__metadata__": {"torchinit.tied": "{"}}, body),
        "key twice": (b'{"a":' + json.dumps(good).encode() + b',"a":' + json.dumps(good).encode() + b"}", body),
        "field twice": (b'{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}', body),
        "metadata twice": (b'{"__metadata__":{},"__metadata__":{}}', b""),
        "no JSON": (b'{"a":', body),
        "no UTF-8": (b'{"\xff\xfe":1}', body),
        "NaN": (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', body),
        "deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", body),
        "zeros behind": (json.dumps({"a": good}).encode() + b"\0\0", body),
    }
    for name, (header, rest) in cases.items():
        yield f"safetensors {name}.safetensors", safetensors(header, rest)
    for length in (0, 1, 1 << 20, 1 << 27, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        yield f"safetensors length {length}.safetensors", safetensors({"a": good}, body, length)


def safetensors(header: object, body: bytes, length: int | None = None) -> bytes:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        return raw_safetensors(Path(file.name), header, body, length=length).read_bytes()


# --- arrays, indices, monsters, halves -------------------------------------------------------------------------------


def arrays(marker: Path) -> Iterator[tuple[str, bytes]]:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str, str]]:
            return open, (str(marker), "w")

    def saved(array: Any) -> bytes:
        held = io.BytesIO()
        numpy.save(held, array, allow_pickle=True)
        return held.getvalue()

    evil = saved(numpy.array([Evil()], dtype=object))
    yield "numpy object.npy", evil
    yield "numpy object.npz", zipped({"w.npy": evil}, root="")
    good = saved(numpy.zeros(4, "f4"))
    for name, old, new in (
        ("code", b"{'descr'", b"{open  '"),
        ("shape", b"(4,)", b"(9,)"),
        ("negative", b"(4,)", b"(-4)"),
        ("huge", b"(4,), }                ", b"(99999999999999999999,)}"),
        ("dtype", b"<f4", b"|O8"),
        ("odd dtype", b"<f4", b"<q9"),
        ("record", b"'<f4'", b"'V4' "),
    ):
        yield f"numpy {name}.npy", good.replace(old, new)
        yield f"numpy {name}.npz", zipped({"w.npy": good.replace(old, new)}, root="")
    yield "numpy short.npy", good[:-1]
    yield "numpy header only.npy", good[:30]


def indices() -> Iterator[tuple[str, bytes]]:
    outside = ["/etc/passwd", "../x", "a/../../x", "\\x", "c:x", "", "~/x/..", "https://a/b", "a//b"]
    for number, target in enumerate(outside):
        yield f"index outside {number}.json", json.dumps({"weight_map": {"w": target}}).encode()
    yield "index twice.json", b'{"weight_map": {"w": "a", "w": "b"}}'
    yield "index deep.json", b'{"weight_map": ' + b"[" * 100_000
    yield "index of numbers.json", b'{"weight_map": {"w": 1}}'


def monsters() -> Iterator[tuple[str, bytes]]:
    """Pickles of plain data that are too much."""
    deep = 200_000
    bodies = {
        "tuples as a key": b"}(" + b")" + b"\x85" * deep + b"K\x01u.",
        "pairs as a key": b"}(" + b")" + b"q\x00h\x00\x86" * deep + b"K\x01u.",
        "lists": b"]" * (deep // 10) + b"a" * (deep // 10 - 1) + b".",
        "dicts": b"}X\x01\x00\x00\x00a" * (deep // 10) + b"}" + b"s" * (deep // 10) + b".",
        "a terabyte": b"c__builtin__\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.",
        "text that is not there": b"X\xff\xff\xff\x7fabc.",
        "a number that is not there": b"\x8b\xff\xff\xff\x7fabc.",
        "nothing on the stack": b"s.",
        "no end": b"}}}}",
        "a loop": b"]q\x00h\x00a.",
    }
    for name, body in bodies.items():
        yield f"monster {name}.pth", zipped({"data.pkl": b"\x80\x02" + body})
        yield f"monster {name}, old.pth", old_format(b"\x80\x02" + body)


def cut_short() -> Iterator[tuple[str, bytes]]:
    """Sound files without their end, one for each kilobyte."""
    for form, suffix in (("zip", "pth"), ("legacy", "pth"), ("safetensors", "safetensors"), ("npz", "npz")):
        whole = sound(form)
        for size in range(0, len(whole) - 1, 1024):
            yield f"cut {form} at {size}.{suffix}", whole[:size]


def flipped(form: str, number: int) -> Iterator[tuple[str, bytes]]:
    """A sound file with one bit changed, so many times."""
    whole, dice = sound(form), random.Random(form)
    for _ in range(number):
        changed = bytearray(whole)
        bit = dice.randrange(8 * len(whole))
        changed[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit} of {form}", bytes(changed)
