"""Config: the limits of downloads, by arguments or by the environment, and the report of their progress."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from torchinit.errors import FetchError

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
    for field, name in (("hosts", "TORCHINIT_ALLOWED_HOSTS"), ("private", "TORCHINIT_PRIVATE_HOSTS")):
        bounds[field] = tuple(host.strip() for host in environment.get(name, "").split(",") if host.strip())
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
