"""Pickles and zips that show one thing to the audit and another to readers: refused, or read as torch reads them."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from tests.checkpoints.formats.test_common_pickle import assert_same
from tests.checkpoints.hostile import zipped
from tests.checkpoints.hostile_more import NAME, TENSOR, arguments_of, called, from_type, plain
from torchinit import CheckpointError
from torchinit.checkpoints.formats.torch_save import load_file
from torchinit.checkpoints.formats.zip_audit import check_zip

ORDERED = b"ccollections\nOrderedDict\n"
SET, V2 = b"c__builtin__\nset\n", b"ctorch._utils\n_rebuild_tensor_v2\n"
PIECE = bytes(range(16))
OTHERS = {"data/1": bytes(1000), ".format_version": b"1", ".storage_alignment": b"64", ".data/serialization_id": b"12"}


def archive(value: bytes, **more: bytes) -> bytes:
    """A file with this value beside a tensor, and with two pieces of memory."""
    state = b"\x80\x02}(" + plain("t") + TENSOR + NAME + value + b"u."
    return zipped({"data.pkl": state, "data/0": PIECE, **OTHERS, **more})


def memory(kind: str, key: str, numel: int) -> bytes:
    return (
        b"(" + plain("storage") + f"ctorch\n{kind}Storage\n".encode() + plain(key) + plain("cpu") + plain(numel) + b"tQ"
    )


def tensor(of: bytes, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    return V2 + b"(" + of + plain(offset) + plain(shape) + plain(stride) + plain(False) + ORDERED + b")RtR"


def agree(path: Path, content: bytes) -> bool:
    """Whether a file is read; what is read here is what torch reads, and torch refuses nothing of it."""
    path.write_bytes(content)
    try:
        ours = load_file(path)
    except CheckpointError:
        return False
    assert_same(ours, torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    return True


# --- what is taken apart ---------------------------------------------------------------------------------------------

HUGE = tensor(memory("Float", "0", 4), (1 << 30,), (0,))  # in 16 bytes
OVERLAPPING = tensor(memory("Float", "0", 4), (1 << 15, 1 << 15, 2), (0, 0, 1))
PIECES = memory("Byte", "1", 1000)
UNROLLED = {
    "a tensor as arguments": from_type(V2, HUGE, b"}"),
    "memory as arguments": from_type(V2, PIECES, b"}"),
    "a tensor as a size": V2 + b"(" + PIECES + plain(0) + HUGE + plain((1,)) + plain(False) + b"}tR",
    "a tensor as a size in a message": called(
        "torch._utils _rebuild_qtensor", PIECES, plain(0), HUGE, plain((1,)), plain((1, 2, 3)), plain(False), b"}"
    ),
    "a tensor as the parts of a sparse one": called("torch._utils _rebuild_sparse_tensor", plain(0), HUGE),
    "a tensor as what a tensor is set to": TENSOR + HUGE + b"b",
    "a tensor as the state of a parameter": b"ctorch.nn.parameter\nParameter\n" + TENSOR + b"\x85\x81" + HUGE + b"b",
    "a tensor as attributes": ORDERED + b")R" + HUGE + b"b",
    "a list of a tensor as attributes": ORDERED + b")R]" + HUGE + b"ab",
    "a list that was filled twice": ORDERED + b")R]" + HUGE + b"aK\x01ab",
    "a tuple of a tensor as attributes": ORDERED + b")R" + HUGE + b"\x85b",
    "a set of a tensor as attributes": ORDERED + b")R" + SET + b"]" + HUGE + b"a\x85Rb",
    "a tensor as attributes of a table that is not made": b"ccollections\ndefaultdict\n)RK\x01K\x01s" + HUGE + b"b",
    "a list of a tensor for a dict": ORDERED + b"]" + HUGE + b"a\x85R",
    "a tuple of a tensor for a dict": ORDERED + HUGE + b"\x85\x85R",
    "a set of a tensor for a dict": ORDERED + SET + b"]" + HUGE + b"a\x85R\x85R",
    "a list of memory for a dict": ORDERED + b"]" + PIECES + b"a\x85R",
    "a set of memory": SET + PIECES + b"\x85R",
    "counts of memory": b"ccollections\nCounter\n" + PIECES + b"\x85R",
    "bytes of memory": b"c__builtin__\nbytearray\n" + PIECES + b"\x85R",
    "a size of memory": b"ctorch\nSize\n" + PIECES + b"\x85R",
    "an attribute that is copied into it": from_type(V2, arguments_of(HUGE), b"}" + plain("real") + TENSOR + b"s"),
    "an attribute that is copied into a parameter": called(
        "torch._utils _rebuild_parameter_with_state", OVERLAPPING, plain(False), b"}",
        b"}" + plain("real") + TENSOR + b"s",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNROLLED)
def test_nothing_takes_a_tensor_apart(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each element would become an object: a billion of them, of a few hundred bytes."""
    (path := tmp_path / "a.pth").write_bytes(archive(UNROLLED[case]))
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(
        CheckpointError, match=r"odd arguments|gives attributes as torch\.save does not|more than it holds"
    ):
        load_file(path)


