"""Downloads from servers that misbehave: never a bad entry, never a hang, always a clear error."""

from __future__ import annotations

import gzip
import hashlib
import io
import resource
import shutil
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from tests import servers
from tests.checkpoints.hub.downloads import BODY, HASTY, QUICK, SHA, got, left_in
from tests.servers import Handler, Host, Visit, broken, in_turn, ranged, redirect, status, whole
from torchinit.checkpoints import fetch
from torchinit.checkpoints.hub.cache import Cache, read_pins
from torchinit.errors import FetchError


def test_a_file_is_fetched_once(host: Host, cache: Path) -> None:
    url = host.serve("/weights/a.pth", whole(BODY))
    assert got(url) == BODY
    path = fetch(url)
    assert path.read_bytes() == BODY
    assert path.name == "a.pth"
    assert path.is_relative_to(cache)
    assert host.hits("/weights/a.pth") == 1
    assert left_in(cache) == [".entry.json", "a.pth"]
    assert host.seen[0][1]["Accept-Encoding"] == "identity"


def test_two_files_of_one_name_are_two_entries(host: Host) -> None:
    first = fetch(host.serve("/v0.0/alex.pth", whole(b"old")), limits=QUICK)
    second = fetch(host.serve("/v0.1/alex.pth", whole(b"new")), limits=QUICK)
    third = fetch(host.url + "/v0.1/alex.pth?token=1", limits=QUICK)
    assert (first.name, second.name, third.name) == ("alex.pth",) * 3
    assert (first.read_bytes(), second.read_bytes()) == (b"old", b"new")
    assert len({first, second, third}) == 3


def chunked(body: bytes, *, end: bool = True) -> Handler:
    """No length, but a mark at the end, unless that is left out."""

    def answer(visit: Visit) -> None:
        visit.say(200, Transfer_Encoding="chunked", Content_Length=None)
        for at in range(0, len(body), 1 << 16):
            block = body[at : at + (1 << 16)]
            visit.wfile.write(b"%x\r\n%b\r\n" % (len(block), block))
        visit.wfile.write(b"0\r\n\r\n" * end)

    return answer


def dripping_chunks(size: bytes, data: bytes, after: bytes = b"") -> Handler:
    """Chunks, and then some bytes of a chunk's size, of its data or of what comes after the last, again and again."""

    def answer(visit: Visit) -> None:
        visit.say(200, Transfer_Encoding="chunked", Content_Length=None)
        visit.wfile.write(after)
        while True:
            visit.wfile.write(size + data)
            time.sleep(0.02)

    return answer


def continuing(visit: Visit) -> None:
    """Says again and again that there is more to come, as fast as it can."""
    while True:
        visit.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


def unending_size(visit: Visit) -> None:
    """A chunk whose size has no end."""
    visit.say(200, Transfer_Encoding="chunked", Content_Length=None)
    while True:
        visit.wfile.write(b"1;" + b"x" * 100_000)


def endless(visit: Visit) -> None:
    """No length, no end."""
    visit.say(200, Content_Length=None)
    while True:
        visit.wfile.write(BODY)


def test_an_answer_in_chunks(host: Host) -> None:
    assert got(host.serve("/a.pth", chunked(BODY))) == BODY


def babble(visit: Visit) -> None:
    """What is no HTTP."""
    visit.wfile.write(b"hello\n")


def unlocated(visit: Visit) -> None:
    visit.say(302)


def saved_by_torch() -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.ones(3)}, file)
    return file.getvalue()


WEIGHTS, ZIP = save({"a": torch.ones(3), "b": torch.ones(2)}, {"text": "x"}), saved_by_torch()
CUT = r"a\.pth ends before its own table of contents does"


