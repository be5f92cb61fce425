"""Addresses: where a URL leads, checked before anybody is asked."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Final, Literal, TypeAlias, cast
from urllib.parse import quote, unquote, urljoin, urlsplit

from torchinit.checkpoints.hub.config import Limits
from torchinit.errors import FetchError

Scheme: TypeAlias = Literal["http", "https"]

_PORTS: Final = {"http": 80, "https": 443}
# Local proxies that answer for the DNS let names stand at these addresses, whatever the network.
_STAND_INS: Final = ipaddress.IPv4Network("198.18.0.0/15")
_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_HOLDERS: Final = tuple(map(ipaddress.IPv6Network, ("::/96", "64:ff9b::/96", "64:ff9b:1::/48")))
_LONGEST_NAME: Final = 100


@dataclass(frozen=True, slots=True)
class Address:
    """A URL in its parts: ``target`` is what the host is asked for, ``url`` is the whole without its fragment."""

    url: str
    scheme: Scheme
    host: str
    port: int
    target: str
    via: str = field(default="", compare=False)
    """The URL that redirects here, if one does."""

    def __str__(self) -> str:
        return f"{self.url}, to which {self.via} redirects" if self.via else self.url

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
    return replace(target, via=address.via or address.url)


def check_allowed(address: Address, limits: Limits) -> None:
    """Raises FetchError where the limits keep us from asking this host."""
    if limits.offline:
        raise FetchError(
            f"{address} is not in the cache, and TORCHINIT_OFFLINE is set; fetch it once while online"
            " (torchinit fetch URL)"
        )
    if not limits.allows(address.host):
        raise FetchError(
            f"{address}: the host {address.host!r} is not allowed; TORCHINIT_ALLOWED_HOSTS names"
            f" {', '.join(limits.hosts)}"
        )


def check_public(address: Address, found: Iterable[str], limits: Limits) -> None:
    """Raises FetchError where one of the IP addresses of a host is not on the internet, and the limits do not name it.

    What is there can be asked from here alone: other machines of the network, this machine, a cloud's metadata.
    """
    inside = [text for text in found if not is_public(text)]
    if inside and not limits.allows_private(address.host):
        raise FetchError(
            f"{address}: the host is at {inside[0]}, inside this network; if it is meant to be,"
            f" TORCHINIT_PRIVATE_HOSTS={address.host} lets it be asked"
        )


def is_public(text: str) -> bool:
    """Whether an IP address is on the internet; one that holds another, as IPv6 can, is what that is.

    >>> is_public("1.1.1.1"), is_public("10.0.0.1"), is_public("::ffff:127.0.0.1"), is_public("169.254.169.254")
    (True, False, False, False)
    """
    ip = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and (inner := _inner(ip)):
        ip = inner
    if isinstance(ip, ipaddress.IPv4Address):
        return ip in _STAND_INS or (ip.is_global and not ip.is_multicast)
    return ip in _UNICAST and ip.is_global


def _inner(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address stands for: mapped, compatible, by 6to4, or by NAT64."""
    last = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip.ipv4_mapped or ip.sixtofour or (last if any(ip in net for net in _HOLDERS) else None)


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
