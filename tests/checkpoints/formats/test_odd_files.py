"""Odd files: honest or not, each is read as it is meant or refused; no name of theirs gets at a terminal."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from tests.checkpoints.files import raw_safetensors, state, write
from tests.checkpoints.hostile_more import deceivers
from torchinit import CheckpointError, Name, Pretrained, Rule, initialize, open_checkpoint
from torchinit.cli import main
from torchinit.serialization.json import unique_json


def test_arrays_of_like_names(tmp_path: Path) -> None:
    def content(value: float) -> bytes:
        held = io.BytesIO()
        numpy.save(held, numpy.full(2, value, "f4"))
        return held.getvalue()

    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content(1))
        archive.writestr("a.npy.npy", content(2))
    checkpoint = open_checkpoint(tmp_path / "a.npz")
    assert {key: checkpoint.read(key).tolist() for key in checkpoint} == {"a": [1.0, 1.0], "a.npy": [2.0, 2.0]}


@pytest.mark.parametrize("compressed", [True, False])
def test_orders_and_shapes_of_arrays(compressed: bool, tmp_path: Path) -> None:
    held: dict[str, Any] = {
        "fortran": numpy.asfortranarray(numpy.arange(6, dtype="f4").reshape(2, 3)),
        "scalar": numpy.float64(3),
        "empty": numpy.zeros((0, 3), "i8"),
        "unsigned": numpy.arange(3, dtype="u2"),
    }
    (numpy.savez_compressed if compressed else numpy.savez)(tmp_path / "a.npz", **held)
    checkpoint = open_checkpoint(tmp_path / "a.npz")
    for key, array in held.items():
        assert checkpoint.info(key).shape == array.shape
        assert numpy.array_equal(checkpoint.read(key).numpy(), array)
        numpy.save(tmp_path / f"{key}.npy", array)
        assert numpy.array_equal(open_checkpoint(tmp_path / f"{key}.npy").read(key).numpy(), array)


def test_an_array_that_python_2_wrote(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4L,)}"
    header += b" " * (128 - 11 - len(header)) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + header + numpy.ones(4, "f4").tobytes())
    assert open_checkpoint(tmp_path / "a.npy").read("a").tolist() == [1.0] * 4


def test_marks_on_tensors_are_carried_out(tmp_path: Path) -> None:
    held = {"conjugated": torch.tensor([1 + 2j]).conj(), "negated": torch.tensor([1 + 2j]).conj().imag}
    torch.save(held, tmp_path / "a.pth")
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "a.safetensors")]) == 0
    for name in ("a.pth", "a.safetensors"):
        checkpoint = open_checkpoint(tmp_path / name)
        assert not checkpoint.read("conjugated").is_conj()
        assert checkpoint.read("conjugated").tolist() == [1 - 2j]
        assert checkpoint.read("negated").tolist() == [-2.0]


def test_eight_bit_floats_of_every_kind(tmp_path: Path) -> None:
    from torchinit.cli import models

    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.float8_e4m3fnuz):
        models.write(tmp_path / "a.safetensors", {"w": torch.tensor([1.0, 2.0, 4.0]).to(dtype)}, {})
        read = open_checkpoint(tmp_path / "a.safetensors").read("w")
        assert (read.dtype, read.float().tolist()) == (dtype, [1.0, 2.0, 4.0])


def test_objects_that_a_program_lets_in(tmp_path: Path) -> None:
    torch.save(
        {"state_dict": state(), "shape": torch.Size([2]), "seen": {1, 2}, "raw": b"\xff\x00"}, tmp_path / "a.pth"
    )
    assert open_checkpoint(tmp_path / "a.pth").part == "state_dict"
    torch.save({"state_dict": state(), "settings": Settings()}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"is refused: its pickle asks for .*test_odd_files.Settings"):
        open_checkpoint(tmp_path / "b.pth")
    with torch.serialization.safe_globals([Settings]):
        assert open_checkpoint(tmp_path / "b.pth").part == "state_dict"


class Settings:
    """What a program may register as safe."""


@pytest.mark.parametrize("form", ["safetensors", "zip"])
def test_a_file_that_is_cut_while_it_is_mapped(form: str, tmp_path: Path) -> None:
    held = {"w": torch.arange(100_000.0)}
    path = write(form, tmp_path, held)
    checkpoint = open_checkpoint(path)
    (tmp_path / "other").mkdir()
    write(form, tmp_path / "other", {"w": torch.zeros(3)}).replace(path)
    assert torch.equal(checkpoint.read("w"), held["w"]), "a file in its place is no matter: the old one stays mapped"
    checkpoint = open_checkpoint(write(form, tmp_path, held))
    os.truncate(path, 1000)
    with pytest.raises(CheckpointError, match=r"has been written to since it was opened; open it again"):
        checkpoint.read("w")
    path.unlink()


@pytest.mark.parametrize("form", ["safetensors", "zip", "index"])
@pytest.mark.parametrize("case", deceivers())
def test_names_cannot_get_at_the_terminal(
    case: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = deceivers()[case]
    path = tmp_path / "a"
    if form == "zip":
        torch.save({name: torch.ones(2), "b": torch.ones(2)}, path)
    else:
        good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
        header = {name: good, "b": {**good, "data_offsets": [8, 16]}, "__metadata__": {"from": name, name: "x"}}
        raw_safetensors(path, header, bytes(16))
    if form == "index":
        path = tmp_path / "index.json"
        path.write_text(json.dumps({"weight_map": {name: "a", "b": "a"}}))
    for command in (
        ["inspect", str(path)],
        ["inspect", str(path), "--json", "--hashes"],
        ["inspect", str(path), "--part", name],
        ["convert", str(path), str(tmp_path / "b.safetensors"), "--force"],
        ["check-ckpt", str(path), "--model", "torch.nn:PReLU", "--arg", "num_parameters=2"],
    ):
        main(command)
        shown = "".join(capsys.readouterr())
        assert shown
        assert [letter for letter in shown if not letter.isprintable() and letter != "\n"] == []
        assert "\nsha256 0000" not in shown
        if "--json" in command and shown.startswith("{"):
            assert json.loads(shown)["tensors"][0]["name"] in (name, "b")
    with pytest.raises(CheckpointError) as caught:
        initialize(nn.PReLU(2), Rule(Name("**"), Pretrained(str(path))))
    assert str(caught.value).replace("\n", "").isprintable()


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("pipe", "zero"):
        with pytest.raises(CheckpointError, match=r"is a device or a pipe, not a file"):
            open_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"loop can not be found: it is a link to '.*loop', where nothing is"):
        open_checkpoint(tmp_path / "loop")
    with pytest.raises(CheckpointError, match=r"cannot be read: .*File name too long"):
        open_checkpoint("x" * 5000)
    index = tmp_path / "index.json"
    cases = {
        "pipe": "not a file",
        "x" * 5000: "File name too long",
        "loop": "can not be found",
        "\ud800": "not in its folder",
    }
    for name, text in cases.items():
        index.write_text(json.dumps({"weight_map": {"w": name}}))
        with pytest.raises(CheckpointError, match=text):
            open_checkpoint(index).info("w")


def test_names_that_no_safetensors_can_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("__metadata__", "a\ud800"):
        torch.save({name: torch.ones(2)}, tmp_path / "a.pth")
        assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "a.safetensors")]) == 2
        assert "cannot be written: safetensors has no such name" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_json_that_says_things_once() -> None:
    assert unique_json(b'\xef\xbb\xbf{"a": {"b": [1]}}') == {"a": {"b": [1]}}
    with pytest.raises(ValueError, match=r"has the key 'b' twice"):
        unique_json(b'{"a": {"b": 1, "b": 1}}')
    for text in (b"{", b"\xff\xfe", b'{"a": Infinity}', b"[" * 100_000, b"9" * 10_000):
        with pytest.raises(ValueError, match=r"is not JSON"):
            unique_json(text)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("legacy", [False, True])
def test_odd_tensors_are_refused_alone(legacy: bool, tmp_path: Path) -> None:
    odd = {
        "sparse_coo": torch.eye(3).to_sparse(),
        "sparse_csr": torch.eye(3).to_sparse_csr(),
        "meta": torch.ones(2, device="meta"),
    }
    torch.save({"weight": torch.ones(2, 3), **odd}, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    checkpoint = open_checkpoint(tmp_path / "a.pth")
    assert checkpoint.read("weight").sum() == 6
    for key in odd:
        for look in (checkpoint.info, checkpoint.read):
            with pytest.raises(CheckpointError, match=rf"a.pth: {key} is a (torch\.)?{key} tensor; only plain ones"):
                look(key)
    model = nn.Linear(3, 2)
    initialize(model, Rule(Name("weight"), Pretrained(str(tmp_path / "a.pth"))))
    assert torch.equal(model.weight, torch.ones(2, 3))


def test_odd_tensors_are_told_of_by_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = {
        "new": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]},
        "old": {"dtype": "U8", "shape": [3], "data_offsets": [1, 4]},
    }
    assert main(["inspect", str(raw_safetensors(tmp_path / "a.safetensors", header, bytes(4)))]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "1 tensor of 3 bytes" in text
    assert "new is of dtype F4, which torch does not have" in text


@pytest.mark.parametrize("legacy", [False, True])
def test_whatever_honest_training_saves_is_read(legacy: bool, tmp_path: Path) -> None:
    model, shared = nn.Linear(3, 2), torch.arange(12.0)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    held: dict[str, Any] = {
        "state_dict": model.state_dict()
        | {
            "parameter": nn.Parameter(torch.ones(2), requires_grad=False),
            "tracked": torch.ones(2, requires_grad=True),
            "view": shared[4:].view(2, 4).t(),
            "whole": shared,
            "conjugate": torch.tensor([1 + 2j]).conj(),
            "half": torch.ones(2, dtype=torch.bfloat16),
            "scalar": torch.tensor(3),
            "empty": torch.empty(0, 3),
        },
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10).state_dict(),
        "numbers": [0, -1, 255, 256, 65536, -(2**31), 2**63, 2**70, -(2**900), 0.1, float("nan"), 1 + 2j, True, None],
        "texts": ["", "\u00fc\udc80\n", "x" * 100_000, b"\x00\xff" * 500, bytearray(b"abc")],
        "kinds": [torch.Size([1, 2]), torch.bfloat16, torch.device("cuda:1"), torch.strided],
        "tables": {1: 2, (1, (2, "a")): {3}, None: Counter("aab"), 1.5: OrderedDict(a=1)},
        "many": [(1, 2, 3)] * 50_000,
    }
    torch.save(held, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    checkpoint = open_checkpoint(tmp_path / "a.pth")
    assert checkpoint.part == "state_dict"
    for key, value in held["state_dict"].items():
        assert torch.equal(checkpoint.read(key), value.detach().resolve_conj())
