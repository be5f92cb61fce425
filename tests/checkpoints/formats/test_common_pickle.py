"""Files of torch.save that are read without torch's unpickler: the same content, and only where nothing is odd."""

from __future__ import annotations

import copy
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from torchinit import CheckpointError, open_checkpoint
from torchinit.checkpoints.formats.pickle_audit import check_pickle
from torchinit.checkpoints.formats.torch_save import load_file

BASE = torch.arange(12.0)


def trained() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return {"epoch": 3, "loss": 0.5, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}


COMMON: dict[str, Any] = {
    "a model": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict(),
    "a training": trained(),
    "dtypes": {str(dtype): torch.ones(3).to(dtype) for dtype in (
        torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
        torch.bool,
    )},
    "views of a piece": {"a": BASE, "b": BASE[3:7], "c": BASE.view(3, 4).t(), "d": BASE[::2], "e": BASE[:1].expand(5)},
    "sizes": {"none": torch.empty(0, 3), "one": torch.tensor(2.0), "list": [torch.ones(2), 1, "x", None, True]},
    "learning": {"a": torch.ones(2, requires_grad=True)},
    "memory itself": {"a": torch.ones(2), "memory": torch.ones(3)._typed_storage()},
    "one alone": torch.ones(2),
    "the same twice": OrderedDict.fromkeys("ab", {"w": BASE}),
}  # fmt: skip
OTHERS: dict[str, Any] = {
    "parameters": {"a": nn.Parameter(torch.ones(2))},
    "complex": {"a": torch.ones(2, dtype=torch.complex64)},
    "a size": {"a": torch.ones(2), "size": torch.Size([2])},
    "a set": {"a": torch.ones(2), "keys": {1, 2}},
    "conjugated": {"a": torch.ones(2, dtype=torch.complex64).conj()},
    "sparse": {"a": torch.eye(2).to_sparse()},
    "a class": {"a": torch.ones(2), "dtype": torch.float32},
}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(ours, (Tensor, OrderedDict)):
        assert_same(vars(ours), vars(theirs))
    if isinstance(ours, Tensor):
        assert torch.equal(ours, theirs)
        for about in ("dtype", "requires_grad", "is_leaf"):
            assert getattr(ours, about) == getattr(theirs, about)
        assert_same(ours._backward_hooks, theirs._backward_hooks)
        assert (ours.stride(), ours.storage_offset()) == (theirs.stride(), theirs.storage_offset())
        assert ours.untyped_storage().nbytes() == theirs.untyped_storage().nbytes()
    elif isinstance(ours, torch.TypedStorage):
        assert ours._untyped_storage.tolist() == theirs._untyped_storage.tolist()
        assert ours.dtype == theirs.dtype
    elif isinstance(ours, torch.serialization.StorageType):
        assert ours.dtype == theirs.dtype
    elif isinstance(ours, dict):
        assert_same([*ours], [*theirs])
        assert_same([*ours.values()], [*theirs.values()])
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        for pair in zip(ours, theirs, strict=True):
            assert_same(*pair)
    else:
        assert ours == theirs


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that torch's own unpickler has read."""
    real, asked = torch.load, list[Path]()

    def load(path: Path, **options: Any) -> Any:
        asked.append(path)
        return real(path, **options)

    monkeypatch.setattr(torch, "load", load)
    return asked


