"""Config: how much a download may take and from where it may come, in Python or by the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from torchinit.errors import FetchError

_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", re.IGNORECASE)
_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a download may take, and from where it may come.

    ``size`` in bytes; ``idle``, the seconds in which an answer must begin, and after it at least ``slowest``
    bytes a second must come; ``total``, the seconds for everything, retries included; ``attempts``, how often
    a transient failure is tried, with a pause that starts at ``pause`` seconds and doubles; ``redirects`` that
    are followed. ``hosts`` are the only ones that are asked, ``"*.example.org"`` is any below it, ``"*"`` any; none
    means all. ``private`` are those that may lie at an address which is not on the internet, as those in ``hosts``
    may. ``offline`` asks nobody.

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
    """The limits that the environment sets, and the defaults for the rest. Raises FetchError for unclear values.

    >>> limits = from_environment({"TORCHINIT_MAX_DOWNLOAD": "2GB", "TORCHINIT_ALLOWED_HOSTS": "a.org, b.org"})
    >>> limits.size, limits.hosts
    (2000000000, ('a.org', 'b.org'))
    """
    size, idle = environment.get("TORCHINIT_MAX_DOWNLOAD", ""), environment.get("TORCHINIT_TIMEOUT", "")
    return Limits(
        size=_bytes(size) if size else Limits().size,
        idle=_seconds(idle) if idle else Limits().idle,
        hosts=_names("TORCHINIT_ALLOWED_HOSTS", environment),
        private=_names("TORCHINIT_PRIVATE_HOSTS", environment),
        offline=switch("TORCHINIT_OFFLINE", environment),
    )


def switch(name: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether an environment variable is on; one that is not set is off."""
    text = environment.get(name, "").strip().lower()
    if text not in _YES + _NO:
        raise FetchError(f"{name}={text!r} is neither yes nor no; set it to 1 or 0")
    return text in _YES


def _names(name: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(host.strip() for host in environment.get(name, "").split(",") if host.strip())


def _bytes(text: str) -> int:
    size = _SIZE.fullmatch(text.strip())
    if not size:
        raise FetchError(f"TORCHINIT_MAX_DOWNLOAD={text!r} is not a size; write 500MB or 20GB, for example")
    return int(float(size[1]) * _UNITS[size[2].lower()])


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text.strip()) or not float(text):
        raise FetchError(f"TORCHINIT_TIMEOUT={text!r} is not a number of seconds above 0")
    return float(text)
