"""HTTP: the answer to a GET, behind its redirects, by urllib3, which is imported where a URL is opened.

urllib3 brings connections, TLS, proxies and their tunnels. What it has no setting for is here: which IP addresses a
connection may lead to, and how slowly bytes may come.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import logging
import math
import os
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import unquote, urlsplit

import urllib3

from torchinit._text import masked
from torchinit.checkpoints.hub.urls import Address, Limits, address_of, check_allowed, check_public, redirected
from torchinit.errors import FetchError

_MANY_PIECES, _SMALL_PIECE = 10_000, 64
_RAW: Final = {"redirect": False, "retries": False, "preload_content": False, "enforce_content_length": False}


class TransientError(Exception):
    """A failure that may pass; ``wait`` is how many seconds the server asks us to stay away."""

    def __init__(self, text: str, wait: float = 0.0) -> None:
        self.wait = wait
        super().__init__(text)


@dataclass(slots=True)
class _Guard:
    """The conditions of a connection: where it may lead to, and how fast its bytes must come."""

    # A socket's own timeout starts anew with each byte, so one byte a second would keep it open for years. So in each
    # `idle` seconds `least` bytes must come. Headers have no length, so no number of them is enough: they must be
    # whole after `idle` seconds.

    address: Address
    limits: Limits
    deadline: float
    proxied: bool = False
    least: float = math.inf
    received: int = 0
    since: float = 0.0

    def connect(self, host: str, port: int) -> socket.socket:
        """A socket to the host, or to the proxy. Raises FetchError where it must not be asked, TransientError."""
        # The DNS is asked once, and the addresses it names are compared and then connected to. Comparing them and
        # letting urllib3 connect by name would ask again, and the second answer could lead elsewhere (rebinding);
        # comparing the other end of a connection would have knocked at a door inside the network by then.
        try:
            ips = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
            if not self.proxied:  # a proxy may lie anywhere
                check_public(self.address, ips, self.limits)
            for ip in ips[:-1]:
                with contextlib.suppress(OSError):
                    return socket.create_connection((ip, port), self.patience())
            return socket.create_connection((ips[-1], port), self.patience())
        except OSError as error:
            no_name = "is there a network? A path needs none, nor what is in the cache (TORCHINIT_CACHE)"
            hint = f": {no_name}" if isinstance(error, socket.gaierror) else ""
            raise TransientError(f"{error}{hint}") from error

    def patience(self) -> float:
        """The seconds to wait for the next bytes."""
        return max(min(self.limits.idle, self.deadline - time.monotonic()), 0.001)

    def count(self, size: int) -> None:
        """Count bytes. Raises TransientError if they come too slowly, or none has come within :meth:`patience`."""
        self.received += size
        now = time.monotonic()
        if now >= self.deadline:
            raise TransientError(f"it took longer than {self.limits.total:g} s")
        if now - self.since > self.limits.idle:
            if self.received < self.least:
                raise TransientError(f"{self.received} bytes came in {self.limits.idle:g} s")
            self.expect_body()

    def expect_body(self) -> None:
        """Begin to count anew."""
        self.least, self.received, self.since = self.limits.slowest * self.limits.idle, 0, time.monotonic()


class _CountedReader(io.RawIOBase):
    """The bytes of a socket, each of them counted by a guard."""

    # It lies below http.client's buffer and all parsers, so status lines, headers, sizes of chunks, trailers and a
    # proxy's answer to CONNECT count like a body. A clock in the loop that writes the body would not hear of a server
    # that drips before it; a thread that shuts the socket from outside would, but must be told of each socket, also
    # while TLS takes it over. The handshake is not seen here: the socket's timeout is a deadline for the whole of it.

    def __init__(self, sock: socket.socket, guard: _Guard) -> None:
        self._socket, self._guard = sock, guard
        self._stream = sock.makefile("rb", buffering=0)  # holds the socket open until it is closed itself
        guard.since = time.monotonic()

    def makefile(self, mode: str) -> io.BufferedReader:  # by which http.client takes this for the socket
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._socket.settimeout(self._guard.patience())
        try:
            size = self._stream.readinto(buffer) or 0
        except TimeoutError:
            self._guard.count(0)
            raise TransientError(f"0 bytes came in {self._guard.limits.idle:g} s") from None
        self._guard.count(size)
        return size

    def close(self) -> None:
        self._stream.close()
        super().close()


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request, whose body is still to come; ``url`` is where the redirects led to."""

    url: str
    response: urllib3.HTTPResponse
    guard: _Guard

    def blocks(self, size: int) -> Iterator[bytes]:
        """The body as it comes, at most ``size`` bytes at a time. Raises TransientError."""
        self.guard.expect_body()
        number = received = 0
        with _explained(self.url):
            while block := self.response.read1(size, decode_content=False):
                left, number, received = time.monotonic(), number + 1, received + len(block)
                if number > _MANY_PIECES and received < _SMALL_PIECE * number:  # each costs as much work as a large one
                    raise FetchError(f"{self.url}: comes in pieces of {received / number:.0f} bytes; refused")
                yield block
                self.guard.since += time.monotonic() - left  # what the disk and the hash take does not count


