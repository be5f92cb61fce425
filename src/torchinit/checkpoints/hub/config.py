"""Limits: how much a download may take, and from where it may come."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from torchinit.errors import FetchError

_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", re.IGNORECASE)
_SWITCH: Final = {"": False, "0": False, "false": False, "no": False, "off": False} | dict.fromkeys(
    ("1", "true", "yes", "on"), True
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a download may take, and from where it may come.

    ``size`` in bytes; ``idle``, the seconds in which an answer must begin, and after it at least ``slowest``
    bytes a second must come; ``total``, the seconds for everything, retries included; ``attempts``, how often
    what may pass by itself is tried, with a pause that starts at ``pause`` seconds and doubles; ``redirects`` that
    are followed. ``hosts`` are the only ones that are asked, ``"*.example.org"`` is any below it, ``"*"`` any; none
    means all. ``private`` are those that may lie at an address which is not on the internet; whoever is in
    ``hosts`` may, too. ``offline`` asks nobody.

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
        return not self.hosts or _names(self.hosts, host)

    def allows_private(self, host: str) -> bool:
        """Whether a host may be asked that is not on the internet."""
        return _names((*self.hosts, *self.private), host)


def _names(patterns: tuple[str, ...], host: str) -> bool:
    return any(_covers(_host(pattern), _host(host)) for pattern in patterns)


def _host(name: str) -> str:
    return name.strip().casefold().rstrip(".")


def _covers(pattern: str, name: str) -> bool:
    return name.endswith(pattern[1:]) if pattern.startswith("*.") else pattern in (name, "*")


def from_environment(environment: Mapping[str, str] = os.environ) -> Limits:
    """The limits that the environment sets, the usual ones where it is silent; FetchError for what it cannot mean.

    >>> limits = from_environment({"TORCHINIT_MAX_DOWNLOAD": "2GB", "TORCHINIT_ALLOWED_HOSTS": "a.org, b.org"})
    >>> limits.size, limits.hosts
    (2000000000, ('a.org', 'b.org'))
    """
    usual = Limits()
    size = environment.get("TORCHINIT_MAX_DOWNLOAD", "")
    idle = environment.get("TORCHINIT_TIMEOUT", "")
    return Limits(
        size=bytes_of(size) if size else usual.size,
        idle=_seconds(idle) if idle else usual.idle,
        hosts=_listed("TORCHINIT_ALLOWED_HOSTS", environment),
        private=_listed("TORCHINIT_PRIVATE_HOSTS", environment),
        offline=switch("TORCHINIT_OFFLINE", environment),
    )


def _listed(name: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(host.strip() for host in environment.get(name, "").split(",") if host.strip())


def switch(name: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether an environment variable says yes; not set is no."""
    text = environment.get(name, "").strip().lower()
    if text not in _SWITCH:
        raise FetchError(f"{name}={text!r} is neither yes nor no; set it to 1 or 0")
    return _SWITCH[text]


def bytes_of(text: str) -> int:
    """The bytes that a size like ``500MB`` means.

    >>> bytes_of("500MB"), bytes_of("1.5 g"), bytes_of("12")
    (500000000, 1500000000, 12)
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise FetchError(f"TORCHINIT_MAX_DOWNLOAD={text!r} is no size; write 500MB or 20GB, for example")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text.strip()) or not float(text):
        raise FetchError(f"TORCHINIT_TIMEOUT={text!r} is no number of seconds above 0")
    return float(text)
