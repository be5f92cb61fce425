"""Readers: every format gives the same tensors, whole and by box, and says what it cannot read."""

from __future__ import annotations

import io
import json
import math
import pickletools
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from tests.checkpoints.files import state, write
from torchinit import CheckpointError, MissingExtraError, Name, Pretrained, Rule, initialize, open_checkpoint
from torchinit.checkpoints.formats import safetensors
from torchinit.checkpoints.formats.detect import weights_in
from torchinit.mmengine import CheckpointLoader
from torchinit.model import Box

FORMATS = ["safetensors", "zip", "legacy", "sharded-safetensors", "sharded-zip"]
NUMPY = {key: value for key, value in state().items() if value.dtype != torch.bfloat16}


@pytest.mark.parametrize("form", [*FORMATS, "npz"])
def test_every_format_gives_what_was_written(form: str, tmp_path: Path) -> None:
    held = NUMPY if form == "npz" else state()
    checkpoint = open_checkpoint(write(form, tmp_path, held))
    assert sorted(checkpoint) == sorted(held)
    for key, tensor in held.items():
        assert checkpoint.info(key).shape == tuple(tensor.shape)
        assert checkpoint.info(key).dtype == tensor.dtype
        assert checkpoint.info(key).nbytes == tensor.nbytes
        read = checkpoint.read(key)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)


@given(st.data())
def test_a_box_is_that_part_of_the_whole(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from([*FORMATS, "npz"]))
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    tensor = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
    start = [data.draw(st.integers(0, size - 1)) for size in shape]
    extent = [data.draw(st.integers(0, size - low)) for low, size in zip(start, shape, strict=True)]
    checkpoint = open_checkpoint(write(form, tmp_path_factory.mktemp("box"), {"w": tensor, "v": tensor + 1}))
    expected = tensor
    for axis, (low, size) in enumerate(zip(start, extent, strict=True)):
        expected = expected.narrow(axis, low, size)
    assert torch.equal(checkpoint.read("w", Box(tuple(start), tuple(extent))), expected)


def test_reading_a_box_of_a_mapped_file_copies_nothing(tmp_path: Path) -> None:
    for form in ("safetensors", "zip"):
        checkpoint = open_checkpoint(write(form, tmp_path, state()))
        whole, part = checkpoint.read("stem.weight"), checkpoint.read("stem.weight", Box((2, 0, 0), (1, 2, 3)))
        assert part.data_ptr() == whole.data_ptr() + 2 * 6 * 4


def test_what_a_checkpoint_says_of_itself(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write("safetensors", tmp_path, state()))
    assert len(checkpoint) == 6
    assert repr(checkpoint) == f"<SafetensorsCheckpoint {tmp_path / 'a.safetensors'}: 6 tensors>"
    with pytest.raises(CheckpointError, match=r"holds no 'stem.wieght'; did you mean 'stem.weight'\?"):
        checkpoint.read("stem.wieght")


def test_one_array_is_called_as_its_file(tmp_path: Path) -> None:
    numpy.save(tmp_path / "table.npy", numpy.arange(6, dtype="f8").reshape(2, 3))
    checkpoint = open_checkpoint(tmp_path / "table.npy")
    assert checkpoint.keys() == ("table",)
    assert checkpoint.read("table", Box((1, 0), (1, 2))).tolist() == [[3.0, 4.0]]


def test_models_and_dicts_are_checkpoints() -> None:
    model = nn.BatchNorm1d(3)
    assert open_checkpoint(model).keys() == tuple(model.state_dict())
    checkpoint = open_checkpoint({"state_dict": state(), "epoch": 3})
    assert (checkpoint.part, checkpoint.format) == ("state_dict", "dict")
    assert open_checkpoint(checkpoint) is checkpoint


