"""Transport: whom a connection leads to, by which way, and that it ends."""

from __future__ import annotations

import gc
import os
import re
import socket
import ssl
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.checkpoints.hub.downloads import BODY, HASTY, QUICK, SHA, got
from tests.servers import Host, Visit, redirect, whole
from torchinit.checkpoints import fetch
from torchinit.errors import FetchError


def test_a_certificate_that_nobody_knows(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    url = host.serve("/a.pth", whole(BODY))
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(FetchError, match=r"certificate of the host is not trusted: .*SSL_CERT_FILE"):
        got(url)
    assert host.hits("/a.pth") == 0


def test_a_handshake_that_stands_still(cache: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"https://localhost:{deaf.getsockname()[1]}/a.pth"
        with pytest.raises(FetchError, match=r"cannot be fetched: .*(timed out|came in)"):
            got(url, limits=HASTY)


@pytest.mark.parametrize("host", ["127.0.0.1:9", "nowhere.invalid"])
def test_no_network(host: str, cache: Path) -> None:
    with pytest.raises(FetchError, match=rf"https://{host}/a\.pth cannot be fetched: .*\(attempt 3\)"):
        got(f"https://{host}/a.pth")


def test_headers_that_break_off_leave_no_socket_open(host: Host) -> None:
    url = host.serve("/a.pth", servers.dripping(BODY, 0.01, headers=True))
    with pytest.raises(FetchError, match=r"\d+ bytes came in") as caught:  # which keeps alive what was open
        got(url, limits=replace(HASTY, attempts=1))
    ours = [each for each in gc.get_objects() if type(each) is ssl.SSLSocket and not each.server_side]
    assert [each for each in ours if each.fileno() >= 0] == []
    del caught


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What the DNS says of a name, one answer after the other; the last stays. Of others it says what is so."""
    said: dict[str, list[str]] = {}
    known = socket.getaddrinfo

    def answer(name: str, port: int, *rest: Any, **options: Any) -> Any:
        left = said.get(name, [name])
        return known(left.pop(0) if len(left) > 1 else left[0], port, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return said


NOBODY = replace(QUICK, private=(), attempts=1)


@pytest.mark.parametrize(
    "written",
    ["localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::ffff:127.0.0.1]", "mirror.test"],
)
def test_what_lies_inside_the_network_is_not_asked(written: str, host: Host, names: dict[str, list[str]]) -> None:
    names["mirror.test"] = ["127.0.0.1"]
    url = host.serve("/a.pth", whole(BODY)).replace("localhost", written)
    remedy = f"TORCHINIT_PRIVATE_HOSTS={written.strip('[]')}"
    with pytest.raises(FetchError, match=rf"the host is at [0-9a-f.:]+, inside this network; .* {re.escape(remedy)} "):
        got(url, limits=NOBODY)
    assert host.seen == []


def test_a_mirror_inside_the_network(host: Host) -> None:
    url = host.serve("/a.pth", whole(BODY))
    assert got(url, limits=replace(NOBODY, hosts=("localhost",))) == BODY
    assert got(f"{url}?again", limits=replace(NOBODY, private=("*",))) == BODY


@pytest.mark.parametrize("there", ["169.254.169.254", "127.0.0.1", "metadata.test"])
def test_a_redirect_into_the_network(there: str, host: Host, names: dict[str, list[str]]) -> None:
    names["metadata.test"] = ["10.0.0.7"]
    port = host.url.rpartition(":")[2]
    url = host.serve("/a.pth", redirect(f"https://{there}:{port}/b.pth"))
    text = rf"https://{there}:\d+/b\.pth, to which {url} redirects: the host is at [0-9.]+, inside this network"
    with pytest.raises(FetchError, match=text):
        got(url, limits=replace(NOBODY, private=("localhost",)))
    assert host.hits("/b.pth") == 0


def test_the_address_that_was_looked_at_is_the_one_that_is_asked(
    cache: Path, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    names["rebound.test"] = ["1.1.1.1", "127.0.0.1"]
    asked: list[object] = []

    def connect(place: object, timeout: float) -> None:
        asked.append(place)
        raise ConnectionRefusedError("nobody there")

    monkeypatch.setattr(socket, "create_connection", connect)
    for text in ("cannot be fetched: nobody there", r"the host is at 127\.0\.0\.1, inside"):
        with pytest.raises(FetchError, match=text):
            got("https://rebound.test/a.pth", limits=NOBODY)
    assert asked == [("1.1.1.1", 443)]


@pytest.mark.parametrize("ends", [("127.0.0.2", "127.0.0.1"), ("127.0.0.1", "127.0.0.2")])
def test_an_address_that_does_not_answer_leaves_the_others(
    ends: tuple[str, str], host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, known = host.serve("/a.pth", whole(BODY)), socket.getaddrinfo

    def answer(name: str, *rest: Any, **options: Any) -> Any:
        both = ends if name == "localhost" else (name,)
        return [found for ip in both for found in known(ip, *rest, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    assert got(url, limits=replace(QUICK, attempts=1)) == BODY


@pytest.mark.parametrize("written", ["10.0.0.1", "167772161", "[::1]"])
def test_an_address_inside_the_network_is_not_asked_of_a_proxy(
    written: str, plain_host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", plain_host.url)
    with pytest.raises(FetchError, match="inside this network"):
        got(f"https://{written}/a.pth")
    assert plain_host.seen == []


def test_through_a_proxy(host: Host, plain_host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    url, place = host.serve("/a.pth", whole(BODY)), plain_host.url.removeprefix("http://")
    monkeypatch.setenv("https_proxy", f"http://me:p%40ss@{place}")
    assert got(url) == BODY
    tunnel, headers = plain_host.seen[0]
    assert f"https://{tunnel}/a.pth" == url
    assert headers["proxy-authorization"] == "Basic bWU6cEBzcw=="
    assert "proxy-authorization" not in {name.lower() for name in host.seen[0][1]}
    monkeypatch.setenv("no_proxy", "localhost")
    assert got(url + "?again") == BODY
    assert len(plain_host.seen) == 1


def test_plain_http_through_a_proxy(plain_host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_host.serve("http://example.org/a.pth", whole(BODY))
    monkeypatch.setenv("http_proxy", plain_host.url.replace("//", "//me:pass@"))
    assert got("http://example.org/a.pth", sha256=SHA) == BODY
    headers = plain_host.seen[0][1]
    assert (headers["Host"], headers["proxy-authorization"]) == ("example.org", "Basic bWU6cGFzcw==")


@pytest.mark.parametrize(("login", "sent"), [("m%C3%BC:%E5%8D%97", "bcO8OuWNlw=="), (":", "Og==")])
def test_a_login_is_sent_as_utf_8(login: str, sent: str, plain_host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_host.serve("http://example.org/a.pth", whole(BODY))
    monkeypatch.setenv("http_proxy", plain_host.url.replace("//", f"//{login}@"))
    assert got("http://example.org/a.pth", sha256=SHA) == BODY
    assert plain_host.seen[0][1]["proxy-authorization"] == f"Basic {sent}"


def test_a_proxy_that_refuses(plain_host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Visit, "do_CONNECT", lambda visit: visit.say(407))
    monkeypatch.setenv("https_proxy", plain_host.url)
    with pytest.raises(FetchError, match=r"example\.org/a\.pth cannot be fetched: Tunnel connection failed: 407 Proxy"):
        got("https://example.org/a.pth")


def test_a_proxy_that_is_not_spoken_to_by_http(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://localhost:1080")
    with pytest.raises(FetchError, match="the proxy socks5://localhost is not one that is spoken to by http"):
        got("https://example.org/a.pth")


def test_a_proxy_that_drips(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.served() as proxy:
        monkeypatch.setattr(Visit, "do_CONNECT", servers.dripping(BODY, 0.01, headers=True))
        monkeypatch.setenv("https_proxy", proxy.url)
        with pytest.raises(FetchError, match=r"example\.org/a\.pth cannot be fetched: \d+ bytes came in 0\.4 s"):
            got("https://example.org/a.pth", limits=HASTY)


def test_without_a_network_the_ways_out_are_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(
        FetchError, match=r"a\.pth cannot be fetched: .*name resolution: is there a network\? A path needs"
    ):
        got("https://example.org/a.pth", limits=NOBODY)


ALONE = """
import sys
from torchinit.checkpoints import fetch
from torchinit.checkpoints import fetch
from torchinit.errors import FetchError
fetch(sys.argv[1])
try:
    fetch("https://127.0.0.1/a.pth")
except FetchError as error:
    print("urllib3" in sys.modules, error)
"""


def run_alone(code: str, path: Path, **environment: str) -> str:
    path.write_bytes(b"weights")
    process = [sys.executable, "-c", code, str(path)]
    return subprocess.run(process, env={**os.environ, **environment}, capture_output=True, text=True, check=True).stdout


def test_urllib3_is_imported_where_a_url_is_opened(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    assert run_alone(ALONE, path).startswith("True https://127.0.0.1/a.pth: the host is at 127.0.0.1, inside")
    assert run_alone(ALONE, path, TORCHINIT_OFFLINE="1").startswith("False https://127.0.0.1/a.pth is not in the cache")


def test_without_urllib3_a_url_says_so(cache: Path, tmp_path: Path) -> None:
    code = ALONE.replace("import sys\n", "import sys\nsys.modules['urllib3'] = None\n", 1)
    told = run_alone(code, tmp_path / "a.pth")
    assert told == "True https://127.0.0.1/a.pth cannot be fetched: urllib3 is not installed: pip install urllib3\n"


def test_what_urllib3_logs_holds_no_secret(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    odd = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nodd\r\nA: b\r\n\r\nx"

    def answer(visit: Visit) -> None:
        visit.wfile.write(odd)

    host.serve("/a.pth", answer)
    assert got(f"{host.url}/a.pth?v=1&token=s3cr3t") == b"x"
    logged = [record.getMessage() for record in caplog.records if record.name.startswith("urllib3")]
    assert any("Failed to parse headers" in text for text in logged)
    assert any('"GET /a.pth?v=1&token=*** HTTP/1.1" 200' in text for text in logged)
    assert "s3cr3t" not in caplog.text


def test_a_server_that_sends_one_byte_at_a_time(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchinit.checkpoints.hub.http._MANY_PIECES", 50)

    def drip(visit: Visit) -> None:
        visit.send_response(200)
        visit.send_header("Transfer-Encoding", "chunked")
        visit.end_headers()
        visit.wfile.write(b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n")

    with pytest.raises(FetchError, match=r"comes in pieces of 1 bytes; refused"):
        fetch(host.serve("/a.pth", drip), sha256="0" * 64)
