"""URLs: where an address leads, checked before any host is asked, and the limits of a download."""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeAlias
from urllib.parse import quote, unquote, urljoin, urlsplit

from torchinit.errors import FetchError

_PORTS: Final = {"http": 80, "https": 443}
_HOST: Final = re.compile(r"[\w.-]+|[0-9a-f:.]*:[0-9a-f:.]*(%[\w.-]+)?", re.ASCII)
# Local proxies that answer for the DNS let names stand at these addresses, whatever the network.
_STAND_INS: Final = ipaddress.IPv4Network("198.18.0.0/15")
_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_EMBEDDING: Final = tuple(map(ipaddress.IPv6Network, ("::/96", "64:ff9b::/96", "64:ff9b:1::/48")))
_SAFE: Final = "/%:@!$&'()*+,;=~"
_LONGEST_NAME: Final = 100
_URL: Final = re.compile(r"[A-Za-z][\w+.-]*://")
_OUTSIDE: Final = re.compile(r"[\\:?#%]|^/|(^|/)\.{1,2}(/|$)|//|/$")


@dataclass(frozen=True, slots=True)
class Address:
    """A URL without its fragment, in one spelling, and its parts; ``via`` is the URL that redirects here, if any."""

    url: str
    scheme: str
    host: str
    via: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.url}, to which {self.via} redirects" if self.via else self.url


def address_of(url: str) -> Address:
    """The address that an http or https URL names. Raises FetchError for any other text."""
    if _has_category(url, "Cc"):  # urlsplit would drop line breaks without a word
        raise FetchError(f"{url!r} holds a control character")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError as error:
        raise FetchError(f"{url} is not a URL: {error}") from None
    if parts.scheme not in _PORTS or not host:
        raise FetchError(f"{url} is not an http or https URL with a host")
    if parts.username is not None or parts.password is not None:
        bare = re.sub(r"//[^/?#]*@", "//", url, count=1)
        raise FetchError(f"{bare}: a URL with a user or a password would be recorded with them; leave them out")
    # Parsers disagree about other letters (a backslash ends the host for some), so checked and asked could differ.
    if not _HOST.fullmatch(host):
        raise FetchError(f"{url} is not a URL: {host!r} is not the name of a host")
    place = f"[{host}]" if ":" in host else host
    place += f":{port}" if port not in (None, 0, _PORTS[parts.scheme]) else ""
    query = f"?{quote(parts.query, safe=_SAFE + '?')}" if parts.query else ""
    return Address(f"{parts.scheme}://{place}{quote(parts.path or '/', safe=_SAFE)}{query}", parts.scheme, host)


def _has_category(text: str, *categories: str) -> bool:
    return any(unicodedata.category(character) in categories for character in text)


def redirected(address: Address, location: str) -> Address:
    """The address that a redirect leads to: never off https, to no other scheme. Raises FetchError."""
    try:
        target = address_of(urljoin(address.url, location))
    except (FetchError, ValueError) as error:
        raise FetchError(f"{address.url} redirects to {location!r}, which is refused: {error}") from None
    if address.scheme == "https" and target.scheme != "https":
        raise FetchError(f"{address.url} redirects to {target.url}, which is refused: it leaves https")
    return replace(target, via=address.via or address.url)


def check_allowed(address: Address, limits: Limits) -> None:
    """Raise FetchError where the limits do not let this host be asked."""
    if limits.offline:
        remedy = "fetch it once while online (torchinit fetch URL)"
        raise FetchError(f"{address} is not in the cache, and TORCHINIT_OFFLINE is set; {remedy}")
    if not limits.allows(address.host):
        names = ", ".join(limits.hosts)
        raise FetchError(f"{address}: the host {address.host!r} is not allowed; TORCHINIT_ALLOWED_HOSTS names {names}")


def check_public(address: Address, ips: Iterable[str], limits: Limits) -> None:
    """Raise FetchError where an IP address of a host is not on the internet, and the limits do not name the host."""
    # A recipe may be a stranger's, and such addresses can be asked from here alone: other machines of the network,
    # this machine, a cloud's metadata. Comparing addresses where a connection is made is one rule for names, redirects
    # and rebinding; a mirror of one's own costs one variable, once.
    private = [ip for ip in ips if not is_public(ip)]
    if private and not limits.allows_private(address.host):
        remedy = f"if it is meant to be, TORCHINIT_PRIVATE_HOSTS={address.host} lets it be asked"
        raise FetchError(f"{address}: the host is at {private[0]}, inside this network; {remedy}")


def is_public(text: str) -> bool:
    """Whether an IP address is on the internet; one that embeds another, as IPv6 can, counts as that."""
    ip = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        last = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        ip = ip.ipv4_mapped or ip.sixtofour or (last if any(ip in net for net in _EMBEDDING) else ip)
    if isinstance(ip, ipaddress.IPv4Address):
        return ip in _STAND_INS or (ip.is_global and not ip.is_multicast)
    return ip in _UNICAST and ip.is_global


def name_of(url: str) -> str:
    """A name for the file behind a URL: its last part, safe for any file system and never hidden."""
    last = PurePosixPath(unquote(urlsplit(url).path).replace("\\", "/")).name
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", last).strip(".")
    return safe[-_LONGEST_NAME:].lstrip(".") or "file"  # cut at its front: the suffix tells what is in the file


