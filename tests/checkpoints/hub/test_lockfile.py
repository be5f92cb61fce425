"""The lock file: a source stays the file that it was."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.servers import Host, in_turn, redirect, whole
from torchinit.checkpoints import fetch
from torchinit.checkpoints.hub.cache import Cache, LockFile, Pin, read_pins, write_pins
from torchinit.errors import FetchError

OLD, NEW = (hashlib.sha256(body).hexdigest() for body in (b"old", b"new!"))


@pytest.fixture
def lock(tmp_path: Path, cache: Path) -> Path:
    return tmp_path / "init.lock"


def test_sources_are_recorded(host: Host, lock: Path, tmp_path: Path) -> None:
    (tmp_path / "b.pth").write_bytes(b"new!")
    url = host.serve("/a.pth", whole(b"old"))
    fetch(url, lock=lock)
    first = lock.read_text("utf-8")
    fetch(str(tmp_path / "b.pth"), lock=lock)
    fetch(url, lock=lock)
    assert json.loads(lock.read_text("utf-8")) == {
        "version": 1,
        "sources": {str(tmp_path / "b.pth"): {"sha256": NEW, "size": 4}, url: {"sha256": OLD, "size": 3}},
    }
    assert json.loads(first)["sources"] == {url: {"sha256": OLD, "size": 3}}
    assert list(read_pins(lock)) == sorted(read_pins(lock))


def test_where_a_source_led_to_is_recorded(host: Host, lock: Path) -> None:
    host.serve("/b.pth", whole(b"old"))
    url = host.serve("/a.pth", redirect("/b.pth"))
    fetch(f"{url}#part", lock=lock)
    assert read_pins(lock)[f"{url}#part"] == Pin(OLD, 3, url)


def test_another_file_is_an_error(host: Host, lock: Path, cache: Path, tmp_path: Path) -> None:
    url = host.serve("/a.pth", in_turn(whole(b"old"), whole(b"new!")))
    fetch(url, lock=lock)
    Cache(cache).remove(Cache(cache).folder_of(url))
    text = rf"not the file .*\n  wanted sha256 {OLD}\n  found  sha256 {NEW}\n  .*init\.lock has the wanted one; if the"
    with pytest.raises(FetchError, match=text):
        fetch(url, lock=lock)
    assert Cache(cache).entries() == ()
    path = tmp_path / "b.pth"
    path.write_bytes(b"old")
    fetch(path, lock=lock)
    path.write_bytes(b"new!")
    with pytest.raises(FetchError, match=text):
        fetch(path, lock=lock)


def test_a_hash_that_contradicts_the_lock(lock: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.pth"
    path.write_bytes(b"old")
    fetch(path, lock=lock, sha256=OLD)
    with pytest.raises(FetchError, match=rf"as .*init\.lock has it, is not the file .*\n.*{NEW}\n.*{OLD}"):
        fetch(path, lock=lock, sha256=NEW)


def test_frozen(host: Host, lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = host.serve("/a.pth", whole(b"old"))
    with pytest.raises(FetchError, match=r"a\.pth is not in the lock file .*init\.lock, and it is frozen"):
        fetch(url, lock=lock, frozen=True)
    assert host.seen == []
    fetch(url, lock=lock)
    monkeypatch.setenv("TORCHINIT_FROZEN", "1")
    monkeypatch.setenv("TORCHINIT_LOCK", str(lock))
    before = lock.stat().st_mtime_ns
    fetch(url)
    assert lock.stat().st_mtime_ns == before
    with pytest.raises(FetchError, match=r"b\.pth is not in the lock file"):
        fetch(f"{host.url}/b.pth")
    monkeypatch.delenv("TORCHINIT_LOCK")
    with pytest.raises(FetchError, match="is in no lock file, for none is given"):
        fetch(url)


def test_the_lock_of_the_environment(lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINIT_LOCK", str(lock))
    (tmp_path / "b.pth").write_bytes(b"old")
    fetch(tmp_path / "b.pth")
    assert read_pins(lock) == {str(tmp_path / "b.pth"): Pin(OLD, 3)}


def test_a_hash_from_the_lock_is_enough_for_http(plain_host: Host, lock: Path) -> None:
    url = plain_host.serve("/a.pth", whole(b"old"))
    write_pins(lock, {url: Pin(OLD, 3)})
    assert fetch(url, lock=lock).read_bytes() == b"old"


def test_many_at_once(lock: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.pth" for number in range(24)]
    for path in paths:
        path.write_bytes(path.name.encode())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: fetch(path, lock=lock), paths))
    assert set(read_pins(lock)) == {str(path) for path in paths}


def test_two_that_record_two_files(lock: Path) -> None:
    LockFile(lock).add("a", Pin(OLD, 3))
    with pytest.raises(FetchError, match="a, fetched just now, is not the file"):
        LockFile(lock).add("a", Pin(NEW, 4))


def test_a_folder_cannot_be_locked(lock: Path, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="is not a file, so it cannot be recorded"):
        fetch(tmp_path, lock=lock)


ENTRY = {"sha256": OLD, "size": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the lock file .*init.lock cannot be read: "),
        ("[" * 100_000, "cannot be read: "),
        ('{"version": 1, "version": 1}', "cannot be read: version is there twice"),
        ("[]", "is not a lock file of version 1"),
        (json.dumps({"version": 2, "sources": {}}), "is not a lock file of version 1"),
        (json.dumps({"version": 1}), "is not a lock file of version 1"),
        (
            json.dumps({"version": 1, "sources": {"a": {**ENTRY, "sha256": "x"}, "b": {"size": 1}, "c": [1]}}),
            r"(?s)entries that cannot be read\n  a: sha256 is 64 hexadecimal digits .*'x'\n  b: .*\n  c: ",
        ),
        (
            json.dumps({"version": 1, "sources": {"a": {**ENTRY, "size": -1}}}),
            "a: size is a number of bytes, but got -1",
        ),
        (json.dumps({"version": 1, "sources": {"a": {**ENTRY, "url": 1}}}), "a: url and revision are text"),
        (json.dumps({"version": 1, "sources": {"a": {**ENTRY, "extra": 1}}}), "a: .*extra"),
    ],
)
def test_what_is_no_lock_file(text: str, message: str, lock: Path, tmp_path: Path) -> None:
    lock.write_text(text, "utf-8")
    with pytest.raises(FetchError, match=message):
        fetch(tmp_path, lock=lock)


def test_a_lock_file_that_cannot_be_written(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(FetchError, match=r"the lock file .*init\.lock cannot be written: "):
        fetch(tmp_path / "a", lock=tmp_path / "nowhere" / "init.lock")


PINS: Any = st.builds(
    Pin, st.binary().map(lambda body: hashlib.sha256(body).hexdigest()), st.integers(0, 2**60), st.text(), st.text()
)


@settings(max_examples=40)  # each is two files
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), PINS))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, pins: dict[str, Pin]) -> None:
    path = tmp_path_factory.mktemp("locks") / "init.lock"
    write_pins(path, pins)
    assert read_pins(path) == pins