def test_what_old_files_take_apart_is_read(tmp_path: Path) -> None:
    """As Python 2 wrote a state_dict, and tensors with attributes, and one with shared elements."""
    pairs = ORDERED + b"](]" + plain("k") + b"a" + TENSOR + b"ae\x85R"
    assert agree(tmp_path / "a.pth", archive(pairs))
    assert load_file(tmp_path / "a.pth")["w"]["k"].shape == (4,)
    marked = torch.nn.Parameter(torch.ones(3))
    marked.is_mine = True  # type: ignore[attr-defined]
    content = {"a": marked, "b": torch.ones(1).expand(1 << 30), "c": torch.eye(3).to_sparse(), "d": [torch.ones(2)]}
    torch.save(content, tmp_path / "b.pth")
    assert load_file(tmp_path / "b.pth")["a"].is_mine


# --- what two unpicklers would make in two ways ----------------------------------------------------------------------

ONES = tensor(memory("Byte", "1", 2), (2,), (1,))
FAKE = ORDERED + b")R}(" + plain("dtype") + b"ctorch\nDoubleStorage\n" + plain("_untyped_storage") + TENSOR + b"ub"
HIDDEN = ORDERED + b")R}" + plain("keys") + ORDERED + b"sb" + plain("hidden") + b"K\x01s"
ODD: dict[str, tuple[bytes, bool]] = {  # and whether it is read
    "memory that is a table": (tensor(FAKE, (2,), (1,)), False),
    "attributes that a table hides": (ORDERED + b")R" + HIDDEN + b"b", True),
    "a method that takes the attributes": (
        ORDERED + b")R}" + plain("__setstate__") + ORDERED + b"sb}" + plain("a") + b"K\x01sb", True,
    ),
    "an attribute that is called by a number": (ORDERED + b")R}K\x01K\x01sb", False),
    "a kind of memory alone": (b"ctorch\nFloatStorage\n", True),
    "one piece of memory of two kinds": (b"]" + TENSOR + b"a" + tensor(memory("Int", "0", 4), (4,), (1,)) + b"a", True),
    "one piece of memory of two lengths": (tensor(memory("Double", "0", 4), (4,), (1,)), False),
    "memory that is not there": (tensor(memory("Byte", "9", 2), (2,), (1,)), False),
    "memory that is another record": (tensor(memory("Byte", "archive/version", 2), (2,), (1,)), False),
    "memory beside its folder": (tensor(memory("Byte", "../version", 2), (2,), (1,)), False),
    "memory of an odd kind": (TENSOR.replace(b"ctorch\nFloatStorage\n", ORDERED), False),
    "memory of a length without end": (tensor(memory("Byte", "1", 1 << 2000), (2,), (1,)), False),
    "an offset below zero": (tensor(memory("Float", "0", 4), (2,), (1,), -1), False),
    "a stride below zero": (tensor(memory("Float", "0", 4), (2,), (-1,)), False),
    "a tensor beyond its memory": (tensor(memory("Float", "0", 4), (5,), (1,)), False),
    "an escape in a name": (TENSOR.replace(b"ctorch._utils", rb"c\x74orch._utils"), False),
    "a name that is cut elsewhere": (TENSOR.replace(b"torch._utils\n_re", b"torch\n_utils._re"), True),
    "a function beside its use": (V2, True),
    "a list as a key": (b"}]K\x01s", False),
    "a tensor as a key": (b"}" + TENSOR + b"K\x01s", True),
    "letters of two encodings": (b"U\x02\xc3\xa9", True),
    "half a letter": (b"X\x03\x00\x00\x00\xed\xa0\x80", True),
    "a number of nothing": (b"\x8a\x00", True),
    "another protocol": (b"\x80\x05K\x01", True),
    "one that does not exist": (b"\x80\xffK\x01", True),
    "a mark that stays": (b"(K\x01", False),
    "a frame": (b"\x95" + struct.pack("<Q", 2) + b"K\x01", False),
    "bytes of protocol 5": (b"\x96" + struct.pack("<Q", 1 << 60), False),
    "a buffer": (b"\x97", False),
    "a number of an extension": (b"\x82\x01", False),
    "memory by a line of text": (b"Pstorage\n", False),
    "a class by name and arguments": (b"(cos\nsystem\no", False),
    "a name from the stack": (plain("os") + plain("system") + b"\x93", False),
    "a value twice": (b"K\x012", False),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("case", ODD)
def test_odd_pickles_are_read_as_torch_reads_them(case: str, tmp_path: Path) -> None:
    value, is_read = ODD[case]
    if case == "a function beside its use":  # a name for the same, and nobody calls it
        (tmp_path / "a.pth").write_bytes(archive(value))
        assert callable(load_file(tmp_path / "a.pth")["w"])
    else:
        assert agree(tmp_path / "a.pth", archive(value)) is is_read


# --- what two readers of zips would find -----------------------------------------------------------------------------

SOUND = archive(plain(1))


def at(name: str, offset: int, form: str, value: int) -> bytes:
    """The sound file with another number in the entry of a name in the table."""
    changed = bytearray(SOUND)
    struct.pack_into(form, changed, SOUND.rfind(f"archive/{name}".encode()) - 46 + offset, value)
    return bytes(changed)


def ends(form: str, offset: int, *values: int) -> bytes:
    changed = bytearray(SOUND)
    struct.pack_into(form, changed, SOUND.rfind(b"PK\x05\x06") + offset, *values)
    return bytes(changed)


def renamed(key: str, entries: dict[str, bytes], new: bytes) -> bytes:
    """A file with memory under this key, in which the bytes of the name QZ are others."""
    state = b"\x80\x02}" + NAME + tensor(memory("Float", key, 4), (4,), (1,)) + b"s."
    return zipped({"data.pkl": state, **{f"data/{name}": content for name, content in entries.items()}}).replace(
        b"data/QZ", b"data/" + new
    )


COUNT = len(zipfile.ZipFile(io.BytesIO(SOUND)).infolist())
ZIPS: dict[str, bytes] = {
    "a version that is asked first": archive(plain(1), **{".data/version": b"999\n"}),
    "a version in other letters": archive(plain(1), **{".DATA/VERSION": b"999\n"}),
    "an alignment that is not a number": archive(plain(1), **{".storage_alignment": b"x"}),
    "a zero in a name": renamed("0", {"0QZ": PIECE}, b"").replace(b"data/0QZ", b"data/0\0Z"),
    "a name in two alphabets": renamed("é", {"é": PIECE, "QZ": bytes(16)}, "é".encode()),
    "the same the other way around": renamed("é", {"QZ": bytes(16), "é": PIECE}, "é".encode()),
    "a name in another alphabet": renamed("├⌐", {"QZ": PIECE}, "é".encode()),
    "fewer entries than there are": ends("<HH", 8, 3, 3),
    "more entries than there are": ends("<HH", 8, COUNT + 1, COUNT + 1),
    "entries on two disks": ends("<HH", 8, COUNT - 1, COUNT),
    "another disk": ends("<HH", 4, 3, 3),
    "a folder that is too long": zipped(
        {"data.pkl": b"\x80\x02}" + NAME + TENSOR + b"s.", "data/0": PIECE}, root="a" * 600
    ),
    **{f"{name} is marked as a folder": at(name, 38, "<I", 0x10) for name in ("data.pkl", "version", "byteorder")},
    **{f"{name} is encrypted otherwise": at(name, 8, "<H", 0x2000) for name in ("data.pkl", "data/0")},
    **{f"{name} is on another disk": at(name, 34, "<H", 5) for name in ("data.pkl", "data/0")},
}  # fmt: skip


@pytest.mark.parametrize("case", ZIPS)
def test_zips_that_torch_does_not_read_so(case: str, tmp_path: Path) -> None:
    assert not agree(tmp_path / "a.pth", ZIPS[case])


def test_zips_that_are_only_unusual(tmp_path: Path) -> None:
    for content in (SOUND, at("data/0", 38, "<I", 0o120777 << 16), archive(plain(1), **{".storage_alignment": b"8"})):
        assert agree(tmp_path / "a.pth", content)  # as they are, with a link in place of a file, otherwise aligned
    torch.save({"a": torch.ones(2)}, tmp_path / "模型.pth")
    assert load_file(tmp_path / "模型.pth")["a"].sum() == 2


def test_what_is_unpickled_was_audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is changed between the two."""
    from torchinit.checkpoints.formats import torch_save

    path, ran = tmp_path / "a.pth", tmp_path / "ran"
    path.write_bytes(SOUND)
    audited = check_zip(path)
    path.write_bytes(archive(b"cbuiltins\nopen\n" + pickle.dumps((str(ran), "w"), 2)[2:-1] + b"R"))
    monkeypatch.setattr(torch_save, "check_zip", lambda path: audited)
    with pytest.raises(CheckpointError, match=r"asks for"):  # by torch's unpickler: the bytes are not those any more
        load_file(path)
    assert not ran.exists()


@pytest.mark.slow("hundreds of files, each read twice")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(4))
def test_changed_files_are_read_as_torch_reads_them(seed: int, tmp_path: Path) -> None:
    """Operations put in, taken out and replaced, and bits of the zip around them turned."""
    draw, values = random.Random(seed), [value for value, _ in ODD.values()] + [plain({"a": [1, (2,)]}), TENSOR]
    operations = [*b"]}()asebutRQN20\x81\x85\x86\x87\x88"]
    outcomes = set()
    for _ in range(150):
        value = bytearray(draw.choice(values))
        place = draw.randrange(len(value))
        value[place : place + draw.choice((0, 1))] = bytes(draw.choices(operations, k=draw.choice((1, 2))))
        content = bytearray(archive(bytes(value) if draw.random() < 0.5 else plain(1)))
        if content == SOUND:
            content[draw.randrange(content.rfind(b"data/0"), len(content))] ^= 1 << draw.randrange(8)
        outcomes.add(agree(tmp_path / "a.pth", bytes(content)))
    assert outcomes == {True, False}
