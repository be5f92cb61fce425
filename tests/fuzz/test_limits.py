"""Limits: hostile inputs of up to a megabyte are read or refused within 10 s and 64 MiB + 10 times their size."""

from __future__ import annotations

import inspect
import io
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import torchinit._limits as limits
from tests.checkpoints.hostile import safetensors, zipped
from tests.fuzz.limits import Reader, reader

ENTRY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
TABLE = {"type": "Zeros", "name": "w0"}


def recipe(*entries: Any) -> bytes:
    return json.dumps({"rules": entries}).encode()


def merged(levels: int, keys: int) -> bytes:
    lines = ["a0: &a0 {" + ", ".join(f"k{n}: 1" for n in range(keys)) + "}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, levels)]
    return "\n".join([*lines, "rules:", f"- <<: *a{levels - 1}", "  type: Normal", "  name: '**'"]).encode()


def packed(kind: int, size: int) -> bytes:
    """An archive of one array of zeros, in the format of NumPy, packed in some way."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({size // 4},), }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive, archive.open("w.npy", "w", force_zip64=True) as entry:
        entry.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
        for _ in range(size >> 20):
            entry.write(bytes(1 << 20))
    return file.getvalue()


def pickled(operations: bytes) -> bytes:
    return zipped({"data.pkl": b"\x80\x02" + operations + b"."})


HUGE = (1 << 63) - 1
CASES: list[tuple[str, str, str, bytes, str]] = [
    # what, surface, suffix, content, how it is refused; "read" where it is sound
    ("bzip2 in an archive", "checkpoint", "pth", packed(zipfile.ZIP_BZIP2, 1 << 26), r"packed as NumPy never does"),
    ("lzma in an archive", "checkpoint", "npz", packed(zipfile.ZIP_LZMA, 1 << 24), r"packed as NumPy never does"),
    ("much in little", "inspected", "npz", packed(zipfile.ZIP_DEFLATED, 1 << 27), r"unpack to 134,.*; refused\. If it"),
    ("zeros that are sound", "checkpoint", "npz", packed(zipfile.ZIP_DEFLATED, 1 << 20), "^read$"),
    ("blocks", "recipe", "json", recipe({**TABLE, "blocks": 10**9}), r"a weight has at most 10,000 parts"),
    ("blocks beyond 64 bits", "recipe", "json", recipe({**TABLE, "blocks": 10**20}), r"at most 10,000 parts"),
    ("blocks in text", "recipe", "json", recipe({"name": "w0", "type": "Blocks", "init": 0, "parts": "1e9"}), "10,000 parts"),
    ("a list of blocks", "recipe", "json", recipe({**TABLE, "blocks": [1] * 15_000}), r"at most 10,000 parts"),
    ("errors by the thousand", "recipe", "json", recipe(*[{"type": "Normal", "name": "**", "std": "1 / fan_in"}] * 900), "^read$"),
    ("merge keys", "recipe", "yaml", merged(8, 2), r"holds more than 40,000 values"),
    ("merge keys of ten", "recipe", "yaml", merged(5, 10), r"holds more than 40,000 values"),
    ("merge keys that are sound", "recipe", "yaml", b"a: &a {type: Zeros}\nrules:\n- {<<: *a, name: w0}", r"has no 'a'"),
    ("a merge of itself", "recipe", "yaml", b"rules: &a {<<: [*a, *a]}", r"is nested too deeply"),
    ("brackets of YAML", "recipe", "yaml", b"[" * 100_000, r"is nested too deeply"),
    ("much YAML", "recipe", "yaml", b"#\n" * 200_000, r"has more than 262,144 characters, too many for YAML"),
    ("dotted keys", "recipe", "toml", b".".join([b"a"] * 400_000) + b"=1", r"is nested too deeply"),
    ("dotted keys in quotes", "recipe", "toml", b" . ".join([b'"a"'] * 100_000) + b"=1", r"is nested too deeply"),
    ("a hexadecimal number", "recipe", "toml", b"rules = 0x" + b"f" * 9000, r"a number in a recipe has at most 100 digits"),
    ("a binary number", "recipe", "toml", b"rules = 0b" + b"1" * 900_000, r"word or number of more than 10,000"),
    ("digits of JSON", "recipe", "json", b'{"rules": ' + b"9" * 4000 + b"}", r"has at most 100 digits"),
    ("a long text", "recipe", "json", json.dumps({"about": "a" * 900_000, "rules": []}).encode(), r"at most 10,000 characters"),
    ("many mistakes", "data", "json", recipe(*[{"tipe": 1}] * 60_000), r"100 mistakes in recipe, and perhaps more"),
    ("many globs", "recipe", "json", recipe({**TABLE, "name": [f"*a*{n}.*" for n in range(20_000)]}), "^read$"),
    ("many rules", "data", "json", recipe(*[{"type": "Zeros", "name": f"a{n}"} for n in range(15_000)]), "^read$"),
    ("overrides", "recipe", "json", recipe({**TABLE, "within": ["a"] * 9000, "override": {"name": ["b"] * 9000}}), r"stands for more"),
    ("stars in a glob", "patterns", "json", json.dumps([{"name": "*a" * 40 + "=.**"}, ["a" * 9000 + ".b"]]).encode(), "^read$"),
    ("levels in a glob", "patterns", "json", json.dumps([{"name": "**.a." * 20 + "b"}, [".".join("a" * 200)]]).encode(), "^read$"),
    ("an expression", "patterns", "json", json.dumps([{"regex": "(a|aa|b)*c"}, ["ab" * 400 + str(n) for n in range(99)]]).encode(), "^read$"),
    ("a rename", "renamed", "json", json.dumps([[["(?:\\d|[^0-9x])*=", "q"]], ["\u0663" * 990]]).encode(), "^read$|to match"),
    ("a rename of stars", "renamed", "json", json.dumps([[[".*.*.*.*=", "q"]], ["a" * 990]]).encode(), r"^read$|more than 1 s"),
    ("renames of many", "renamed", "json", json.dumps([[[".*.*=", "q"]], [f"{n}" + "a" * 900 for n in range(900)]]).encode(), r"^read$|more than"),
    ("zero beside huge", "inspected", "safetensors", safetensors({"w": {**ENTRY, "shape": [0, HUGE, HUGE]}}, b""), r"of a wrong kind"),
    ("huge beside zero", "converted", "safetensors", safetensors({"w": {**ENTRY, "shape": [1 << 40, 0, 1 << 40]}}, b""), r"of a wrong kind"),
    ("one beside zero", "inspected", "safetensors", safetensors({"w": {**ENTRY, "shape": [0, 1 << 40]}}, b""), "^read$"),
    ("brackets of a header", "checkpoint", "safetensors", safetensors({"w": [[[[[[[]]]]]]] * 60_000}, b""), r"needs dtype, shape"),
    ("other names", "checkpoint", "safetensors", safetensors({"__metadata__": {"torchinit.tied": json.dumps(dict.fromkeys(map(str, range(30_000)), "w"))}, "w": ENTRY}, b""), r"holds more than 10,000 values"),
    ("many tensors", "loaded", "safetensors", safetensors({f"w.{n}": ENTRY for n in range(14_000)}, b""), r"0 of 3 tensors match"),
    ("parts of a name", "compared", "safetensors", safetensors({"a." * 400_000 + "a": ENTRY}, b""), "^read$"),
    ("sets in a pickle", "checkpoint", "pth", pickled(b"]" + b"\x8fa" * 400_000), r"would make far more than it holds"),
    ("lists in a pickle", "checkpoint", "pth", pickled(b"]" * 900_000), r"would make far more than it holds"),
    ("a length in an old file", "loaded", "pth", pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"\x80\x02X\xff\xff\xff\x7f", "bytes in a unicodestring4, but only"),
    ("marks in a pickle", "checkpoint", "pth", pickled(b"(" * 900_000), r"nests lists and tables more than 100 deep"),
    ("tuples on a stack", "checkpoint", "pth", pickled(b")" * 900_000), r"would make far more than it holds"),
    ("an index of itself", "checkpoint", "json", json.dumps({"weight_map": {f"w{n}": "case.json" for n in range(30_000)}}).encode(), "^read$"),
    ("an index of many", "loaded", "json", json.dumps({"weight_map": {f"w{n}": f"f{n}" for n in range(30_000)}}).encode(), r"names more than 10,000 files"),
    ("a plan of nothing", "plan", "json", b'{"format": "torchinit-plan-1", "steps": [' + b"{}," * 300_000 + b"{}]}", r"100 mistakes in the plan"),
    ("a deep report", "report", "json", b"[" * 900_000, r"this is not a report: maximum recursion"),
    ("a deep plan on the command line", "differing", "json", b"[" * 900_000, r"is not JSON"),
    ("a lock of nothing", "lockfile", "json", json.dumps({"version": 1, "sources": {str(n): {} for n in range(50_000)}}).encode(), r"cannot be read"),
    ("a deep note", "note", "json", b"[" * 900_000, "^read$"),
]  # fmt: skip


@pytest.fixture(scope="module")
def process() -> Iterator[Reader]:
    with reader() as running:
        yield running


@pytest.mark.slow("fifty hostile inputs, each in a process of its own")
@pytest.mark.parametrize(("what", "surface", "suffix", "content", "said"), CASES, ids=[case[0] for case in CASES])
def test_hostile_inputs(
    what: str, surface: str, suffix: str, content: bytes, said: str, process: Reader, tmp_path: Path
) -> None:
    (path := tmp_path / f"case.{suffix}").write_bytes(content)
    assert len(content) <= 1 << 20, what
    outcome = process.read(surface, path)
    assert outcome.wrong == ""
    assert re.search(said, outcome.said)


def test_what_hits_a_limit_is_told(process: Reader, tmp_path: Path) -> None:
    (path := tmp_path / "a.json").write_bytes(b"{")
    assert "JSONDecodeError" in process.read("data", path).wrong  # Python's own error
    assert process.read("recipe", path).is_fine


def test_every_limit_is_on_its_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "limits.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| ([\d,.]+) ", page, re.MULTILINE))
    values = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert rows == {name: f"{value:,}" for name, value in values.items()}
    said = re.findall(r"^([A-Z_]+): Final = .+  # (.+)", inspect.getsource(limits), re.MULTILINE)
    assert [name for name, _ in said] == list(values)
    assert [text for _, text in said if f"| The {text.split(';')[0]}" not in page] == []


def test_a_large_archive_may_be_packed(tmp_path: Path) -> None:
    from torchinit import open_checkpoint

    values = numpy.random.default_rng(0).normal(size=(1000, 100)).astype("f4")
    numpy.savez_compressed(path := tmp_path / "a.npz", w=values)
    assert open_checkpoint(path).read("w").shape == (1000, 100)