@pytest.mark.parametrize("case", COMMON)
def test_the_content_is_that_of_torch(case: str, asked: list[Path], tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", COMMON[case])
    ours = load_file(path)
    assert asked == []
    assert_same(ours, torch.load(path, weights_only=True, mmap=True))


def test_views_share_their_memory(tmp_path: Path) -> None:
    ours = load_file(saved(tmp_path / "a.pth", {"a": BASE, "b": BASE[3:7]}))
    assert ours["b"].data_ptr() == ours["a"].data_ptr() + 3 * 4
    ours["a"].fill_(7.0)
    assert ours["b"].tolist() == [7.0] * 4
    assert torch.load(tmp_path / "a.pth")["a"].equal(BASE)  # the file is as it was


@pytest.mark.parametrize("case", OTHERS)
def test_anything_else_is_left_to_torch(case: str, asked: list[Path], tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", OTHERS[case])
    ours = load_file(path)
    assert asked == [path]
    assert type(ours) is dict


@pytest.mark.parametrize(
    ("record", "text"), [("version", b"2\n"), ("version", None), ("byteorder", b"big"), ("byteorder", None)]
)
def test_records_that_are_not_usual(record: str, text: bytes | None, asked: list[Path], tmp_path: Path) -> None:
    """Without a byte order torch takes its default, which a program may have changed."""
    path = saved(tmp_path / "a.pth", {"a": torch.ones(2)})
    with zipfile.ZipFile(path) as old:
        entries: dict[str, bytes | None] = {info.filename: old.read(info) for info in old.infolist()}
    entries = {name: content if not name.endswith(f"/{record}") else text for name, content in entries.items()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in entries.items():
            if content is not None:
                new.writestr(name, content)
    if (record, text) == ("version", None):
        with pytest.raises(CheckpointError):
            open_checkpoint(path)
    else:
        open_checkpoint(path)
    assert asked == [path]


def test_another_device_and_files_that_are_not_mapped(asked: list[Path], tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"a": torch.ones(2)})
    assert load_file(path, "meta")["a"].is_meta
    assert load_file(path, mapped=False)["a"].sum() == 2
    assert asked == [path, path]


def test_in_a_fake_mode(asked: list[Path], tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"a": torch.ones(2)})
    with FakeTensorMode():
        assert isinstance(load_file(path)["a"], FakeTensor)
    assert asked == [path]


def pickled(*operations: bytes) -> bytes:
    return b"".join((b"\x80\x02", *operations, b"."))


ORDERED = b"ccollections\nOrderedDict\n"
ODD = {
    "a number of the memo that is far away": pickled(b"}", b"r\xff\xff\xff\x7f"),
    "one that is left out": pickled(b"}", b"q\x01"),
    "made by its class": pickled(ORDERED, b")", b"\x81"),
    "an attribute of a dict by another dict": pickled(b"]", b"}", b"b"),
    "attributes that are not in a dict": pickled(ORDERED, b")R", b"]", b"b"),
    "a list that is filled as a dict": pickled(b"]", b"K\x01K\x02s"),
    "a dict that is filled as a list": pickled(b"}", b"K\x01a"),
    "a set that is filled as a list": pickled(b"\x8f", b"K\x01a"),
    "a tuple that is filled": pickled(b")", b"K\x01a"),
    "a number that is filled": pickled(b"K\x01", b"K\x01a"),
    "another function": pickled(b"ctorch\nSize\n", b")R"),
    "a name alone": pickled(b"ctorch\nfloat32\n"),
}


@pytest.mark.parametrize("case", ODD)
def test_pickles_that_are_not_common(case: str) -> None:
    try:
        assert not check_pickle("a", ODD[case])[2]
    except CheckpointError:
        assert case.startswith("a set")  # refused as ever: it is of a later protocol
    common = (pickled(b"}", b"q\x00"), pickled(ORDERED, b")R", b"}", b"b"), pickled(b"]", b"K\x01a"))
    assert all(check_pickle("a", data)[2] for data in common)


def test_all_that_is_common_is_made_alike(tmp_path: Path) -> None:
    """By Python's unpickler as by torch's, with everything that it may do in one pickle."""
    content = copy.copy(OrderedDict(a=[1, 2.5, None, True, "x", (1, (2,)), 1 << 40], b={1: {}, "k": []}))
    content._metadata = {"version": 1}  # type: ignore[attr-defined]
    assert_same(load_file(saved(tmp_path / "a.pth", content)), content)
    assert check_pickle("a", pickle.dumps(content, 2))[2]
