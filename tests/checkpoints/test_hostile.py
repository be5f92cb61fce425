"""Hostile files: none runs code, none ends the process, none is loaded by half."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.checkpoints import hostile
from torchinit import CheckpointError, Name, Pretrained, Rule, initialize, open_checkpoint
from torchinit.checkpoints.cache import hash_of

ROOT = Path(__file__).parents[2]


def read_all(folder: Path) -> dict[str, str | None]:
    """What became of each file, read in another process; None for one that ended it."""
    command = [sys.executable, "-m", "tests.checkpoints.hostile_reader", str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    found = dict(json.loads(line) for line in run.stdout.splitlines())
    ended = [name for name, said in found.items() if said is None]
    assert run.returncode == 0, f"ended by {ended}: {run.stderr[-2000:]}"
    return found


def test_every_hostile_file_is_refused_and_none_runs_code(tmp_path: Path) -> None:
    marker, folder = tmp_path / "marker", tmp_path / "files"
    folder.mkdir()
    for name, content in hostile.files(marker):
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
