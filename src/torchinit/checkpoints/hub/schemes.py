"""Sources: where a checkpoint comes from, and the local file that it becomes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import unquote

from torchinit.checkpoints.hub import progress as meters
from torchinit.checkpoints.hub.cache import Cache, default_folder, hash_of
from torchinit.checkpoints.hub.config import Limits, from_environment
from torchinit.checkpoints.hub.download import Progress
from torchinit.checkpoints.hub.lockfile import Pin, lock_of
from torchinit.checkpoints.hub.prefixes import Prefixes
from torchinit.checkpoints.hub.refusals import check_hash
from torchinit.errors import FetchError, did_you_mean, masked

_SCHEME: Final = re.compile(r"([A-Za-z][\w+.-]*)://")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MOST_HOPS: Final = 8
_MORE: Final = "torchinit.checkpoints.register_source adds others, for an init_cfg CheckpointLoader.register_scheme"


@dataclass(frozen=True, slots=True)
class Request:
    """With what a source is resolved: the hash that its file must have, the revision that is locked, the bounds."""

    limits: Limits
    progress: Progress
    cache: Cache
    sha256: str | None = None
    revision: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A local file, and where it was found as far as that is known."""

    path: Path
    url: str = ""
    revision: str = ""


Resolver: TypeAlias = Callable[[str, Request], Found | Path | str]
"""Makes of a source a local file, or another source that leads to it."""

RESOLVERS: Final[Prefixes[Resolver]] = Prefixes()
"""How each kind of source is resolved."""


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
    text, wanted, locked = os.fspath(source), _hash(sha256), lock_of(lock, frozen)
    pin = locked.pin(text, wanted)
    with meters.shown(text, progress) as told, locked.named() if pin else nullcontext():
        found = resolve(text, _request(pin, wanted, limits, told))
    if locked.path and pin is None:
        locked.add(text, _pin(text, found))
    return found.path


def _pin(source: str, found: Found) -> Pin:
    """What the lock file records of a source."""
    if not found.path.is_file():
        raise FetchError(f"{source} is no file, so it cannot be recorded in a lock file")
    url = masked(found.url) if found.url not in (source, masked(source)) else ""
    return Pin(hash_of(found.path), found.path.stat().st_size, url, found.revision)


def _request(pin: Pin | None, sha256: str | None, limits: Limits | None, progress: Progress) -> Request:
    cache, bounds = Cache(default_folder()), limits or from_environment()
    return (
        Request(bounds, progress, cache, pin.sha256, pin.revision) if pin else Request(bounds, progress, cache, sha256)
    )


def _hash(sha256: str | None) -> str | None:
    if sha256 is None:
        return None
    text = sha256.strip().lower().removeprefix("sha256:")
    if not _SHA256.fullmatch(text):
        raise FetchError(f"a sha256 has 64 hexadecimal digits, but got {sha256!r}")
    return text


def resolve(source: str, request: Request) -> Found:
    """The local file of a source, checked by its hash; follows sources that lead to other sources."""
    made: Found | Path | str = source
    for _ in range(_MOST_HOPS):
        if isinstance(made, str):
            made = _resolver(made)(made, request)
        else:
            found = made if isinstance(made, Found) else Found(made)
            _check_file(source, found.path, request.sha256)
            return found
    raise FetchError(f"{source} leads from source to source, {_MOST_HOPS} times and on")


def _resolver(source: str) -> Resolver:
    found, scheme = RESOLVERS.find(source), _SCHEME.match(source)
    if found is None or (scheme and found is _local):
        known = [prefix.removesuffix("://") for prefix in RESOLVERS if prefix]
        near = did_you_mean(scheme[1], known) if scheme else ""
        raise FetchError(
            f"{source}: nobody registered this kind of source{near}", [f"known are {', '.join(known)}; {_MORE}"]
        )
    return found


def _check_file(source: str, path: Path, sha256: str | None) -> None:
    if sha256 is not None:
        if not path.is_file():
            raise FetchError(f"{source} is no file, so it has no sha256")
        check_hash(source, hash_of(path), sha256)


def register_source(prefixes: str | Iterable[str], resolver: Resolver, *, force: bool = False) -> None:
    """Lets sources that begin so be resolved by a function of the source and the :class:`Request`.

    The function returns a local path, or another source that leads to it. Raises KeyError for a prefix that is
    taken, unless ``force`` replaces it.

    >>> register_source("models://", lambda source, request: f"/nfs/models/{source[9:]}", force=True)
    >>> fetch("models://a.pth")
    Traceback (most recent call last):
    FileNotFoundError: /nfs/models/a.pth can not be found.
    >>> fetch("model://a.pth")
    Traceback (most recent call last):
    torchinit.errors.FetchError: model://a.pth: nobody registered this kind of source; did you mean 'models'?
      known are ...
    """
    RESOLVERS.register(prefixes, resolver, force=force)


def _local(source: str, request: Request) -> Path:
    path = Path(source).expanduser()
    if not path.exists():
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        near = did_you_mean(path.name, [other.name for other in beside if not other.name.startswith(("_", "."))])
        raise FileNotFoundError(f"{path} can not be found.{near.replace('; d', ' D')}")
    return path


def _file(source: str, request: Request) -> Path:
    return _local(unquote(source.removeprefix("file://").removeprefix("localhost")), request)


def _web(source: str, request: Request) -> Found:
    if source.startswith("http://") and request.sha256 is None:
        raise FetchError(f"{source}: anyone on the way can change what comes by http; give its sha256, or use https://")
    entry = request.cache.get(source, request.limits, sha256=request.sha256, progress=request.progress)
    return Found(entry.path, entry.url)


register_source("", _local)
register_source("file://", _file)
register_source(("http://", "https://"), _web)
