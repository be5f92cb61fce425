"""Schemes: the local file that a source leads to, by how the source begins."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeAlias, TypeVar
from urllib.parse import unquote

from torchinit._files import expanded
from torchinit._limits import HOPS
from torchinit._text import did_you_mean, masked
from torchinit.checkpoints.hub.cache import Cache, HashMismatchError, Request, check_hash, default_folder, hash_of
from torchinit.checkpoints.hub.config import Limits, Progress, from_environment, show_progress
from torchinit.checkpoints.hub.lockfile import Pin, lock_of
from torchinit.checkpoints.hub.urls import address_of, check_allowed
from torchinit.errors import FetchError

T = TypeVar("T")

_SCHEME: Final = re.compile(r"([A-Za-z][\w+.-]*)://")
_MORE: Final = "torchinit.checkpoints.register_source adds others, for an init_cfg CheckpointLoader.register_scheme"


class Prefixes(Generic[T]):
    """Values by how a source begins.

    A prefix is a regular expression that is matched at the start, as MMEngine's schemes are. They are tried in
    reverse alphabetical order, so the longer one comes before the shorter, and ``""``, which takes all, comes last.
    """

    def __init__(self) -> None:
        self._values: dict[str, T] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._values, reverse=True))

    def register(self, prefixes: str | Iterable[str], value: T, *, force: bool = False) -> None:
        """Let prefixes stand for a value. Raises KeyError for one that is taken, unless ``force`` replaces it."""
        names = [prefixes] if isinstance(prefixes, str) else list(prefixes)
        taken = sorted(self._values.keys() & set(names))
        if taken and not force:
            raise KeyError(f"{', '.join(taken)}: registered already; force=True replaces it")
        self._values.update(dict.fromkeys(names, value))

    def find(self, source: str) -> T | None:
        """The value for the beginning of a source; None if none is registered."""
        return next((self._values[prefix] for prefix in self if re.match(prefix, source)), None)


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A local file, and where it came from, as far as that is known."""

    path: Path
    url: str = ""
    revision: str = ""


Resolver: TypeAlias = Callable[[str, Request], LocalFile | Path | str]
"""A function from a source to a local file, or to another source that leads to it."""

RESOLVERS: Final[Prefixes[Resolver]] = Prefixes()