@pytest.mark.parametrize(
    "body",
    [WEIGHTS, ZIP, b"\x02" + bytes(7) + b"{]", b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{}", bytes(8) + b"{"],
)
def test_what_is_whole_or_unknown_passes(body: bytes, host: Host) -> None:
    assert got(host.serve("/a.pth", whole(body))) == body


REFUSED: dict[str, tuple[Handler, str]] = {
    "a page with 200": (whole(b"<html>log in</html>", Content_Type="text/html; charset=utf-8"), "is a web page"),
    "a page that says it is weights": (
        whole(b"\n<!DOCTYPE html><p>", Content_Type="application/octet-stream"),
        "is a web page",
    ),
    "a page without marks": (whole(b"log in first", Content_Type="text/html"), "is a web page"),
    "a length below what safetensors says": (whole(WEIGHTS, Content_Length=str(len(WEIGHTS) - 1)), CUT),
    "a length within the header": (whole(WEIGHTS, Content_Length="20"), CUT),
    "a length below what a zip says": (whole(ZIP, Content_Length=str(len(ZIP) - 1)), CUT),
    "a pointer": (whole(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "is a pointer of Git LFS"),
    "an empty body": (whole(b""), r"a\.pth is empty"),
    "packed": (whole(gzip.compress(bytes(10_000_000)), Content_Encoding="gzip"), r"is packed \(gzip\)"),
    "packed on the way": (
        whole(gzip.compress(bytes(1000)), Transfer_Encoding="gzip, chunked", Content_Length=None),
        r"is packed \(gzip, chunked\)",
    ),
    "a length that is none": (whole(BODY, Content_Length="12x"), "the length '12x' is not a number"),
    "a length below zero": (whole(BODY, Content_Length="-1"), "the length '-1' is not a number"),
    "larger than allowed": (whole(b"x", Content_Length=str(10**12)), "is larger than 100,000,000,000 bytes"),
    "neither length nor end": (whole(BODY, Content_Length=None), "the answer has no length"),
    "not found": (status(404), "the server says 404: there is no such file"),
    "not allowed": (status(403), "the server says 403: it is not open to everyone"),
    "not known": (status(401), "the server says 401: it wants to know who asks"),
    "no more": (status(410), "the server says 410: the file is gone"),
    "a part nobody asked for": (status(206), "the server says 206$"),
    "a redirect to nowhere": (unlocated, "the server says 302$"),
    "to http": (redirect("http://localhost/a.pth"), "refused: it leaves https"),
    "to a file": (redirect("file:///etc/passwd"), "refused: file:///etc/passwd is not an http or https URL"),
    "to ftp": (redirect("ftp://localhost/a.pth"), "refused: ftp://localhost/a.pth is not an http or https URL"),
    "to what parsers read in two ways": (redirect("https://good.org\\.localhost/"), "is not the name of a host"),
    "to a port that is none": (redirect("https://localhost:99999/"), "refused: https://localhost:99999/ is not a URL"),
    "to itself": (redirect("/a.pth"), "is redirected more than 5 times"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_at_once(what: str, host: Host, cache: Path) -> None:
    handler, text = REFUSED[what]
    url = host.serve("/a.pth", handler)
    with pytest.raises(FetchError, match=text):
        got(url)
    assert host.hits("/a.pth") == (6 if what == "to itself" else 1)
    assert left_in(cache) == []


PASSING: dict[str, tuple[Handler, str]] = {
    "busy": (status(500), "the server says 500"),
    "busier": (status(429, Retry_After="0"), "the server says 429"),
    "truncated": (broken(BODY, 1_000_000, None), "the answer ended after 1,000,000 of 3,000,000 bytes"),
    "chunks that break off": (chunked(BODY, end=False), "IncompleteRead"),
    "no answer": (lambda visit: visit.connection.close(), "."),
    "no HTTP": (babble, "hello"),
    "a slow drip": (servers.dripping(BODY, 0.01), r"\d+ bytes came in 0\.4 s"),
    "a slow drip of headers": (servers.dripping(BODY, 0.01, headers=True), r"\d+ bytes came in 0\.4 s"),
    "chunks of one byte that drip": (dripping_chunks(b"1\r\n", b"x\r\n"), r"\d+ bytes came in 0\.4 s"),
    "a size of a chunk that drips": (dripping_chunks(b"0", b""), r"\d+ bytes came in 0\.4 s"),
    "trailers that drip": (dripping_chunks(b"A: b\r\n", b"", b"1\r\nx\r\n0\r\n"), r"\d+ bytes came in 0\.4 s"),
    "headers to come": (continuing, r"\d+ bytes came in 0\.4 s"),
    "a size of a chunk without end": (unending_size, "got more than 65536 bytes when reading chunk size"),
    "silence": (lambda visit: time.sleep(2), r"0 bytes came in 0\.4 s"),
}


@pytest.mark.parametrize("what", PASSING)
def test_what_may_pass_is_tried_again_and_then_an_error(what: str, host: Host, cache: Path) -> None:
    handler, text = PASSING[what]
    url, waits = host.serve("/a.pth", handler), "came in" in text
    with pytest.raises(FetchError, match=rf"a\.pth cannot be fetched: .*{text}.* \(attempt 3\)"):
        got(url, limits=HASTY if waits else QUICK)
    assert waits or host.hits("/a.pth") == 3
    assert Cache(cache).entries() == ()
    host.serve("/a.pth", ranged(BODY))
    assert got(url) == BODY


def test_two_failures_then_the_file(host: Host) -> None:
    url = host.serve("/a.pth", in_turn(status(500), status(503), whole(BODY)))
    assert got(url) == BODY


def test_an_endless_answer_stops_at_the_bound(host: Host, cache: Path) -> None:
    url = host.serve("/a.pth", endless)
    with pytest.raises(FetchError, match=r"is larger than 10,000,000 bytes; TORCHINIT_MAX_DOWNLOAD"):
        got(url, sha256=SHA, limits=replace(QUICK, size=10_000_000))
    assert left_in(cache) == []


def test_without_a_length_the_hash_tells(host: Host) -> None:
    url = host.serve("/a.pth", whole(BODY, Content_Length=None))
    assert got(url, sha256=SHA) == BODY


def test_the_total_time_is_bounded(host: Host) -> None:
    url = host.serve("/a.pth", servers.dripping(BODY, 0.001))
    with pytest.raises(FetchError, match=r"it took longer than 0\.5 s"):
        got(url, limits=replace(QUICK, slowest=0, total=0.5))


def test_slow_but_steady_is_no_drip(host: Host) -> None:
    body = BODY[:600]
    url = host.serve("/a.pth", servers.dripping(body, 0.001))
    assert got(url, limits=replace(QUICK, idle=0.2, slowest=50, attempts=1)) == body


def test_the_time_that_we_take_does_not_count(host: Host) -> None:
    url = host.serve("/a.pth", whole(BODY))

    def work(done: int, total: int | None) -> None:
        if done == 0:
            time.sleep(1.5)

    assert got(url, progress=work, limits=replace(QUICK, idle=1)) == BODY
    assert host.hits("/a.pth") == 1


def test_a_download_goes_on_where_it_broke_off(host: Host) -> None:
    url = host.serve("/a.pth", in_turn(broken(BODY, 1_000_000), broken(BODY, 0), ranged(BODY)))
    assert got(url) == BODY
    ranges = [headers.get("Range") for _, headers in host.seen]
    assert ranges == [None, "bytes=1000000-", None]  # the second began anew, and left nothing
    assert host.seen[1][1]["If-Range"] == '"v1"'


def test_a_download_goes_on_in_the_next_call(host: Host, cache: Path) -> None:
    url = host.serve("/a.pth", broken(BODY, 2_000_000))
    with pytest.raises(FetchError, match=r"ended after 2,000,000 of 3,000,000 bytes"):
        got(url, limits=replace(QUICK, attempts=1))
    assert left_in(cache) == [".part", ".part.json"]
    host.serve("/a.pth", ranged(BODY))
    assert got(url) == BODY
    assert host.seen[-1][1]["Range"] == "bytes=2000000-"
    assert left_in(cache) == [".entry.json", "a.pth"]


def test_a_page_in_between_leaves_what_has_come(host: Host, cache: Path) -> None:
    url = host.serve("/a.pth", in_turn(broken(BODY, 2_000_000), whole(b"<p>log in</p>", Content_Type="text/html")))
    with pytest.raises(FetchError, match="is a web page, not a file of weights"):
        got(url)
    assert left_in(cache) == [".part", ".part.json"]
    host.serve("/a.pth", ranged(BODY))
    assert got(url) == BODY
    assert host.seen[-1][1]["Range"] == "bytes=2000000-"


OTHER = BODY[::-1]
CHANGED: dict[str, Handler] = {
    "by If-Range": ranged(OTHER, '"v2"'),
    "ranges are ignored": whole(OTHER),
    "another tag in the answer": in_turn(
        lambda visit: visit.say(
            206, OTHER[1_000_000:], ETag='"v2"', Content_Range=f"bytes 1000000-{len(OTHER) - 1}/{len(OTHER)}"
        ),
        whole(OTHER),
    ),
    "another range": in_turn(
        lambda visit: visit.say(206, OTHER[5:], Content_Range=f"bytes 5-{len(OTHER) - 1}/{len(OTHER)}"), whole(OTHER)
    ),
    "another range of that length": in_turn(
        lambda visit: visit.say(206, OTHER[:2_000_000], Content_Range=f"bytes 0-1999999/{len(OTHER)}"), whole(OTHER)
    ),
    "no range": in_turn(lambda visit: visit.say(206, OTHER[5:]), whole(OTHER)),
    "past the end": in_turn(status(416), whole(OTHER)),
}


@pytest.mark.parametrize("how", CHANGED)
def test_content_that_changed_between_attempts_is_not_mixed(how: str, host: Host) -> None:
    url = host.serve("/a.pth", in_turn(broken(BODY, 1_000_000), CHANGED[how]))
    assert got(url) == OTHER


def test_two_halves_that_do_not_fit_are_found_by_the_hash(host: Host) -> None:
    lying = ranged(OTHER)  # the same tag for other bytes
    url = host.serve("/a.pth", in_turn(broken(BODY, 1_000_000), lying, whole(OTHER)))
    assert got(url, sha256=hashlib.sha256(OTHER).hexdigest()) == OTHER


def test_another_file_than_asked_for(host: Host, cache: Path) -> None:
    url = host.serve("/a.pth", whole(BODY))
    with pytest.raises(FetchError, match=rf"(?s)is not the file that was asked for\n.*{64 * '0'}\n.*{SHA}"):
        got(url, sha256=64 * "0")
    assert left_in(cache) == []
    with pytest.raises(FetchError, match="a sha256 has 64 hexadecimal digits, but got '12'"):
        got(url, sha256="12")
    assert got(url, sha256=f"sha256:{SHA.upper()}") == BODY


def test_redirects_are_followed(host: Host) -> None:
    host.serve("/b/c.bin", whole(BODY))
    url = host.serve("/a.pth", redirect(f"{host.url}/b/x", 301))
    host.serve("/b/x", redirect("c.bin", 307))
    path = fetch(url, limits=QUICK)
    assert path.read_bytes() == BODY
    assert path.name == "a.pth"  # by what was asked for


def test_names_from_headers_do_not_count(host: Host, cache: Path) -> None:
    url = host.serve("/a.pth", whole(BODY, Content_Disposition='attachment; filename="../../evil.pth"'))
    got(url)
    assert left_in(cache) == [".entry.json", "a.pth"]
    path = fetch(host.serve("/x/..%2F..%2F..%2Fevil%00.pth", whole(BODY)), limits=QUICK)
    assert path.name == "evil_.pth"
    assert path.resolve().is_relative_to(cache.resolve())


def test_plain_http_only_with_a_hash(plain_host: Host, host: Host) -> None:
    url = plain_host.serve("/a.pth", whole(BODY))
    with pytest.raises(FetchError, match="anyone on the way can change what comes by http; give its sha256"):
        got(url)
    assert got(url, sha256=SHA) == BODY
    host.serve("/b.pth", whole(BODY))
    assert got(plain_host.serve("/c.pth", redirect(f"{host.url}/b.pth")), sha256=SHA) == BODY


def test_a_disk_without_room(host: Host, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    url = host.serve("/a.pth", whole(BODY))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 2_999_999, 2_999_999))
    with pytest.raises(FetchError, match=r"needs 3,000,000 bytes, and .* has 2,999,999 free; TORCHINIT_CACHE"):
        got(url)
    assert left_in(cache) == []


def test_a_disk_that_fills_up(host: Host, cache: Path) -> None:
    url = host.serve("/a.pth", whole(BODY))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(FetchError, match=r"cannot be written to .*: \[Errno 27\] File too large"):
            got(url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert left_in(cache) == []
    assert got(url) == BODY


def test_progress_is_told(host: Host) -> None:
    told: list[tuple[int, int | None]] = []
    got(host.serve("/a.pth", whole(BODY)), progress=lambda done, total: told.append((done, total)))
    assert told[0] == (0, len(BODY))
    assert told[-1] == (len(BODY), len(BODY))
    assert told == sorted(told)


def test_secrets_of_a_url_are_kept_nowhere(
    host: Host, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock, part = tmp_path / "init.lock", "/a.pth?v=2&X-Amz-Signature=s3cr3t&token=s3cr3t"
    host.serve("/a.pth", in_turn(status(500), whole(BODY)))
    caplog.set_level("INFO", "torchinit")
    path = fetch(host.url + part, limits=QUICK, lock=lock)
    damaged = b"x" + BODY[1:]
    path.write_bytes(damaged)
    assert got(host.url + part, lock=lock) == BODY
    assert got(host.url + part.replace("s3cr3t", "other"), lock=lock) == BODY  # of a new token, too
    host.serve("/a.pth", status(404))
    with pytest.raises(FetchError, match=r"token=\*\*\*: the server says 404") as caught:
        got(host.url + part + "1")
    assert [path for path, _ in host.seen].count(part) == 3
    assert list(read_pins(lock)) == [f"{host.url}/a.pth?v=2&X-Amz-Signature=***&token=***"]
    kept = [file.read_bytes() for file in (*cache.rglob("*"), lock) if file.is_file() and file.name != "a.pth"]
    assert not any(b"s3cr3t" in text for text in (*kept, caplog.text.encode(), str(caught.value).encode()))
    assert "trying again" in caplog.text
    assert "it is fetched again" in caplog.text
    assert [entry.url.count("***") for entry in Cache(cache).entries()] == [2, 2]


def test_a_bar_in_a_terminal(host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    url = host.serve("/a.pth", whole(BODY))
    assert got(f"{url}?in=a-file") == BODY
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert got(url) == BODY
    assert "a.pth" in capsys.readouterr().err
    assert got(url) == BODY
    assert capsys.readouterr().err == ""  # nothing is fetched, nothing is shown
