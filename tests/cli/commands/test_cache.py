"""`torchinit fetch` and `torchinit cache`: what they print, and with which exit code they end."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.servers import Host, broken, whole
from torchinit.checkpoints import Limits, fetch
from torchinit.checkpoints.hub.cache import read_pins
from torchinit.cli import main

SHA = hashlib.sha256(b"weights").hexdigest()


@pytest.fixture
def urls(host: Host) -> list[str]:
    """Three files in the cache, two of them of one name."""
    made = [host.serve(path, whole(b"weights")) for path in ("/v0/a.pth", "/v1/a.pth", "/b.pth")]
    for url in made:
        fetch(url)
    return made


def test_fetch_of_an_index_and_its_parts(host: Host, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    index = {"weight_map": {"a": "2.bin", "b": "1.bin", "c": "2.bin"}}
    url = host.serve("/m/model.index.json", whole(json.dumps(index).encode()))
    parts = [host.serve(f"/m/{name}", whole(name.encode())) for name in ("1.bin", "2.bin")]
    lock = tmp_path / "init.lock"
    assert main(["fetch", url, "--lock", str(lock)]) == 0
    paths = capsys.readouterr().out.split()
    assert [Path(path).name for path in paths] == ["model.index.json", "1.bin", "2.bin"]
    assert set(read_pins(lock)) == {url, *parts}
    assert main(["fetch", url, "--lock", str(lock), "--frozen", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [(part["source"], part["path"], part["size"]) for part in said["parts"]] == [
        (parts[0], paths[1], 5),
        (parts[1], paths[2], 5),
    ]
    assert len(host.seen) == 3


def test_fetch(host: Host, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    url, lock = host.serve("/a.pth", whole(b"weights")), str(tmp_path / "init.lock")
    assert main(["fetch", url, "--sha256", SHA, "--lock", lock]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.read_bytes() == b"weights"
    assert main(["fetch", url, "--lock", lock, "--frozen", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"source": url, "path": str(path), "sha256": SHA, "size": 7}
    assert main(["fetch", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"source": str(tmp_path), "path": str(tmp_path)}
    assert main(["fetch", f"{host.url}/b.pth", "--lock", lock, "--frozen"]) == 1
    assert "b.pth is not in the lock file" in capsys.readouterr().err
    assert main(["fetch", str(tmp_path / "nothing.pth")]) == 2
    assert "nothing.pth can not be found." in capsys.readouterr().err


def test_an_empty_cache(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "ls"]) == 0
    assert main(["cache", "verify"]) == 0
    assert main(["cache", "rm", "--all"]) == 0
    assert capsys.readouterr().out == f"0 files, 0 bytes in {cache}\n0 files, 0 damaged\n0 files removed\n"


def test_ls(urls: list[str], host: Host, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exception, match="cannot be fetched"):
        fetch(host.serve("/c.pth", broken(b"weights", 3)), limits=Limits(attempts=1, private=("localhost",)))
    assert main(["cache", "ls"]) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "bytes", "fetched", "(UTC)", "sha256", "url"]
    assert [row.split()[0] for row in rows] == ["b.pth", "a.pth", "a.pth"]
    assert [row.split()[-2:] for row in rows] == [[SHA[:12], url] for url in sorted(urls)]
    assert last == f"3 files, 21 bytes in {cache}; 1 unfinished download"
    assert main(["cache", "ls", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [entry["url"] for entry in said["entries"]] == sorted(urls)
    assert said["entries"][0]["path"] == str(fetch(urls[2]))
    assert said["unfinished"] == 1


def test_verify(urls: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "verify"]) == 0
    assert capsys.readouterr().out == "3 files, 0 damaged\n"
    path = fetch(urls[0])
    path.write_bytes(b"wEights")
    assert main(["cache", "verify"]) == 1
    out = capsys.readouterr().out
    assert f"{path} has the sha256 " in out
    assert f"\n  from {urls[0]}; it is fetched again when it is needed\n3 files, 1 damaged\n" in out
    assert main(["cache", "verify", "--json"]) == 1
    problems = {entry["url"]: entry["problem"] for entry in json.loads(capsys.readouterr().out)}
    assert [url for url, problem in problems.items() if problem] == [urls[0]]


def test_rm(urls: list[str], host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    def left() -> list[str]:
        main(["cache", "ls", "--json"])
        return [entry["url"] for entry in json.loads(capsys.readouterr().out)["entries"]]

    assert main(["cache", "rm", urls[0], "c.pth"]) == 2
    assert "there is no 'c.pth' in " in capsys.readouterr().err
    assert main(["cache", "rm", "a.pth"]) == 2
    assert f"'a.pth' is the name of 2 files; name one by its URL\n  {urls[0]}\n  {urls[1]}" in capsys.readouterr().err
    assert left() == sorted(urls)
    assert main(["cache", "rm", urls[0], "b.pth"]) == 0
    assert capsys.readouterr().out == "2 files removed\n"
    assert left() == [urls[1]]
    with pytest.raises(Exception, match="cannot be fetched"):
        fetch(host.serve("/c.pth", broken(b"weights", 3)), limits=Limits(attempts=1, private=("localhost",)))
    assert main(["cache", "rm", f"{host.url}/c.pth", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
    assert main(["cache", "rm", "--all"]) == 0
    assert capsys.readouterr().out == "1 file removed\n"
    assert left() == []


@pytest.mark.parametrize("words", [["rm"], ["rm", "a.pth", "--all"]])
def test_rm_wants_to_know_what(words: list[str], cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", *words]) == 2
    assert "name what is to be removed by URL or name, or say --all" in capsys.readouterr().err


def test_rm_touches_nothing_but_entries(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINIT_CACHE", str(tmp_path))
    for name in ("thesis", "0" * 31, "g" * 32):
        (tmp_path / name).mkdir()
    assert main(["cache", "rm", "--all"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"thesis", "0" * 31, "g" * 32}