NESTED: dict[str, tuple[Any, str, list[str]]] = {
    "flat": ({"a": torch.ones(1)}, "", ["a"]),
    "beside other things": ({"a": torch.ones(1), "epoch": 3, "cfg": {"lr": 0.1}}, "", ["a"]),
    "lightning": ({"state_dict": {"a": torch.ones(1)}, "epoch": 3}, "state_dict", ["a"]),
    "twice": ({"model": {"state_dict": {"a": torch.ones(1)}}}, "model.state_dict", ["a"]),
    "with an average": ({"ema": {"a": torch.ones(1)}, "model": {"a": torch.ones(1)}}, "model", ["a"]),
    "with an optimizer": (
        {"model_state": {"a": torch.ones(1)}, "optimizer": {"state": {0: {"m": torch.ones(1)}}, "param_groups": []}},
        "model_state", ["a"],
    ),
    "under an unknown name": ({"weights_v2": {"a": torch.ones(1)}, "step": 1}, "weights_v2", ["a"]),
    "several": ({"enc": {"a": torch.ones(1)}, "dec": {"a": torch.ones(1)}}, "", ["enc.a", "dec.a"]),
    "a module called model": (
        {"model": {"a": torch.ones(1)}, "b": torch.ones(1), "c": torch.ones(1)},
        "", ["model.a", "b", "c"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NESTED)
def test_where_the_weights_are(case: str, tmp_path: Path) -> None:
    held, part, keys = NESTED[case]
    torch.save(held, tmp_path / "a.pth")
    for checkpoint in (open_checkpoint(held), open_checkpoint(tmp_path / "a.pth")):
        assert (checkpoint.part, list(checkpoint)) == (part, keys)


def test_other_parts_are_mentioned_and_can_be_chosen() -> None:
    held = {"model": {"a": torch.ones(1)}, "ema": {"shadow": {"a": torch.zeros(1)}}}
    assert open_checkpoint(held).notes == ("taken from 'model'; there are also ema: choose with part",)
    chosen = open_checkpoint(held, part="ema.shadow")
    assert (chosen.part, chosen.read("a").item()) == ("ema.shadow", 0.0)
    with pytest.raises(CheckpointError, match=r"has no part 'emma'; did you mean 'ema'\?"):
        open_checkpoint(held, part="emma")
    with pytest.raises(CheckpointError, match=r"its part 'a' holds no named tensors"):
        open_checkpoint({"a": {"b": 3}}, part="a")


EMPTY: dict[str, tuple[Any, str]] = {
    "an optimizer": ({"state": {0: {"m": torch.ones(1)}}, "param_groups": []}, "holds the state of an optimizer only"),
    "an optimizer by name": ({"optimizer": {"state": {}, "param_groups": []}}, "holds the state of an optimizer only"),
    "settings": ({"lr": 0.1, "epochs": 3}, "holds no tensors, only 2 entries: lr, epochs"),
    "nothing": ({}, "is empty"),
    "numbers for names": ({0: torch.ones(1)}, "its tensors have no names"),
    "a list": ([torch.ones(1)], "holds a list, not named tensors"),
    "a tensor": (torch.ones(1), "holds a Tensor, not named tensors"),
}


@pytest.mark.parametrize("case", EMPTY)
def test_what_holds_no_weights(case: str, tmp_path: Path) -> None:
    held, text = EMPTY[case]
    torch.save(held, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=text):
        open_checkpoint(tmp_path / "a.pth")


FOREIGN = {
    "empty": (b"", "is empty"),
    "a page": (b"\n<!DOCTYPE html><html>", "is a web page, not weights"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a git-lfs pointer"),
    "gzip": (b"\x1f\x8b\x08\x00", "is compressed with gzip"),
    "keras": (b"\x89HDF\r\n", "is an HDF5 file"),
    "tar": (b"\0" * 10 + b"x" * 247 + b"ustar  ", "is a tar archive"),
    "zeros": (b"\0" * 100, "begins with zeros"),
    "text": (b"hello", "is of no known format: it begins with b'hello'"),
    "settings": (b'{"a": 1}', "is JSON without a 'weight_map'"),
    "half of an index": (b'{"weight_map": {', "is not JSON: Expecting property name"),
    "half of a zip": (b"PK\x03\x04" + b"\0" * 50, "is not a complete zip file"),
    "a huge header": (b"\xff" * 8 + b"{", "its header would be larger than any"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_files_that_are_no_checkpoints(case: str, tmp_path: Path) -> None:
    content, text = FOREIGN[case]
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=text):
        open_checkpoint(tmp_path / "a.pth")


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder, and there are no weights in it"):
        open_checkpoint(tmp_path)
    write("safetensors", tmp_path, state())
    assert open_checkpoint(tmp_path).name == str(tmp_path / "a.safetensors")
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"several files of weights \(a.safetensors, b.safetensors\): name one"):
        open_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"missing.pth can not be found"):
        open_checkpoint(tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match=r"is not a nested checkpoint, so it has no part 'ema'"):
        open_checkpoint(tmp_path / "a.safetensors", part="ema")


@pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled",
    *(["ignore:TypedStorage is deprecated"] if torch.__version__ < "2.12" else []),  # which older torch uses itself
)
def test_folders_of_torch_distributed_only_on_trust(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    with pytest.raises(CheckpointError, match=r"is a folder without .metadata"):
        open_checkpoint(tmp_path, trust=True)
    save({"a.weight": torch.arange(6.0).view(2, 3), "step": 3}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    with pytest.raises(CheckpointError, match=r"open_checkpoint\(path, trust=True\)"):
        open_checkpoint(tmp_path / "dcp")
    checkpoint = open_checkpoint(tmp_path / "dcp", trust=True)
    assert checkpoint.keys() == ("a.weight",)
    assert checkpoint.info("a.weight").shape == (2, 3)
    assert checkpoint.read("a.weight", Box((1, 0), (1, 2))).tolist() == [[3.0, 4.0]]


INDICES: dict[str, tuple[Any, str]] = {
    "up": ({"a": "../0.pth"}, r"names '../0.pth', which is not in its folder"),
    "absolute": ({"a": "/etc/passwd"}, "which is not in its folder"),
    "windows": ({"a": "..\\0.pth"}, "which is not in its folder"),
    "drive": ({"a": "c:0.pth"}, "which is not in its folder"),
    "nothing": ({"a": ""}, "which is not in its folder"),
    "no text": ({"a": 3}, "has no table 'weight_map' of file names"),
    "a list": (["a"], "has no table 'weight_map' of file names"),
}


@pytest.mark.parametrize("case", INDICES)
def test_indices_that_lie(case: str, tmp_path: Path) -> None:
    weight_map, text = INDICES[case]
    (tmp_path / "a.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=text):
        open_checkpoint(tmp_path / "a.index.json")


def test_indices_that_lead_astray(tmp_path: Path) -> None:
    path = tmp_path / "a.index.json"
    path.write_text('{"weight_map": {"a": "x", "a": "y"}}')
    with pytest.raises(CheckpointError, match=r"has the key 'a' twice"):
        open_checkpoint(path)
    path.write_text(json.dumps({"weight_map": {"a": path.name}}))
    with pytest.raises(CheckpointError, match=r"is an index again"):
        open_checkpoint(path).read("a")
    path.write_text(json.dumps({"weight_map": {"a": "a.pth"}}))
    with pytest.raises(CheckpointError, match=r"names 'a.pth', but .*a.pth can not be found"):
        open_checkpoint(path).read("a")
    write("zip", tmp_path, {"b": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"holds no 'a'"):
        open_checkpoint(path).info("a")


def test_arrays_that_are_refused(tmp_path: Path) -> None:
    numpy.save(tmp_path / "a.npy", numpy.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CheckpointError, match=r"holds Python objects or records"):
        open_checkpoint(tmp_path / "a.npy")
    numpy.save(tmp_path / "b.npy", numpy.zeros(3, dtype=">f4"))
    with pytest.raises(CheckpointError, match=r"its bytes are in another order"):
        open_checkpoint(tmp_path / "b.npy")
    numpy.savez(tmp_path / "c.npz", a=numpy.zeros(3))
    with zipfile.ZipFile(tmp_path / "c.npz", "a") as archive:
        archive.writestr("code.py", "x")
    with pytest.raises(CheckpointError, match=r"code.py is not an array"):
        open_checkpoint(tmp_path / "c.npz")
    numpy.save(tmp_path / "d.npy", numpy.zeros(30))
    (tmp_path / "d.npy").write_bytes((tmp_path / "d.npy").read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"is not as long as its header says"):
        open_checkpoint(tmp_path / "d.npy")
    (tmp_path / "e.npy").write_bytes(b"\x93NUMPY\x03\x00" + b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"is of version"):
        open_checkpoint(tmp_path / "e.npy")
    (tmp_path / "f.npy").write_bytes(b"\x93NUMPY\x01\x00\x05\x00{'a'}")
    with pytest.raises(CheckpointError, match=r"cannot be read"):
        open_checkpoint(tmp_path / "f.npy")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("npz", tmp_path, NUMPY)
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'torchinit\[numpy\]'"):
        open_checkpoint(path)


def test_safetensors_are_read_without_the_package_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("safetensors", tmp_path, state())
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert torch.equal(open_checkpoint(path).read("stem.weight"), state()["stem.weight"])


DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64),
]
shapes = st.lists(st.integers(0, 4), max_size=4)


@given(tensors=st.lists(st.tuples(st.sampled_from(DTYPES), shapes), min_size=1, max_size=6), padding=st.integers(0, 9))
def test_any_tensors_are_as_the_package_reads_them(
    tmp_path_factory: pytest.TempPathFactory, tensors: list[tuple[torch.dtype, list[int]]], padding: int
) -> None:
    held = {
        f"{n}": torch.randint(0, 2, (math.prod(shape), dtype.itemsize), dtype=torch.uint8).view(dtype).view(shape)
        for n, (dtype, shape) in enumerate(tensors)
    }
    path = tmp_path_factory.mktemp("any") / "a.safetensors"
    save_file(held, path)
    raw = path.read_bytes()  # its header is as long as numbers are aligned to, which no reader may rely on
    length = int.from_bytes(raw[:8], "little")
    path.write_bytes(
        (length + padding).to_bytes(8, "little") + raw[8 : 8 + length] + b" " * padding + raw[8 + length :]
    )
    checkpoint, theirs = open_checkpoint(path), load_file(path)
    assert {*checkpoint} == {*theirs}
    for key, tensor in theirs.items():
        read = checkpoint.read(key)
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert read.is_contiguous()
        assert read.reshape(-1).view(torch.uint8).tolist() == tensor.reshape(-1).view(torch.uint8).tolist()


def test_what_is_written_to_a_tensor_that_was_read_is_not_in_the_file(tmp_path: Path) -> None:
    path = write("safetensors", tmp_path, state())
    before = path.read_bytes()
    open_checkpoint(path).read("stem.weight").zero_()
    assert path.read_bytes() == before
    assert open_checkpoint(path).read("stem.weight").any()


def test_a_file_that_goes_away_cannot_be_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("safetensors", tmp_path, state())
    header = safetensors.read_header(path)
    monkeypatch.setattr(safetensors, "read_header", lambda path: (path.unlink(), header)[1])
    with pytest.raises(CheckpointError, match=r"a.safetensors: cannot be mapped: "):
        open_checkpoint(path)


def as_python_2_wrote(file: bytes) -> bytes:
    """One of torch's older files with its texts as the strings of Python 2, which many published files still have."""
    stream, made = io.BytesIO(file), b""
    for _ in range(5):
        operations = [*pickletools.genops(stream)]
        ends = [*(at for _, _, at in operations[1:]), stream.tell()]
        for (code, argument, at), end in zip(operations, ends, strict=True):
            text = str(argument).encode()
            made += b"U" + bytes([len(text)]) + text if code.name == "BINUNICODE" else file[at:end]
    return made + stream.read()


def test_the_texts_of_python_2(tmp_path: Path) -> None:
    held = io.BytesIO()
    torch.save({"a.weight": torch.arange(6.0).view(2, 3)}, held, _use_new_zipfile_serialization=False)
    old = as_python_2_wrote(held.getvalue())
    assert b"X\x08\x00\x00\x00a.weight" in held.getvalue()
    assert b"U\x08a.weight" in old
    (tmp_path / "a.pth").write_bytes(old)
    assert torch.equal(open_checkpoint(tmp_path / "a.pth").read("a.weight"), torch.arange(6.0).view(2, 3))


@pytest.mark.parametrize(
    ("names", "taken", "told"),
    [
        (["model.safetensors.index.json", "model-00001-of-00002.safetensors"], "model.safetensors.index.json", ""),
        (["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"], "pytorch_model.bin.index.json", ""),
        (["pytorch_model.bin", "training_args.bin", "optimizer.pt", "config.json"], "pytorch_model.bin", ""),
        (
            ["model.safetensors", "pytorch_model.bin"],
            "model.safetensors",
            "taken from 'model.safetensors'; the folder also has pytorch_model.bin",
        ),
        (["adapter_model.safetensors", "adapter_config.json"], "adapter_model.safetensors", ""),
        (["my.safetensors", "optimizer.pt"], "my.safetensors", ""),
        (["epoch_1.pth"], "epoch_1.pth", ""),
    ],
)
def test_the_weights_in_a_folder(names: list[str], taken: str, told: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert weights_in(str(tmp_path)) == (str(tmp_path / taken), (told,) if told else ())
    assert weights_in(str(tmp_path / taken)) == (str(tmp_path / taken), ())


def test_a_folder_of_save_pretrained_is_opened_by_its_index(tmp_path: Path) -> None:
    write("sharded-safetensors", tmp_path, tensors := state()).rename(tmp_path / "model.safetensors.index.json")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.format == "sharded"
    assert all(torch.equal(checkpoint.read(key), tensor) for key, tensor in tensors.items())
    net = nn.BatchNorm1d(2, affine=False)
    rule = Rule(Name("**"), Pretrained(str(tmp_path), prefix="norm", expect_missing="running_mean"))
    initialize(net, [rule])
    assert net.running_var is not None
    assert net.running_var.tolist() == [0.5, 2.0]
    assert {*CheckpointLoader.load_checkpoint(str(tmp_path))} == {*tensors}
