"""Sources: each kind becomes a local file, and none is taken for another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import Host, whole
from torchinit.checkpoints import Limits, fetch, register_source
from torchinit.checkpoints.hub.cache import Request
from torchinit.checkpoints.hub.schemes import RESOLVERS, LocalFile, Prefixes
from torchinit.errors import FetchError


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(RESOLVERS._values)
    yield
    RESOLVERS._values.clear()
    RESOLVERS._values.update(before)


def test_local_files(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a b%20.pth"
    path.write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    for source in (path, str(path), path.as_uri(), f"file://localhost{path.as_uri().removeprefix('file://')}"):
        assert fetch(source, sha256=sha256) == path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch("~/a b%20.pth") == path
    monkeypatch.chdir(tmp_path)
    assert fetch("a b%20.pth") == Path("a b%20.pth")
    assert not cache.exists()


def test_a_folder_is_left_to_who_reads_it(tmp_path: Path) -> None:
    assert fetch(tmp_path) == tmp_path
    with pytest.raises(FetchError, match="is not a file, so it has no sha256"):
        fetch(tmp_path, sha256=64 * "0")


def test_a_path_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "resnet50.pth").touch()
    with pytest.raises(FileNotFoundError, match=r"resnet5O\.pth can not be found\. Did you mean 'resnet50\.pth'\?"):
        fetch(tmp_path / "resnet5O.pth")
    with pytest.raises(FileNotFoundError, match=r"/nowhere/a\.pth can not be found\.$"):
        fetch("file:///nowhere/a.pth")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("s3://bucket/a.pth", r"s3://bucket/a\.pth: this kind of source is not registered\n  known are "),
        ("HTTPS://example.org/a.pth", "this kind of source is not registered; did you mean 'https'\\?"),
        ("https:///a.pth", "is not an http or https URL with a host"),
        ("https://user:secret@example.org/a.pth", "^https://example.org/a.pth: a URL with a user or a password"),
        ("https://example.org:x/a.pth", "is not a URL: "),
        ("https://[::1/a.pth", "is not a URL: "),
        ("https://example.org/a\r\nX: y", "holds a control character"),
        ("https://good.org\\@evil.org/a.pth", "a URL with a user or a password"),
        ("https://good.org\\.evil.org/a.pth", r"'good\.org\\\\\.evil\.org' is not the name of a host"),
        ("https://good.org;evil.org/a.pth", "is not the name of a host"),
        ("https://a b.org/a.pth", "'a b.org' is not the name of a host"),
        (f"https://{'a' * 70}.org/a.pth", "is not a URL: "),
    ],
)
def test_what_is_no_source(source: str, text: str, cache: Path) -> None:
    with pytest.raises(FetchError, match=text):
        fetch(source)
    assert not cache.exists()


def test_a_kind_of_ones_own(tmp_path: Path, host: Host) -> None:
    (tmp_path / "a.pth").write_bytes(b"local")
    url = host.serve("/b.pth", whole(b"remote"))
    asked: list[str | None] = []

    def resolve(source: str, request: Request) -> Path | str | LocalFile:
        asked.append(request.sha256)
        name = source.removeprefix("own://")
        made: dict[str, Path | str | LocalFile] = {
            "path": tmp_path / "a.pth",
            "url": url,
            "found": LocalFile(tmp_path / "a.pth"),
        }
        return made[name]

    register_source("own://", resolve)
    names = ("path", "url", "found")
    assert [fetch(f"own://{name}").read_bytes() for name in names] == [b"local", b"remote", b"local"]
    sha256 = hashlib.sha256(b"remote").hexdigest()
    assert fetch("own://url", sha256=sha256).read_bytes() == b"remote"
    assert asked[-1] == sha256
    with pytest.raises(FetchError, match="own://path is not the file that was asked for"):
        fetch("own://path", sha256=sha256)
    with pytest.raises(KeyError, match="own://: registered already; force=True replaces it"):
        register_source(["own://", "other://"], resolve)
    register_source(["own://"], lambda source, request: source, force=True)
    with pytest.raises(FetchError, match="own://path leads from source to source, 8 times and on"):
        fetch("own://path")


def test_prefixes_are_tried_from_the_last_to_the_first() -> None:
    kinds = Prefixes[int]()
    for number, prefix in enumerate(["", "open-mmlab://", r"(\S+\:)?s3://", "https://", "http://"]):
        kinds.register(prefix, number)
    assert list(kinds) == ["open-mmlab://", "https://", "http://", r"(\S+\:)?s3://", ""]
    assert [kinds.find(text) for text in ("a:s3://b", "s3://b", "https://c", "/d")] == [2, 2, 3, 0]
    assert Prefixes[int]().find("a") is None


def test_hosts_and_offline(host: Host, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, other = host.serve("/a.pth", whole(b"here")), host.serve("/b.pth", whole(b"there"))
    with pytest.raises(FetchError, match=r"the host 'localhost' is not allowed; .* names example\.org, \*\.hf\.co"):
        fetch(url, limits=Limits(hosts=("example.org", "*.hf.co")))
    monkeypatch.setenv("TORCHINIT_ALLOWED_HOSTS", "LOCALHOST.")
    assert fetch(url).read_bytes() == b"here"
    monkeypatch.setenv("TORCHINIT_OFFLINE", "1")
    assert fetch(url).read_bytes() == b"here"
    with pytest.raises(FetchError, match=r"b\.pth is not in the cache, and TORCHINIT_OFFLINE is set"):
        fetch(other)
    assert [path for path, _ in host.seen] == ["/a.pth"]


def test_a_redirect_to_a_host_that_is_not_allowed(host: Host) -> None:
    target = host.url.replace("localhost", "127.0.0.1") + "/b.pth"
    host.serve("/b.pth", whole(b"there"))
    url = host.serve("/a.pth", lambda visit: visit.say(302, Location=target))
    with pytest.raises(FetchError, match=r"the host '127\.0\.0\.1' is not allowed"):
        fetch(url, limits=Limits(hosts=("localhost",)))
    assert fetch(url).read_bytes() == b"there"
