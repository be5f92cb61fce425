"""Transport: one answer from one URL, over connections that cannot stand still."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeAlias
from urllib.parse import SplitResult, unquote, urlsplit

from torchinit.checkpoints.hub.config import Limits
from torchinit.checkpoints.hub.urls import Address, address_of, check_allowed, check_public, redirected
from torchinit.errors import FetchError

Check: TypeAlias = Callable[[Iterable[str]], None]
"""Raises FetchError where one of some IP addresses must not be asked."""

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class PassingError(Exception):
    """What may pass by itself: no connection, a server that is busy, an answer that broke off.

    ``wait`` is how many seconds the server asked us to stay away.
    """

    def __init__(self, text: str, wait: float = 0.0) -> None:
        self.wait = wait
        super().__init__(text)


class Watch:
    """Ends a connection that stands still or drips, by shutting its socket: whoever waits on it wakes up.

    A socket's own timeout starts anew with each byte, so one byte a second would keep it open for years.
    """

    def __init__(self, limits: Limits, deadline: float) -> None:
        self.reason = ""
        self.connection: http.client.HTTPConnection | None = None
        self.socket: socket.socket | None = None
        self._limits = limits
        self._deadline = deadline
        self._since, self._received = time.monotonic(), 0
        self._away: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="torchinit-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def begin(self) -> None:
        """Gives the other side its time anew: a connection begins, or an answer has."""
        self._since, self._received, self._away = time.monotonic(), 0, None

    def leave(self, received: int = 0) -> None:
        """Counts bytes of the answer; until :meth:`back` the time is our own, for the disk and for the hash."""
        self._received += received
        self._away = time.monotonic()

    def back(self) -> None:
        """Lets the time count again."""
        self._since += time.monotonic() - (self._away or time.monotonic())
        self._away = None

    def _look(self) -> None:
        pause = min(1.0, self._limits.idle / 10)
        while not self._over.wait(pause):
            self.reason = self.reason or self._complaint()
            if self.reason:
                self._cut()

    def _cut(self) -> None:
        wire: socket.socket | None = self.socket or getattr(self.connection, "sock", None)
        # Again until it is over, for there may be no socket yet. By the plain socket's method: TLS would want to
        # say good-bye to somebody who does not answer.
        if wire is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(wire, socket.SHUT_RDWR)

    def _complaint(self) -> str:
        now, limits = time.monotonic(), self._limits
        if now > self._deadline:
            return f"it took longer than {limits.total:g} s"
        if self._away is not None or now - self._since <= limits.idle:
            return ""
        if self._received < limits.slowest * limits.idle:
            return f"{self._received} bytes came in {limits.idle:g} s"
        self.begin()
        return ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server says: its status, its headers (names in small letters), and what of the body has come."""

    url: str
    status: int
    headers: Mapping[str, str]
    _response: http.client.HTTPResponse
    _watch: Watch

    @property
    def marks_its_end(self) -> bool:
        """Whether a body that broke off can be told from a whole one."""
        return self._response.length is not None or self._response.chunked

    def read(self, size: int) -> bytes:
        """What has come by now, at most ``size`` bytes; nothing at the end. Raises PassingError."""
        with _passing(self._watch, self.url):
            self._watch.back()
            block = self._response.read1(size)
            self._watch.leave(len(block))
            if not block and self._watch.reason:
                raise PassingError(self._watch.reason)
            return block


@contextlib.contextmanager
def answer(url: str, headers: Mapping[str, str], limits: Limits, deadline: float) -> Iterator[Answer]:
    """The answer to a GET, behind its redirects.

    Raises FetchError for a place that must not be asked and for a certificate that is not trusted, PassingError
    for what a later attempt may mend.
    """
    address = address_of(url)
    with Watch(limits, deadline) as watch:
        for _ in range(limits.redirects + 1):
            check_allowed(address, limits)
            with (
                contextlib.closing(_connection(address, limits, watch)) as connection,
                contextlib.closing(_asked(connection, address, headers, watch)) as response,
            ):
                if response.status not in _REDIRECTS or not response.headers.get("Location"):
                    named = {name.lower(): value.strip() for name, value in response.headers.items()}
                    yield Answer(address.url, response.status, named, response, watch)
                    return
                address = redirected(address, response.headers["Location"])
    raise FetchError(f"{url} is redirected more than {limits.redirects} times")