def fetch(
    source: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    lock: str | os.PathLike[str] | None = None,
    frozen: bool | None = None,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> Path:
    """The local file of a source: a path, ``file://``, ``https://``, ``hf://``, ``torchvision://``, ``timm://``.

    What comes from a URL lies in a cache, and is fetched once. ``sha256`` is the hash that the file must have;
    ``http://`` wants it. A lock file (``lock``, or else the variable TORCHINIT_LOCK) records which file each
    source was, and refuses another one; ``frozen`` (or TORCHINIT_FROZEN=1) refuses sources that are not in it.
    ``progress`` is told how far a download is; without one a bar shows in a terminal. ``limits`` are those of
    the environment. Raises FetchError, MissingExtraError, and FileNotFoundError for a path where nothing is.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.pth")
    ...     _ = path.write_bytes(b"weights")
    ...     fetch(path) == fetch(f"file://{path}") == path
    True
    >>> fetch("http://example.org/a.pth")
    Traceback (most recent call last):
    torchinit.errors.FetchError: http://example.org/a.pth: anyone on the way can change what comes by http; ...
    """
    text, lockfile = os.fspath(source), lock_of(lock, frozen)
    wanted = sha256 and sha256.strip().lower().removeprefix("sha256:")
    if wanted is not None and not re.fullmatch(r"[0-9a-f]{64}", wanted):
        raise FetchError(f"a sha256 has 64 hexadecimal digits, but got {sha256!r}")
    pin = lockfile.pin(text, wanted)
    wanted, revision = (pin.sha256, pin.revision) if pin else (wanted, "")
    try:
        with show_progress(text, progress) as shown:
            request = Request(limits or from_environment(), shown, Cache(default_folder()), wanted, revision)
            file = resolve(text, request)
    except HashMismatchError as error:
        remedy = f"{lockfile.path} has the wanted one; if the change is right, remove the source there"
        raise HashMismatchError(error.headline, [*error.problems, *[remedy] * bool(pin)]) from error
    if lockfile.path and pin is None:
        if not file.path.is_file():
            raise FetchError(f"{text} is not a file, so it cannot be recorded in a lock file")
        url = masked(file.url) if file.url not in (text, masked(text)) else ""
        lockfile.add(text, Pin(hash_of(file.path), file.path.stat().st_size, url, file.revision))
    return file.path


def resolve(source: str, request: Request) -> LocalFile:
    """The local file of a source, checked by its hash; follows sources that lead to other sources."""
    target: LocalFile | Path | str = source
    for _ in range(HOPS):
        if isinstance(target, str):
            target = _resolver(target)(target, request)
            continue
        file = target if isinstance(target, LocalFile) else LocalFile(target)
        if request.sha256 is not None:
            if not file.path.is_file():
                raise FetchError(f"{source} is not a file, so it has no sha256")
            check_hash(source, hash_of(file.path), request.sha256)
        return file
    raise FetchError(f"{source} leads from source to source, {HOPS} times and on")


def _resolver(source: str) -> Resolver:
    resolver, scheme = RESOLVERS.find(source), _SCHEME.match(source)
    if resolver is None or (scheme and resolver is _local):
        known = [prefix.removesuffix("://") for prefix in RESOLVERS if prefix]
        near = did_you_mean(scheme[1], known) if scheme else ""
        problems = [f"known are {', '.join(known)}; {_MORE}"]
        raise FetchError(f"{source}: this kind of source is not registered{near}", problems)
    return resolver


def register_source(prefixes: str | Iterable[str], resolver: Resolver, *, force: bool = False) -> None:
    """Let sources that begin so be resolved by a function of the source and the :class:`Request`.

    The function returns a local path, or another source that leads to it. Raises KeyError for a prefix that is
    taken, unless ``force`` replaces it.

    >>> register_source("models://", lambda source, request: f"/nfs/models/{source[9:]}", force=True)
    >>> fetch("models://a.pth")
    Traceback (most recent call last):
    FileNotFoundError: /nfs/models/a.pth can not be found.
    >>> fetch("model://a.pth")
    Traceback (most recent call last):
    torchinit.errors.FetchError: model://a.pth: this kind of source is not registered; did you mean 'models'?
      known are ...
    """
    RESOLVERS.register(prefixes, resolver, force=force)


def _local(source: str, request: Request) -> Path:
    path = expanded(source)
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path} can not be found: it is a link to {str(path.readlink())!r}, where nothing is")
    if not path.exists():
        if path.is_symlink():
            raise FileNotFoundError(
                f"{path} can not be found. It is a link to {str(path.readlink())!r}, which leads nowhere"
            )
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        near = did_you_mean(path.name, [other.name for other in beside if not other.name.startswith(("_", "."))])
        raise FileNotFoundError(f"{path} can not be found.{near.replace('; d', ' D')}")
    return path


def _file_url(source: str, request: Request) -> Path:
    return _local(unquote(source.removeprefix("file://").removeprefix("localhost")), request)


def _web(source: str, request: Request) -> LocalFile:
    if source.startswith("http://") and request.sha256 is None:
        remedy = "give its sha256, which may stand in a lock file (TORCHINIT_LOCK), or use https://"
        raise FetchError(f"{source}: anyone on the way can change what comes by http; {remedy}")
    entry = request.cache.valid(source, request.sha256)
    if entry is None:
        check_allowed(address_of(source), request.limits)
        try:  # not before, for it imports urllib3
            from torchinit.checkpoints.hub.download import download
        except ModuleNotFoundError as error:
            remedy = f"{error.name} is not installed: pip install {error.name}"
            raise FetchError(f"{source} cannot be fetched: {remedy}") from error
        entry = download(source, request)
    return LocalFile(entry.path, entry.url)


register_source("", _local)
register_source("file://", _file_url)
register_source(("http://", "https://"), _web)