@contextlib.contextmanager
def get(url: str, headers: Mapping[str, str], limits: Limits, deadline: float) -> Iterator[Answer]:
    """The answer to a GET, behind its redirects, each of which is checked like the first address.

    Raises FetchError for an address that must not be asked and for a certificate that is not trusted, and
    TransientError for what a later attempt may mend.
    """
    address = address_of(url)
    for _ in range(limits.redirects + 1):
        check_allowed(address, limits)
        guard = _Guard(address, limits, deadline)
        with _manager(guard) as manager:
            with _explained(address.url):
                response = manager.urlopen("GET", address.url, headers=headers, **_RAW)
            with contextlib.closing(response):
                location = response.get_redirect_location()
                if not location:
                    yield Answer(address.url, cast("urllib3.HTTPResponse", response), guard)
                    return
        address = redirected(address, location)
    raise FetchError(f"{url} is redirected more than {limits.redirects} times")


def _manager(guard: _Guard) -> urllib3.PoolManager:
    """Guarded connections to an address: direct, or by the proxy that the environment or the system names."""
    address = guard.address
    # The system's certificates are trusted, or those that SSL_CERT_FILE and SSL_CERT_DIR name.
    for variable, exists in (("SSL_CERT_FILE", os.path.isfile), ("SSL_CERT_DIR", os.path.isdir)):
        if (named := os.environ.get(variable)) and not exists(named):
            raise FetchError(f"{variable}={named}: is not there, so no host can be trusted")
    options: dict[str, Any] = {"timeout": guard.limits.idle, "ssl_context": ssl.create_default_context()}
    proxy = urllib.request.getproxies().get(address.scheme)
    guard.proxied = bool(proxy) and not urllib.request.proxy_bypass(urlsplit(address.url).netloc)
    manager = _proxy_manager(str(proxy), options) if guard.proxied else urllib3.PoolManager(**options)
    if guard.proxied:  # it asks the DNS by itself, so only an IP address that is written as such can be compared
        check_public(address, _written_ip(address.host), guard.limits)
    pool = manager.connection_from_url(address.url)
    methods = {
        "_new_conn": lambda self: guard.connect(self._dns_host, self.port),
        "response_class": lambda _, sock, **kind: http.client.HTTPResponse(_CountedReader(sock, guard), **kind),  # type: ignore[arg-type]
    }
    pool.ConnectionCls = type("GuardedConnection", (pool.ConnectionCls,), methods)
    return manager


def _proxy_manager(url: str, options: Mapping[str, Any]) -> urllib3.ProxyManager:
    try:
        proxy = urlsplit(url if "://" in url else f"http://{url}")
        _ = proxy.port
    except ValueError as error:
        raise FetchError(f"the proxy {masked(url)} is not a URL: {error}") from None
    if proxy.scheme != "http" or not proxy.hostname:
        raise FetchError(f"the proxy {proxy.scheme}://{proxy.hostname} is not one that is spoken to by http")
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}" if proxy.username is not None else ""
    # urllib3 writes it as Latin-1: read as that, the bytes are those of UTF-8 again.
    headers = urllib3.make_headers(proxy_basic_auth=login.encode().decode("latin-1") or None)
    return urllib3.ProxyManager(f"http://{proxy.netloc.rpartition('@')[2]}", proxy_headers=headers, **options)


def _written_ip(host: str) -> tuple[str, ...]:
    """The IP address that a host is written as, in each spelling that resolvers read: ``127.1``, ``2130706433``."""
    with contextlib.suppress(OSError):
        return (socket.inet_ntoa(socket.inet_aton(host)),)
    return (host,) if ":" in host else ()


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Raise TransientError for what may pass, else FetchError, by the error at the bottom of urllib3's."""
    try:
        yield
    except urllib3.exceptions.HTTPError as error:
        cause: BaseException = error
        while inner := next((part for part in cause.args if isinstance(part, BaseException)), None):
            cause = inner
        if isinstance(cause, ssl.SSLCertVerificationError):
            remedy = "If it is your own authority's, SSL_CERT_FILE names the file of certificates to trust"
            text = f"{url}: the certificate of the host is not trusted: {cause.verify_message}. {remedy}"
            raise FetchError(text) from error
        text = " ".join(str(cause).split())[:200]  # it may hold what the server said
        raise TransientError(text or type(cause).__name__) from error


def _mask(record: logging.LogRecord) -> bool:
    record.msg, record.args = masked(record.getMessage()), ()
    return True


for _name in ("urllib3.connection", "urllib3.connectionpool"):  # which log each URL with the secrets in it
    logging.getLogger(_name).addFilter(_mask)