def member_of(source: str | os.PathLike[str], name: str) -> str:
    """The source of a file that an index names, in the folder of the index or below it.

    Raises FetchError for a name that leads anywhere else: absolute, with ``..``, a backslash, a drive, a URL.
    The revision of an ``hf://`` source, and the query of a URL, stay.

    >>> member_of("https://example.org/m/model.safetensors.index.json?download=1", "model-00001.safetensors")
    'https://example.org/m/model-00001.safetensors?download=1'
    >>> member_of("hf://org/repo/model.safetensors.index.json@v1", "part-1.safetensors")
    'hf://org/repo/part-1.safetensors@v1'
    >>> member_of("https://example.org/m/index.json", "../secret")
    Traceback (most recent call last):
    torchinit.errors.FetchError: https://example.org/m/index.json names '../secret', which is not in its folder
    """
    index = os.fspath(source)
    if not name or _has_category(name, "Cc", "Cs") or _OUTSIDE.search(name):
        raise FetchError(f"{index} names {name!r}, which is not in its folder")
    if not _URL.match(index):
        return str(Path(index).parent / name)
    if index.startswith(("http://", "https://")):
        parts = urlsplit(index)
        return parts._replace(path=f"{parts.path.rpartition('/')[0]}/{quote(name)}", fragment="").geturl()
    folder, _, last = index.rpartition("/")
    revision = "".join(last.partition("@")[1:]) if index.startswith("hf://") else ""
    return f"{folder}/{name}{revision}"


_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", re.IGNORECASE)
_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")

Progress: TypeAlias = Callable[[int, int | None], object]
"""A function that is told how many bytes have come, and of how many, where that is known."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a download may take, and from where it may come.

    ``size`` in bytes; ``idle``, the seconds in which an answer must begin, and after it at least ``slowest``
    bytes a second must come; ``total``, the seconds for everything, retries included; ``attempts``, how often
    a transient failure is tried, with a pause that starts at ``pause`` seconds and doubles; ``redirects`` that
    are followed. ``hosts`` are the only ones that are asked, ``"*.example.org"`` is any below it, ``"*"`` any; none
    means all. ``private`` are those that may lie at an address which is not on the internet, as those in ``hosts``
    may. ``offline`` asks no host.

    >>> Limits(hosts=("example.org", "*.example.org")).allows("cdn.example.org")
    True
    >>> Limits(hosts=("example.org",)).allows("example.org.evil.net")
    False
    """

    size: int = 100 * 10**9
    idle: float = 30.0
    slowest: int = 1000
    total: float = 6 * 3600.0
    attempts: int = 5
    pause: float = 0.5
    redirects: int = 5
    hosts: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    offline: bool = False

    def allows(self, host: str) -> bool:
        """Whether a host may be asked."""
        return not self.hosts or _covers(self.hosts, host)

    def allows_private(self, host: str) -> bool:
        """Whether a host may be asked that is not on the internet."""
        return _covers((*self.hosts, *self.private), host)


def _covers(patterns: tuple[str, ...], host: str) -> bool:
    name, *known = (text.strip().casefold().rstrip(".") for text in (host, *patterns))
    return any(name.endswith(text[1:]) if text.startswith("*.") else text in (name, "*") for text in known)


def from_environment(environment: Mapping[str, str] = os.environ) -> Limits:
    """The limits that the environment sets, and the defaults for the rest. Raises FetchError for unclear values."""
    bounds: dict[str, Any] = {}
    if text := environment.get("TORCHINIT_MAX_DOWNLOAD"):
        if not (size := _SIZE.fullmatch(text.strip())):
            raise FetchError(f"TORCHINIT_MAX_DOWNLOAD={text!r} is not a size; write 500MB or 20GB, for example")
        bounds["size"] = int(min(float(size[1]), 1e18) * _UNITS[size[2].lower()])
    if text := environment.get("TORCHINIT_TIMEOUT"):
        if not re.fullmatch(r"\d+(\.\d+)?", text.strip()) or not float(text):
            raise FetchError(f"TORCHINIT_TIMEOUT={text!r} is not a number of seconds above 0")
        bounds["idle"] = min(float(text), 1e9)
    for option, name in (("hosts", "TORCHINIT_ALLOWED_HOSTS"), ("private", "TORCHINIT_PRIVATE_HOSTS")):
        bounds[option] = tuple(host.strip() for host in environment.get(name, "").split(",") if host.strip())
    return Limits(offline=is_on("TORCHINIT_OFFLINE", environment), **bounds)


def is_on(name: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether an environment variable is on; one that is not set is off."""
    text = environment.get(name, "").strip().lower()
    if text not in _YES + _NO:
        raise FetchError(f"{name}={text!r} is neither yes nor no; set it to 1 or 0")
    return text in _YES


@contextlib.contextmanager
def show_progress(source: str, progress: Progress | None) -> Iterator[Progress]:
    """The function to tell: the given one, else a bar on standard error where that is a terminal, else none."""
    if progress is not None or not (sys.stderr.isatty() and importlib.util.find_spec("rich")):
        yield progress or (lambda done, total: None)
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = *Bar.get_default_columns(), DownloadColumn(), TransferSpeedColumn()
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(source.rpartition("/")[2], total=None)

    def update(done: int, total: int | None) -> None:
        bar.start()  # at the first byte, not before; does nothing if it has started
        bar.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        bar.stop()
