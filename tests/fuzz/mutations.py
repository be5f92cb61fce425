"""Mutations: sound files of every format, and what can be done to them piece by piece."""

from __future__ import annotations

import functools
import io
import json
import pickletools
import re
import struct
import tomllib
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import numpy
import torch

from tests.checkpoints.hostile import entries_of, old_format, zipped
from torchinit.recipes.files import schemes

FORMS = ["pth", "old", "zip", "safetensors", "npy", "npz", "index", "json", "toml", "yaml"]

NUMBERS = [0, 1, 2, 3, 4, 7, 8, 12, 64, 65, 255, 256, 1 << 16, (1 << 31) - 1, (1 << 32) - 1, 1 << 40, (1 << 63) - 1]
TEXTS = [
    "",
    "w0",
    "w1",
    "__metadata__",
    "F32",
    "F64",
    "F4",
    "BOOL",
    "data/0",
    "..",
    "\x1b[2J",
    "\ud800",
    "0" * 5000,
    "é",
]
GLOBALS = [
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state", "torch._utils _rebuild_sparse_tensor",
    "torch._utils _rebuild_qtensor",
    "torch._utils _rebuild_meta_tensor_no_storage", "torch._tensor _rebuild_from_type_v2", "torch Tensor", "torch Size",
    "torch FloatStorage", "torch LongStorage", "torch.storage UntypedStorage", "torch device", "torch float64",
    "torch.nn.parameter Parameter", "collections OrderedDict", "collections Counter", "_codecs encode",
    "__builtin__ bytearray", "__builtin__ set", "__builtin__ complex", "torch.serialization _get_layout", "os system",
]  # fmt: skip


def changed(form: str, dice: Random) -> bytes:
    """A file of the form with a few changes; now and then with none."""
    return _CHANGES[form](dice)


def several(pieces: list[Any], pool: Callable[[Random], Any], dice: Random) -> list[Any]:
    """The pieces with some of them gone, doubled, moved or others in their place."""
    made = list(pieces)
    for _ in range(dice.choice([0, 1, 1, 1, 2, 3, 8])):
        at, other = dice.randrange(len(made) + 1), dice.randrange(len(made) + 1)
        length = dice.choice([1, 1, 1, 2, 5, 20])
        match dice.randrange(5):
            case 0:
                del made[at : at + length]
            case 1:
                made[at:at] = made[other : other + length]
            case 2:
                made[at : at + 1] = [pool(dice)]
            case 3:
                made[at:at] = [pool(dice) for _ in range(length)]
            case _:
                moved = made[other : other + length]
                del made[other : other + length]
                made[at:at] = moved
    return made


# --- pickles ---------------------------------------------------------------------------------------------------------


@functools.cache
def tensors() -> dict[str, Any]:
    half = torch.nn.Parameter(torch.arange(12, dtype=torch.float16).view(4, 3))
    return {
        "w0": torch.arange(12.0).view(4, 3),
        "w1": half,
        "w2": torch.arange(24.0).view(6, 4)[:3].t(),
        "n": torch.tensor(3),
        "e": torch.zeros(0, 2),
        "z": torch.tensor([1 + 2j]).conj(),
    }


@functools.cache
def states() -> list[bytes]:
    """The pickles of several checkpoints, of the same memory."""
    held = [tensors(), {"state_dict": tensors(), "epoch": 3, "lr": 0.5, "seen": {1}, "raw": b"\xff"}]
    held.append(
        {"model": tensors(), "optimizer": {"state": {0: {"m": torch.ones(2)}}, "param_groups": [{"params": [0]}]}}
    )
    return [entries_of(saved(one))["data.pkl"] for one in held]


