"""Addresses: where a URL leads, checked before anybody is asked."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, Literal, TypeAlias, cast
from urllib.parse import quote, unquote, urljoin, urlsplit

from torchinit.checkpoints.limits import Limits
from torchinit.errors import FetchError

Scheme: TypeAlias = Literal["http", "https"]

_PORTS: Final = {"http": 80, "https": 443}
_LONGEST_NAME: Final = 100


@dataclass(frozen=True, slots=True)
class Address:
    """A URL in its parts: ``target`` is what the host is asked for, ``url`` is the whole without its fragment."""

    url: str
    scheme: Scheme
    host: str
    port: int
    target: str

    @property
    def place(self) -> str:
        """Host and port, without the port that is usual."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def address_of(url: str) -> Address:
    """The parts of an http or https URL. Raises FetchError for any other text.

    >>> address = address_of("https://Example.org:8000/a b.pth?x=1#part")
    >>> address.url, address.host, address.port, address.target
    ('https://example.org:8000/a%20b.pth?x=1', 'example.org', 8000, '/a%20b.pth?x=1')
    """
    # urlsplit would drop line breaks without a word.
    if any(unicodedata.category(character) == "Cc" for character in url):
        raise FetchError(f"{url!r} holds a control character")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError as error:
        raise FetchError(f"{url} is no URL: {error}") from None
    if parts.scheme not in _PORTS or not host:
        raise FetchError(f"{url} is no http or https URL with a host")
    if parts.username is not None or parts.password is not None:
        raise FetchError(f"{_bare(url)}: a URL with a user or a password would be recorded with them; leave them out")
    scheme = cast("Scheme", parts.scheme)
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (f"?{_query(parts.query)}" if parts.query else "")
    whole = Address("", scheme, host, port or _PORTS[scheme], target)
    return Address(f"{scheme}://{whole.place}{target}", scheme, host, whole.port, target)


def _query(text: str) -> str:
    return quote(text, safe="/%:@!$&'()*+,;=~?")


def _bare(url: str) -> str:
    """The URL without what stands before the host."""
    return re.sub(r"//[^/?#]*@", "//", url, count=1)


def redirected(address: Address, location: str) -> Address:
    """Where a redirect leads: never off https, to no other scheme. Raises FetchError."""
    try:
        url = urljoin(address.url, location)
        target = address_of(url)
    except (FetchError, ValueError) as error:
        raise FetchError(f"{address.url} redirects to {location!r}, which is refused: {error}") from None
    if address.scheme == "https" and target.scheme != "https":
        raise FetchError(f"{address.url} redirects to {target.url}, which is refused: it leaves https")
    return target


def check_allowed(address: Address, limits: Limits) -> None:
    """Raises FetchError where the limits keep us from asking this host."""
    if limits.offline:
        raise FetchError(
            f"{address.url} is not in the cache, and TORCHINIT_OFFLINE is set; fetch it once while online"
            " (torchinit fetch URL)"
        )
    if not limits.allows(address.host):
        raise FetchError(
            f"{address.url}: the host {address.host!r} is not allowed; TORCHINIT_ALLOWED_HOSTS names"
            f" {', '.join(limits.hosts)}"
        )


def name_of(url: str) -> str:
    """A name for the file behind a URL: its last part, safe for any file system and never hidden.

    >>> name_of("https://example.org/weights/resnet50.pth?download=1")
    'resnet50.pth'
    >>> name_of("https://example.org/..%2f..%2fetc%2fpasswd"), name_of("https://example.org/")
    ('passwd', 'file')
    """
    last = PurePosixPath(unquote(urlsplit(url).path).replace("\\", "/")).name
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", last).lstrip(".")
    return _shortened(safe.rstrip(".")) or "file"


def _shortened(name: str) -> str:
    """The name cut at its front, since the suffix tells what is in the file."""
    return name[-_LONGEST_NAME:].lstrip(".")