def _asked(connection: Any, address: Address, headers: Mapping[str, str], watch: Watch) -> http.client.HTTPResponse:
    with _passing(watch, address.url):
        watch.begin()
        said = {**connection.extra, **headers}
        connection.request("GET", connection.prefix + address.target, headers=said)
        response: http.client.HTTPResponse = connection.getresponse()
        if watch.reason:  # headers that end in the middle pass for headers
            response.close()  # which may have the socket for its own by now
            raise PassingError(watch.reason)
        watch.begin()
        watch.leave()
        return response


@contextlib.contextmanager
def _passing(watch: Watch, url: str) -> Iterator[None]:
    """Tells what may pass by itself from what will not."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise FetchError(
            f"{url}: the certificate of the host is not trusted: {error.verify_message}. If it is your own authority's,"
            " SSL_CERT_FILE names the file of certificates to trust"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        said = " ".join(str(error).split())[:200]  # it may hold what the server said
        if isinstance(error, socket.gaierror):
            said += ": is there a network? A path needs none, nor what is in the cache (TORCHINIT_CACHE)"
        raise PassingError(watch.reason or said or type(error).__name__) from error


class _Plain(http.client.HTTPConnection):
    """A connection to an address that was looked at, which shows its socket to the watch as soon as there is one."""

    prefix = ""
    extra: Mapping[str, str] = MappingProxyType({})

    def __init__(self, place: tuple[str, int], limits: Limits, watch: Watch, check: Check) -> None:
        super().__init__(*place, timeout=limits.idle)
        self._create_connection = self._dial  # which http.client calls
        self.check = check
        self.watch, watch.connection, watch.socket = watch, self, None

    def _dial(self, place: tuple[str, int], timeout: float, source: object) -> socket.socket:
        """Asks the DNS once: a second answer could lead elsewhere than the one that was looked at."""
        found = [str(where[0]) for *_, where in socket.getaddrinfo(*place, type=socket.SOCK_STREAM)]
        self.check(found)
        for ip in found[:-1]:
            with contextlib.suppress(OSError):
                return socket.create_connection((ip, place[1]), timeout)
        return socket.create_connection((found[-1], place[1]), timeout)

    def connect(self) -> None:
        super().connect()
        self.watch.socket = self.sock


class _Secure(_Plain):
    """A connection by TLS, inside a proxy's tunnel if there is one.

    The system's certificates are trusted, or those that SSL_CERT_FILE and SSL_CERT_DIR name.
    """

    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()
        name, context = getattr(self, "_tunnel_host", None) or self.host, ssl.create_default_context()
        # A socket that was shut or reset by now raises here: ssl would lose it, unclosed.
        self.sock.getpeername()
        # The handshake comes after the watch knows the socket, so that it cannot stand still either.
        self.sock = context.wrap_socket(self.sock, server_hostname=name, do_handshake_on_connect=False)
        self.watch.socket = self.sock
        self.sock.do_handshake()


def _connection(address: Address, limits: Limits, watch: Watch) -> http.client.HTTPConnection:
    proxy, secure = _proxy(address), address.scheme == "https"
    place = (proxy.hostname or "", proxy.port or 80) if proxy else (address.host, address.port)
    if proxy:  # which asks the DNS by itself, and lies inside the network
        check_public(address, _written_ip(address.host), limits)
    check = _anywhere if proxy else partial(check_public, address, limits=limits)
    made = (_Secure if secure else _Plain)(place, limits, watch, check)
    if proxy and secure:
        made.set_tunnel(address.host, address.port, headers=_credentials(proxy))
    elif proxy:
        made.prefix, made.extra = f"http://{address.place}", _credentials(proxy)
    return made


def _written_ip(host: str) -> tuple[str, ...]:
    """The IP address that a host is written as, in each way that resolvers read: ``127.1``, ``2130706433``."""
    with contextlib.suppress(OSError):
        return (socket.inet_ntoa(socket.inet_aton(host)),)
    return (host,) if ":" in host else ()


def _anywhere(found: Iterable[str]) -> None:
    """A proxy may lie anywhere."""


def _proxy(address: Address) -> SplitResult | None:
    """The proxy that the environment (HTTPS_PROXY, HTTP_PROXY, NO_PROXY) or the system names."""
    url = urllib.request.getproxies().get(address.scheme)
    if not url or urllib.request.proxy_bypass(address.place):
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise FetchError(f"the proxy {parts.scheme}://{parts.hostname} is not one that is spoken to by http")
    return parts


def _credentials(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {b64encode(pair.encode()).decode()}"}
