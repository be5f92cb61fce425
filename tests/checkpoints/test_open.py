"""Opening: one reader as long as nothing changes, and no change that goes unseen: of a file, of a part, of the lock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from torchinit import Name, Pretrained, Rule, open_checkpoint
from torchinit.checkpoints.hub.cache import read_pins
from torchinit.checkpoints.open import forget, open_cached
from torchinit.errors import CheckpointError, FetchError
from torchinit.model import Site
from torchinit.plans import make_plan


@pytest.fixture(autouse=True)
def nothing_open(cache: Path) -> Iterator[None]:
    forget()
    yield
    forget()


def a_file(path: Path, value: float = 1.0, key: str = "a") -> str:
    """A checkpoint of one number, put there by a rename as a good writer does."""
    save_file({key: torch.tensor([value])}, path.with_suffix(".new"))
    return str(path.with_suffix(".new").replace(path))


def an_index(folder: Path) -> str:
    """An index of two files."""
    a_file(folder / "1.safetensors", 1.0, "a")
    a_file(folder / "2.safetensors", 2.0, "b")
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}), "utf-8")
    return str(path)


def sha256_of(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def value(source: str, key: str = "a") -> float:
    return open_cached(source).read(key).item()


def test_one_reader_until_the_file_changes(tmp_path: Path) -> None:
    path = a_file(tmp_path / "a.safetensors")
    first = open_cached(path)
    assert open_cached(path) is first
    a_file(tmp_path / "a.safetensors", 2.0)
    assert value(path) == 2.0
    with pytest.raises(CheckpointError, match="can not be found"):
        open_cached(path + "x")


def test_a_part_of_an_index_that_changes(tmp_path: Path) -> None:
    index = an_index(tmp_path)
    assert (value(index, "a"), value(index, "b")) == (1.0, 2.0)
    held = open_cached(index)
    a_file(tmp_path / "2.safetensors", 3.0, "b")
    assert open_cached(index, again=False) is held
    assert open_cached(index, keys=["a", "gone"]) is held
    assert value(index, "b") == 3.0
    assert open_cached(index) is not held


def test_a_lock_that_is_named_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, index = a_file(tmp_path / "a.safetensors"), an_index(tmp_path)
    for source in (path, index):
        assert value(source) == 1.0
    lock = tmp_path / "init.lock"
    monkeypatch.setenv("TORCHINIT_LOCK", str(lock))
    for source in (path, index):
        assert value(source) == 1.0
        assert open_cached(source) is open_cached(source)
    assert set(read_pins(lock)) == {path, index, str(tmp_path / "1.safetensors")}
    monkeypatch.setenv("TORCHINIT_FROZEN", "1")
    assert value(index) == 1.0
    with pytest.raises(FetchError, match=r"2\.safetensors is not in the lock file .*init\.lock, and it is frozen"):
        value(index, "b")
    monkeypatch.setenv("TORCHINIT_LOCK", str(tmp_path / "other.lock"))
    with pytest.raises(FetchError, match=r"a\.safetensors is not in the lock file .*other\.lock, and it is frozen"):
        value(path)


def test_a_lock_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, lock = a_file(tmp_path / "a.safetensors"), tmp_path / "init.lock"
    monkeypatch.setenv("TORCHINIT_LOCK", str(lock))
    assert value(path) == 1.0
    text = lock.read_text("utf-8")
    lock.unlink()
    assert value(path) == 1.0
    assert lock.read_text("utf-8") == text
    lock.write_text(text.replace(sha256_of(path), 64 * "0"), "utf-8")
    with pytest.raises(FetchError, match=rf"is not the file that was asked for\n  wanted sha256 {64 * '0'}"):
        open_cached(path)


@pytest.mark.parametrize("again", [False, True], ids=["kept open", "opened anew"])
def test_a_part_that_changes_under_a_lock(again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINIT_LOCK", str(tmp_path / "init.lock"))
    index, part = an_index(tmp_path), tmp_path / "2.safetensors"
    assert value(index, "b") == 2.0
    pin = read_pins(tmp_path / "init.lock")[str(part)]
    assert (pin.sha256, pin.size) == (sha256_of(part), part.stat().st_size)
    a_file(part, 3.0, "b")
    if again:
        forget()
    with pytest.raises(FetchError, match=rf"2\.safetensors is not the file .*\n  wanted sha256 {pin.sha256}"):
        value(index, "b")


def test_the_hash_of_an_index_is_not_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = an_index(tmp_path)
    with pytest.raises(CheckpointError, match=r"index\.json is an index: its sha256 .*TORCHINIT_LOCK"):
        open_cached(index, sha256=sha256_of(index))
    monkeypatch.setenv("TORCHINIT_LOCK", str(tmp_path / "init.lock"))
    assert open_cached(index, sha256=sha256_of(index).upper()).read("b") == 2.0
    with pytest.raises(FetchError, match="is not the file that was asked for"):
        open_cached(index, sha256=64 * "0")


def test_files_of_an_index_that_are_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All are told when it is opened; what lies in the others can be loaded, with a doubt in the account."""
    for number in range(4):
        a_file(tmp_path / f"{number}.safetensors", float(number), f"{number}.weight")
    weight_map = {f"{number}.weight": f"{number}.safetensors" for number in range(4)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert not open_checkpoint(tmp_path).notes
    (tmp_path / "1.safetensors").unlink()
    (tmp_path / "3.safetensors").unlink()
    text = "2 of the 4 files that the index names are not there: 1.safetensors, 3.safetensors"
    for source in (str(tmp_path), (tmp_path / "model.safetensors.index.json").as_uri()):
        caplog.clear()
        checkpoint = open_checkpoint(source)
        assert checkpoint.notes == (text,)
        assert [record.getMessage() for record in caplog.records] == [f"{checkpoint.name}: {text}"]
        assert checkpoint.read("2.weight") == 2
        with pytest.raises(CheckpointError, match=r"names '3.safetensors', but .* can not be found"):
            checkpoint.read("3.weight")
    rule = Rule(Name("**"), Pretrained(str(tmp_path)))
    (account,) = make_plan([Site("0.weight", (1,)), Site("2.weight", (1,))], [rule]).loads
    assert (account.doubts, account.found) == ((text,), 2)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": 300 * "x"}}))
    assert open_checkpoint(tmp_path).notes[0].startswith("1 of the 1 file that the index names is not there: xxx")
