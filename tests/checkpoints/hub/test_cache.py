"""The cache: one download for everybody, nothing in it that is not whole; the lock file: each source stays the same."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import filelock
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints.hub import workers
from tests.servers import Handler, Host, Visit, in_turn, ranged, redirect, status, whole
from torchinit.checkpoints import Limits, fetch
from torchinit.checkpoints.hub.cache import (
    Cache,
    CacheEntry,
    LockFile,
    Pin,
    default_folder,
    read_pins,
    write_pins,
    write_whole,
)
from torchinit.checkpoints.hub.download import sharing_failure
from torchinit.errors import FetchError

BODY = random.Random(1).randbytes(2_000_000)


@pytest.fixture
def environment(host: Host, certificate: Path, cache: Path) -> Mapping[str, str]:
    return {
        "TORCHINIT_CACHE": str(cache),
        "SSL_CERT_FILE": str(certificate),
        "NO_PROXY": "*",
        "TORCHINIT_PRIVATE_HOSTS": "localhost",
    }


def stuck(go: threading.Event, after: int) -> Handler:
    """Some of the body, then nothing until the event."""

    def answer(visit: Visit) -> None:
        visit.say(200, BODY[:after], ETag='"v1"', Content_Length=str(len(BODY)))
        visit.wfile.flush()
        go.wait(60)
        visit.wfile.write(BODY[after:])

    return answer


def test_eight_processes_make_one_download(host: Host, environment: Mapping[str, str]) -> None:
    answers = workers.answers()
    url = host.serve("/a.pth", whole(BODY))
    processes = [workers.start(url, answers, environment) for _ in range(8)]
    said = {answers.get(timeout=60) for _ in processes}
    assert said == {("path", str(fetch(url)))}
    assert host.hits("/a.pth") == 1
    for process in processes:
        process.join(30)


def test_eight_processes_end_with_one_error(host: Host, environment: Mapping[str, str]) -> None:
    answers = workers.answers()
    url = host.serve("/a.pth", status(404))
    processes = [workers.start(url, answers, environment) for _ in range(8)]
    said = {answers.get(timeout=60) for _ in processes}
    assert said == {("FetchError", f"{url}: the server says 404: there is no such file")}
    for process in processes:
        process.join(30)


def test_a_process_killed_in_the_middle(host: Host, cache: Path, environment: Mapping[str, str]) -> None:
    answers, go = workers.answers(), threading.Event()
    url = host.serve("/a.pth", in_turn(stuck(go, 1_500_000), ranged(BODY)))
    first = workers.start(url, answers, environment)
    part = Cache(cache).folder_of(url) / ".part"
    wait_for(lambda: part.exists() and part.stat().st_size >= 1_000_000)
    second = workers.start(url, answers, environment)  # waits for the first
    first.kill()
    first.join(30)
    assert answers.get(timeout=60) == ("path", str(fetch(url)))
    second.join(30)
    go.set()
    assert fetch(url).read_bytes() == BODY
    start = int(host.seen[1][1]["Range"].removeprefix("bytes=").removesuffix("-"))
    assert 1_000_000 <= start <= 1_500_000
    assert len(host.seen) == 2


def wait_for(happened: Callable[[], bool]) -> None:
    for _ in range(3000):
        if happened():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen")


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "a bit": (flipped, r"has the sha256 \w+ instead of \w+; it is fetched again"),
    "the end": (lambda path: os.truncate(path, 10), "has 10 bytes instead of 2,000,000; it is fetched again"),
    "the file": (Path.unlink, None),
    "the note": (lambda path: path.with_name(".entry.json").unlink(), None),
    "the note's text": (lambda path: path.with_name(".entry.json").write_text("{"), None),
    "the note's kind": (lambda path: path.with_name(".entry.json").write_text("[1]"), None),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_entry_is_fetched_anew(what: str, host: Host, caplog: pytest.LogCaptureFixture) -> None:
    damage, text = DAMAGE[what]
    url = host.serve("/a.pth", whole(BODY))
    path = fetch(url)
    damage(path)
    assert fetch(url) == path
    assert path.read_bytes() == BODY
    assert host.hits("/a.pth") == 2
    assert [record.levelname for record in caplog.records if record.name == "torchinit"] == ["WARNING"] * bool(text)
    assert text is None or re.search(text, caplog.text)


def test_an_entry_of_another_url_does_not_count(host: Host, cache: Path) -> None:
    first, second = host.serve("/a.pth", whole(b"a")), host.serve("/b/a.pth", whole(b"b"))
    path = fetch(first)
    folder = Cache(cache).folder_of(second)
    folder.mkdir()
    for file in path.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    assert fetch(second).read_bytes() == b"b"


def test_a_file_that_changed_at_its_url(host: Host) -> None:
    url = host.serve("/a.pth", in_turn(whole(b"old"), whole(b"new")))
    assert fetch(url).read_bytes() == b"old"
    assert fetch(url).read_bytes() == b"old"
    new = "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437"
    assert fetch(url, sha256=new).read_bytes() == b"new"
    with pytest.raises(FetchError, match="not the file that was asked for"):
        fetch(url, sha256=64 * "0")
    assert fetch(url).read_bytes() == b"new"  # what was sound stays


def test_a_cache_that_cannot_be_written(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    url = host.serve("/a.pth", whole(BODY))
    monkeypatch.setenv("TORCHINIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(FetchError, match=r"the cache .*file cannot be written: .*; TORCHINIT_CACHE moves it"):
        fetch(url)
    assert host.seen == []


def test_a_cache_that_can_only_be_read(host: Host, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = host.serve("/a.pth", whole(BODY))
    fetch(url)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert fetch(url).read_bytes() == BODY
    with pytest.raises(FetchError, match=r"cannot be written: .*Permission denied; TORCHINIT_CACHE moves it"):
        fetch(host.serve("/b.pth", whole(BODY)))


def test_entries_and_removal(host: Host, cache: Path) -> None:
    held = Cache(cache)
    assert held.entries() == ()
    urls = sorted(host.serve(f"/{name}", whole(name.encode())) for name in ("b.pth", "a.pth"))
    for url in reversed(urls):
        fetch(url)
    assert [entry.url for entry in held.entries()] == urls
    entry = held.entries()[0]
    assert json.loads((entry.path.parent / ".entry.json").read_text("utf-8")) == {
        "url": urls[0],
        "sha256": entry.sha256,
        "size": 5,
        "fetched": entry.fetched,
    }
    held.remove(entry.path.parent)
    held.remove(entry.path.parent)
    assert [entry.url for entry in held.entries()] == urls[1:]


def test_problems_of_an_entry(tmp_path: Path) -> None:
    entry = CacheEntry("https://e.org/a", 64 * "0", 1, tmp_path / "a", 0.0)
    assert entry.problem().startswith("cannot be read: ")
    entry.path.write_bytes(b"ab")
    assert entry.problem() == "has 2 bytes instead of 1"


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/me")
    both = {"TORCHINIT_CACHE": "~/mine", "XDG_CACHE_HOME": "/xdg"}
    assert default_folder(both) == Path("/users/me/mine")
    assert default_folder({"XDG_CACHE_HOME": "/xdg"}) == Path("/xdg/torchinit")
    assert default_folder({}) == Path("/users/me/.cache/torchinit")


def test_a_small_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "a", "new\ud800")
    assert [(path.name, path.read_text("utf-8")) for path in tmp_path.iterdir()] == [("a", "old")]


def test_two_threads_make_one_download(host: Host) -> None:
    url = host.serve("/a.pth", whole(BODY))
    threads = [
        threading.Thread(target=fetch, args=(url,), kwargs={"limits": Limits(private=("localhost",))}) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert host.hits("/a.pth") == 1


def test_who_waited_for_a_failure_does_not_try_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    go, waiting, locked = threading.Event(), threading.Semaphore(0), Cache.locked
    told: list[str] = []

    def counted(cache: Cache, name: str, patience: float) -> AbstractContextManager[None]:
        waiting.release()
        return locked(cache, name, patience)

    def work() -> None:
        with pytest.raises(FetchError, match="the server says 404: there is no such file") as caught:
            fetch(url)
        told.append(str(caught.value))

    def answer(visit: Visit) -> None:
        go.wait(60)
        visit.say(404)

    monkeypatch.setattr(Cache, "locked", counted)
    url = host.serve("/a.pth", answer)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert all(waiting.acquire(timeout=30) for _ in threads)
    go.set()
    for thread in threads:
        thread.join(30)
    assert len(told) == 4
    assert len(set(told)) == 1
    assert host.hits("/a.pth") == 1
    with pytest.raises(FetchError, match="the server says 404"):
        fetch(url)
    assert host.hits("/a.pth") == 2  # who comes later tries anew


def test_a_lock_that_is_not_let_go(cache: Path) -> None:
    with (
        Cache(cache).locked("a"),
        pytest.raises(FetchError, match=r"another process has held .*a for 0\.01 s"),
        Cache(cache).locked("a", 0.01),
    ):
        pass


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError("no flock here")])
def test_a_file_system_without_locks(
    error: Exception, host: Host, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.raises(FetchError, match=r"(No locks available|no flock here); TORCHINIT_CACHE moves it"):
        fetch(host.serve("/a.pth", whole(BODY)))
    assert host.seen == []


def test_a_failure_with_another_hash_is_not_shared(tmp_path: Path) -> None:
    path = tmp_path / "failed"
    with pytest.raises(FetchError, match="no"), sharing_failure(path, time.time(), "00"):
        raise FetchError("no", ["and why"])
    with sharing_failure(path, 0.0, "11"), sharing_failure(path, time.time() + 1, "00"):
        pass
    with pytest.raises(FetchError, match="no\n  and why"), sharing_failure(path, 0.0, "00"):
        pass


# --- the lock file ---------------------------------------------------------------------------------------------------


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
