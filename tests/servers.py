"""Servers on this machine that misbehave as they are told: each path of one says what it does."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Handler = Callable[["Visit"], None]


@dataclass
class Host:
    """A server: where it is, what its paths do, and what it was asked for."""

    url: str
    paths: dict[str, Handler] = field(default_factory=dict)
    seen: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)

    def serve(self, path: str, handler: Handler) -> str:
        """Lets a path do something; its URL."""
        self.paths[path] = handler
        return self.url + path

    def hits(self, path: str) -> int:
        return Counter(name for name, _ in self.seen)[path]


class Visit(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    host: Host

    def do_GET(self) -> None:
        self.host.seen.append((self.path, dict(self.headers.items())))
        self.close_connection = True
        self.host.paths[self.path.partition("?")[0]](self)

    def do_HEAD(self) -> None:
        self.do_GET()

    def say(self, status: int, body: bytes = b"", **headers: str | None) -> None:
        """An answer with its length; ``Name_of_header=None`` leaves a header out."""
        # Told, lest a client keep the connection and lose its next request to the hang-up.
        said = {"Connection": "close", "Content-Length": str(len(body))} | {
            name.replace("_", "-"): text for name, text in headers.items()
        }
        self.send_response(status)
        for name, text in said.items():
            if text is not None:
                self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_CONNECT(self) -> None:
        """Is a proxy: a tunnel to whatever is asked for."""
        self.host.seen.append((self.path, dict(self.headers.items())))
        self.close_connection = True
        place, _, port = self.path.rpartition(":")
        with socket.create_connection((place, int(port))) as other:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=_pump, args=(other, self.connection), daemon=True)
            back.start()
            _pump(self.connection, other)
            back.join()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def served(certificate: Path | None = None) -> Iterator[Host]:
    """A server on a free port, with TLS if there is a certificate."""
    server = _Quiet(("127.0.0.1", 0), BaseHTTPRequestHandler)
    host = Host(f"{'https' if certificate else 'http'}://localhost:{server.server_port}")
    server.RequestHandlerClass = type("Bound", (Visit,), {"host": host})
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Passes on what comes, until one side has had enough."""
    with contextlib.suppress(OSError):
        while block := source.recv(1 << 16):
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)


class _Quiet(ThreadingHTTPServer):
    """Who hangs up on it is no error."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing."""


def certificate_in(folder: Path) -> Path:
    """A certificate for localhost that signs itself, with its key in the same file."""
    path = folder / "localhost.pem"
    names, uses = "subjectAltName=DNS:localhost,IP:127.0.0.1", "keyUsage=critical,digitalSignature,keyCertSign"
    subject = ["-subj", "/CN=localhost", "-addext", names, "-addext", uses]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command = ["openssl", "req", "-x509", *key, *subject, "-keyout", str(path), "-out", str(folder / "certificate.pem")]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text("ascii") + (folder / "certificate.pem").read_text("ascii"), "ascii")
    return path


def whole(body: bytes, **headers: str | None) -> Handler:
    """The whole body, whatever is asked for: ranges are ignored."""
    return lambda visit: visit.say(200, body, **headers)


def status(code: int, **headers: str | None) -> Handler:
    """An error, with a page about it."""
    return lambda visit: visit.say(code, b"<html>sorry</html>", Content_Type="text/html", **headers)


def redirect(target: str, code: int = 302) -> Handler:
    """Another place to look."""
    return lambda visit: visit.say(code, Location=target)


def in_turn(*handlers: Handler) -> Handler:
    """The first at the first request, the second at the next; the last stays."""
    left = list(handlers)

    def answer(visit: Visit) -> None:
        (left.pop(0) if len(left) > 1 else left[0])(visit)

    return answer


def ranged(body: bytes, tag: str | None = '"v1"', **headers: str | None) -> Handler:
    """A file as good servers have it: ranges, and If-Range by its tag."""

    def answer(visit: Visit) -> None:
        asked, same = visit.headers.get("Range"), visit.headers.get("If-Range") in (None, tag)
        if not asked or not same:
            return visit.say(200, body, ETag=tag, **headers)
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            return visit.say(416, Content_Range=f"bytes */{len(body)}")
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return visit.say(206, body[start:], ETag=tag, Content_Range=span, **headers)

    return answer


def broken(body: bytes, after: int, tag: str | None = '"v1"') -> Handler:
    """Promises the whole body, and hangs up after some of it."""

    def answer(visit: Visit) -> None:
        visit.say(200, body[:after], ETag=tag, Content_Length=str(len(body)))

    return answer


def dripping(body: bytes, pause: float, *, headers: bool = False) -> Handler:
    """A byte at a time; with ``headers`` those drip as well."""

    def answer(visit: Visit) -> None:
        head = f"HTTP/1.1 200 OK\r\nServer: {'slow ' * 100}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        if not headers:
            visit.wfile.write(head)
        for byte in head * headers + body:
            visit.wfile.write(bytes([byte]))
            visit.wfile.flush()
            time.sleep(pause)

    return answer