def saved(held: object, *, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(held, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def operations(data: bytes) -> list[bytes]:
    """A pickle cut into its operations."""
    starts = [at for _, _, at in pickletools.genops(data)]
    return [data[at:end] for at, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def operation(dice: Random) -> bytes:
    """An operation that torch's unpickler knows, or nearly."""
    name = dice.choice(TEXTS).encode(errors="surrogatepass")
    return dice.choice(
        [
            *(bytes([code]) for code in b"}])(tuseaRbQN\x85\x86\x87\x88\x89\x81\x8f.0\x94"),
            b"h" + bytes([dice.randrange(40)]),
            b"q" + bytes([dice.randrange(40)]),
            b"j" + struct.pack("<I", dice.choice(NUMBERS) % (1 << 32)),
            b"K" + bytes([dice.choice(NUMBERS) % 256]),
            b"J" + struct.pack("<i", dice.choice(NUMBERS) % (1 << 31) * dice.choice([1, -1])),
            b"\x8a\x08" + struct.pack("<q", dice.choice(NUMBERS)),
            b"X" + struct.pack("<I", len(name)) + name,
            b"X" + struct.pack("<I", dice.choice(NUMBERS) % (1 << 32)),
            b"c" + dice.choice(GLOBALS).replace(" ", "\n").encode() + b"\n",
            b"c" + dice.choice(GLOBALS).replace(" ", "\n").encode() + b"\n)R",
            b"c" + dice.choice(GLOBALS).replace(" ", "\n").encode() + b"\n(K\x01K\x02tR",
        ]
    )


def _pickle(dice: Random) -> bytes:
    return b"".join(several(operations(dice.choice(states())), operation, dice))


def _pth(dice: Random) -> bytes:
    inner = entries_of(saved(tensors()))
    return zipped(
        {"data.pkl": _pickle(dice), **{name: held for name, held in inner.items() if name.startswith("data/")}}
    )


def _old(dice: Random) -> bytes:
    whole = saved(tensors(), zipped=False)
    if dice.random() < 0.5:
        return old_format(_pickle(dice))
    pieces, stream, cut = [], io.BytesIO(whole), 0
    for _ in range(5):
        for _ in pickletools.genops(stream):
            pass
        pieces.append(whole[cut : stream.tell()])
        cut = stream.tell()
    which = dice.randrange(5)
    pieces[which] = b"".join(several(operations(pieces[which]), operation, dice))
    return b"".join(pieces) + b"".join(several([whole[cut:]], _bytes, dice))


# --- zips ------------------------------------------------------------------------------------------------------------


def _zip(dice: Random) -> bytes:
    """A zip with a few fields of its records changed, or with records gone, doubled or moved."""
    return records(dice.choice([saved(tensors()), zipped(entries_of(saved(tensors())))]), dice)


def records(whole: bytes, dice: Random) -> bytes:
    pieces = re.split(rb"(?=PK(?:\x01\x02|\x03\x04|\x05\x06|\x06\x06|\x06\x07))", whole)
    for _ in range(dice.randrange(4)):
        at = dice.randrange(len(pieces))
        held = bytearray(pieces[at])
        field = dice.randrange(4, 50)
        form = dice.choice(["<B", "<H", "<I", "<Q"])
        if field + struct.calcsize(form) <= len(held):
            struct.pack_into(form, held, field, dice.choice(NUMBERS) % (1 << 8 * struct.calcsize(form)))
        pieces[at] = bytes(held)
    return b"".join(several(pieces, _bytes, dice) if dice.random() < 0.4 else pieces)


def _bytes(dice: Random) -> bytes:
    return dice.randbytes(dice.choice([1, 8, 22, 40]))


# --- headers ---------------------------------------------------------------------------------------------------------


def tokens(text: str) -> list[str]:
    """A text cut into what means something by itself."""
    return re.findall(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'|-?[0-9.]+|\w+|\s+|.', text)


def token(dice: Random) -> str:
    words: list[str] = ["null", "true", "1e999", "NaN", *map(str, NUMBERS), *map(json.dumps, TEXTS)]
    return dice.choice(list("{}[]()=:,\"'\\-\n") + words)


def retold(text: str, dice: Random) -> str:
    return "".join(several(tokens(text), token, dice))


def _safetensors(dice: Random) -> bytes:
    from safetensors.torch import save

    held = {name: tensor.detach().resolve_conj().contiguous() for name, tensor in tensors().items()}
    whole = save(held, {"from": "x", "torchinit.tied": '{"t": "w0"}'})
    length = int.from_bytes(whole[:8], "little")
    text = retold(whole[8 : 8 + length].decode(), dice).encode(errors="replace")
    said = dice.choice([len(text)] * 20 + NUMBERS)
    return struct.pack("<Q", said) + text + b"".join(several([whole[8 + length :]], _bytes, dice))


def _npy(dice: Random) -> bytes:
    file = io.BytesIO()
    order = dice.choice(["C", "F"])
    numpy.save(file, numpy.zeros((4, 3), dice.choice(["f4", "f8", "i8", "u2", "c8", "?", ">f4"]), order=order))  # type: ignore[call-overload]
    whole = file.getvalue()
    text = retold(whole[10:128].decode(), dice).encode(errors="replace")
    version = dice.choice([b"\x01\x00"] * 9 + [b"\x02\x00", b"\x03\x00"])
    size = (
        struct.pack("<I", len(text))
        if version > b"\x01" and dice.random() < 0.9
        else struct.pack("<H", len(text) % 65536)
    )
    return b"\x93NUMPY" + version + size + text + whole[128:]


def _npz(dice: Random) -> bytes:
    file = io.BytesIO()
    if dice.random() < 0.5:
        with zipfile.ZipFile(file, "w", dice.choice([0, 8, 12, 14])) as archive:
            for number in range(3):
                archive.writestr(f"w{number}.npy", _npy(dice))
        return file.getvalue()
    numpy.savez_compressed(file, w0=numpy.zeros((4, 3), "f4"), w1=numpy.ones((4, 3)))
    return records(file.getvalue(), dice)


def _index(dice: Random) -> bytes:
    names = ["a.safetensors", "../a", "/dev/zero", "/etc/passwd", ".", "a/b", "x" * 5000]
    data = {"metadata": {"total_size": 3}, "weight_map": {f"w{number}": dice.choice(names) for number in range(3)}}
    return retold(json.dumps(data), dice).encode(errors="replace")


# --- recipes ---------------------------------------------------------------------------------------------------------


@functools.cache
def recipes() -> list[tuple[str, Any]]:
    """The schemes that come with the package, as text and as data."""
    from importlib import resources

    folder = resources.files("torchinit.recipes") / "schemes"
    texts = [(folder / f"{name}.toml").read_text("utf-8") for name in schemes()]
    texts.append(
        '[[rules]]\nname = "**"\ntype = "Pretrained"\ncheckpoint = "a.pth"\nprefix = "b"\n'
        'rename = [["^a(.*)", "b\\\\1"]]\n'
        'dtype = "bfloat16"\n[[rules.adapt]]\nname = "head.*"\ntype = "Rows"\n[[rules]]\nregex = "(a|b)+"\n'
        'type = "Blocks"\ninits = [{type = "Zeros"}, {type = "Kaiming", std = "1 / sqrt(2 * fan_in)"}]\n'
    )
    return [(text, tomllib.loads(text)) for text in texts]


def rearranged(data: Any, dice: Random) -> Any:
    """Plain data with a few of its values gone, doubled or others in their place."""
    pieces = [*data.items()] if isinstance(data, dict) else list(data) if isinstance(data, list) else None
    if pieces is None or dice.random() < 0.1:
        return dice.choice([data] * 4 + [None, True, -1, 1e999, 10**400, "2 ** 9 ** 9", [], {}, [[]], *TEXTS, *NUMBERS])
    if dice.random() < 0.2:
        pool = [(dice.choice(TEXTS), 1), ("type", "Normal"), ("init", {}), ("where", {"type": "All"})]
        pieces = several(pieces, lambda dice: dice.choice(pool), dice)
    if isinstance(data, dict):
        return {key: rearranged(value, dice) for key, value in (one for one in pieces if isinstance(one, tuple))}
    return [rearranged(one, dice) for one in pieces]


def _json(dice: Random) -> bytes:
    _, data = dice.choice(recipes())
    text = json.dumps(rearranged(data, dice))
    return (retold(text, dice) if dice.random() < 0.3 else text).encode(errors="replace")


def _toml(dice: Random) -> bytes:
    text, _ = dice.choice(recipes())
    return retold(text, dice).encode(errors="replace")


def _yaml(dice: Random) -> bytes:
    _, data = dice.choice(recipes())
    text = json.dumps(data)
    for old in ('"name": ', '"type": '):
        text = text.replace(old, dice.choice([old, f"{old}&a ", f"{old}*a ", f"{old}!!python/name:os.system ", "<<: "]))
    return retold(text, dice).encode(errors="replace")


_CHANGES: dict[str, Callable[[Random], bytes]] = {
    "pth": _pth, "old": _old, "zip": _zip, "safetensors": _safetensors, "npy": _npy, "npz": _npz, "index": _index,
    "json": _json, "toml": _toml, "yaml": _yaml,
}  # fmt: skip
