"""Hostile files: none runs code, none ends the process, none is loaded by half."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.checkpoints import hostile, hostile_more
from tests.checkpoints.files import raw_safetensors
from torchinit import CheckpointError, Name, Pretrained, Rule, initialize, open_checkpoint
from torchinit.checkpoints.hub.cache import hash_of

ROOT = Path(__file__).parents[2]


def read_all(folder: Path) -> dict[str, str | None]:
    """What became of each file, read in another process; None for one that ended it."""
    command = [sys.executable, "-m", "tests.checkpoints.hostile_reader", str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    found = dict(json.loads(line) for line in run.stdout.splitlines())
    ended = [name for name, said in found.items() if said is None]
    assert run.returncode == 0, f"ended by {ended}: {run.stderr[-2000:]}"
    return found


@pytest.mark.slow("350 hostile files in a process that is watched")
def test_every_hostile_file_is_refused_and_none_runs_code(tmp_path: Path) -> None:
    marker, folder = tmp_path / "marker", tmp_path / "files"
    folder.mkdir()
    for name, content in (*hostile.files(marker), *hostile_more.files()):
        assert not (folder / name).exists(), f"two files are called {name}"
        (folder / name).write_bytes(content)
    found = read_all(folder)
    families = Counter(name.split()[0] for name in found)
    assert families.total() >= 200
    assert len(hostile.calls(marker)) >= 20
    assert not marker.exists()
    passed = {name: said for name, said in found.items() if not str(said).startswith("refused")}
    assert passed == {}


def test_what_a_pickle_asks_for_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    for name, content in hostile.payloads(tmp_path / "marker"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path)
        if "in a zip" in name and "inst" not in name:
            assert "is refused: its pickle asks for " in str(caught.value), name


class Six(nn.Module):
    """What the sound files of the tests fit."""

    def __init__(self) -> None:
        super().__init__()
        for number in range(6):
            self.add_module(str(number), nn.Linear(20, 32, bias=False))


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_one_bit_is_enough_for_a_hash(form: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(hostile.sound(form))
    sha256 = hash_of(path)
    net = Six()
    initialize(net, Rule(Name("**"), Pretrained(str(path), sha256=sha256)))
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    for number, (_, content) in enumerate(hostile.flipped(form, 40)):
        (other := tmp_path / f"{number}").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"is not the file that was asked for"):
            initialize(net, Rule(Name("**"), Pretrained(str(other), sha256=sha256)))
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


TEXTS = {
    "zip compressed 8.pth": r"is compressed, which torch.save never does",
    "zip encrypted.pth": r"is encrypted",
    "zip overlapping.pth": r"overlaps another entry",
    "zip wrong offset.pth": r"is not a complete zip file|overlaps another entry",
    "zip torchscript.pth": r"is a TorchScript program, code and weights in one",
    "zip constants.pth": r"is a TorchScript program",
    "zip without a pickle.pth": r"is a zip file without data.pkl in its one folder",
    "zip without tensors' bytes.pth": r"bytes of '0', but no such piece is in the file",
    "zip with too few bytes.pth": r"a tensor lies in the 2,560 bytes of '0', but 4 are in the file",
    "stride stride 0, zip.pth": r"w of shape \(1000000000,\) claims 4,000,000,000 bytes, but only 16 are there",
    "stride beyond the end, old.pth": r"the memory of its tensors is not in the file",
    "monster tuples as a key.pth": r"its pickle nests tuples more than 100 deep",
    "monster no end.pth": r"its pickle is damaged: it has no end",
    "bomb pairs.pth": r"its pickle would make far more than it holds",
    "bomb sets of one list.pth": r"its pickle would make far more than it holds",
    "bomb hexadecimal.pth": r"calls _codecs.encode with odd arguments",
    "bomb bytes by number.pth": r"calls builtins.bytearray with odd arguments",
    "bomb a set of a tensor.pth": r"calls builtins.set with odd arguments",
    "bomb a tensor of nothing.pth": r"asks for torch.FloatTensor",
    "bomb a call in a call.pth": r"asks for torch.FloatTensor",
    "bomb a call of nothing.pth": r"calls what is not a function",
    "bomb a call of a list.pth": r"calls what is not a function",
    "bomb one memory in two sizes.pth": r"asks for the memory '0' in two sizes",
    "bomb memory by number.pth": r"asks for memory as torch.save does not",
    "bomb operations of protocol 4.pth": r"\(operation b'\\x8c', as of a later protocol than 2\)",
    "bomb a table in itself.pth": r"its part '[model.]+' holds itself",
    "bomb tables in tables.pth": r"has more than 4,194,304 names",
    "bomb own values.pth": r"gives a OrderedDict its own 'values'",
    "bomb own untyped_storage.pth": r"gives a Tensor its own 'untyped_storage'",
    "bomb a name without an end.pth": r"its pickle is damaged: ValueError: no newline found",
    "zip upper case too.pth": r"has two entries of one name",
    "zip with .!data.pkl.pth": r"has an entry 'archive/\./data\.pkl', which is not the only name of its place",
    "zip of another name in a header.pth": r"archive/data\.pkl is not what the table of entries says",
    "zip with a comment.pth": r"does not end as a zip file of torch.save does",
    "zip wide.pth": r"does not end as a zip file of torch.save does",
    "zip with sizes of its own.pth": r"its pickle has [0-9]+ bytes, or an odd entry",
    "numpy negative twice.npy": r"has \(-2, -2\) for a shape",
    "safetensors last of many twice.safetensors": r"its header has the key '199999' twice",
    "safetensors many dimensions.safetensors": r"'a' has a shape, offsets or dtype of a wrong kind",
    "safetensors tied twice.safetensors": r"its torchinit.tied has the key 'b' twice",
    "monster nothing on the stack, old.pth": r"its pickle is damaged",
    "safetensors overlap.safetensors": r"its tensors overlap at byte 0",
    "safetensors hole.safetensors": r"its tensors leave a hole at byte 8",
    "safetensors bytes behind.safetensors": r"its tensors take 8 bytes, but 9 are there",
    "safetensors key twice.safetensors": r"its header has the key 'a' twice",
    "safetensors no JSON.safetensors": r"its header is not JSON",
    "safetensors NaN.safetensors": r"its header is not JSON: NaN is not JSON",
    "safetensors size.safetensors": r"'a' of shape \[3\] in F32 does not fill its bytes 0 to 8",
    "safetensors no shape.safetensors": r"'a' needs dtype, shape and data_offsets",
    "safetensors true shape.safetensors": r"'a' has a shape, offsets or dtype of a wrong kind",
    "safetensors metadata no text.safetensors": r"its metadata are not text",
    "safetensors tied to nothing.safetensors": r"its torchinit.tied are not names of its tensors",
    "safetensors tied no JSON.safetensors": r"its torchinit.tied is not JSON",
    f"safetensors length {1 << 20}.safetensors": r"its header would have 1,048,576 bytes",
}


def test_each_says_what_is_wrong(tmp_path: Path) -> None:
    contents = dict((*hostile.files(tmp_path / "marker"), *hostile_more.files()))
    for name, text in TEXTS.items():
        (path := tmp_path / "a").write_bytes(contents[name])
        with pytest.raises(CheckpointError, match=text):
            look_at(path)


def look_at(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    for key in checkpoint:
        checkpoint.info(key)


def test_a_name_twice_in_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(hostile.sound())
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(archive.namelist()[0], b"\x80\x02}.")
    with pytest.raises(CheckpointError, match=r"has two entries of one name"):
        open_checkpoint(path)


def test_elements_that_share_memory_are_no_matter_unless_they_are_a_bomb(tmp_path: Path) -> None:
    state = {"w": torch.ones(3), "pos": torch.arange(3.0).expand(2, 3), "one": torch.ones(1).expand(1 << 25)}
    assert open_checkpoint(state).read("one").shape == (1 << 25,)
    torch.save(state, path := tmp_path / "a.pth")
    checkpoint = open_checkpoint(path)
    assert checkpoint.read("w").tolist() == [1.0] * 3
    with pytest.raises(CheckpointError, match=r"one of shape \(33554432,\) claims 134,217,728 bytes, but only 4 are"):
        checkpoint.info("one")
    del state["one"]
    torch.save(state, path)
    assert open_checkpoint(path).read("pos").tolist() == [[0.0, 1.0, 2.0]] * 2


def test_a_dtype_that_torch_lacks_is_refused_when_it_is_read(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}
    path = raw_safetensors(tmp_path / "a.safetensors", header, bytes(1))
    checkpoint = open_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"a is of dtype F4, which torch does not have"):
        checkpoint.info("a")
