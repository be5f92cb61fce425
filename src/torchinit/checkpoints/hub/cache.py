"""The cache: files from URLs, one entry a URL, each whole and with its hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from torchinit._files import expanded, read_bounded, replacing
from torchinit._limits import NOTE_BYTES
from torchinit._text import masked
from torchinit.checkpoints.hub.config import Limits, Progress
from torchinit.checkpoints.hub.urls import address_of, name_of
from torchinit.errors import FetchError

_NOTE: Final = ".entry.json"
_FOLDER: Final = re.compile(r"[0-9a-f]{32}")


class HashMismatchError(FetchError):
    """A file that is whole, but not the one that was asked for."""


def check_hash(source: str, found: str, wanted: str | None) -> None:
    """Refuse a file that is not the one that was asked for; the beginning of a hash may be asked for."""
    if not found.startswith(wanted or ""):
        both = [f"wanted sha256 {wanted}", f"found  sha256 {found}"]
        raise HashMismatchError(f"{source} is not the file that was asked for", both)


def hash_of(path: Path) -> str:
    """The SHA-256 of a file; read once a process as long as the file is not touched."""
    # That costs a pass over the file, whose pages are then in memory for the load, and finds the bit that no format
    # finds. A hash that is only looked up beside the file would show nothing of what the disk did to it since.
    return _hash_of(path, stamp_of(path))


@lru_cache(maxsize=4096)
def _hash_of(path: Path, _: object) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_of(path: Path | str) -> tuple[int, int, int] | None:
    """A value that differs once a file was touched or replaced; None where there is no file."""
    try:
        seen = os.stat(path)  # noqa: PTH116  # of text it takes half the time, and every tensor asks for it
    except OSError:
        return None
    return seen.st_ino, seen.st_size, seen.st_mtime_ns


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that it is always the old one or the new one."""
    with replacing(path) as file:
        file.write(text.encode())


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One file of the cache, and the note beside it: its masked URL, its hash, when it came (seconds since 1970)."""

    url: str
    sha256: str
    size: int
    path: Path
    fetched: float

    @classmethod
    def read(cls, folder: Path) -> CacheEntry | None:
        try:
            data = json.loads(read_bounded(folder / _NOTE, NOTE_BYTES))
            url, sha256 = str(data["url"]), str(data["sha256"])
            entry = cls(url, sha256, int(data["size"]), folder / name_of(url), float(data["fetched"]))
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None
        return entry if entry.path.is_file() else None

    def write(self) -> None:
        note = {key: value for key, value in asdict(self).items() if key != "path"}
        write_whole(self.path.parent / _NOTE, json.dumps(note, indent=2))

    def problem(self) -> str:
        """The damage of the file, in words; empty if it is the one that was fetched."""
        try:
            size = self.path.stat().st_size
            if size != self.size:
                return f"has {size:,} bytes instead of {self.size:,}"
            sha256 = hash_of(self.path)
        except OSError as error:
            return f"cannot be read: {error}"
        return "" if sha256 == self.sha256 else f"has the sha256 {sha256} instead of {self.sha256}"


def default_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """``$TORCHINIT_CACHE``, or ``$XDG_CACHE_HOME/torchinit``, or ``~/.cache/torchinit``."""
    shared = environment.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return expanded(environment.get("TORCHINIT_CACHE") or f"{shared}/torchinit")
    except FileNotFoundError as error:
        raise FetchError(f"the cache {error}; TORCHINIT_CACHE moves it") from None


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of files from URLs. An entry is a folder of its own, named by the hash of the whole URL.

    Entries appear whole, by a rename, so they are read without a lock. The process that fetches one takes its
    lock first; the others wait for it and find the file. The lock is the operating system's: it is gone with the
    process that holds it.
    """

    folder: Path

    def folder_of(self, url: str) -> Path:
        return self.folder / hashlib.sha256(url.encode()).hexdigest()[:32]

    def find(self, url: str) -> CacheEntry | None:
        """The entry of a URL, if there is one, whole or damaged."""
        url = address_of(url).url
        entry = CacheEntry.read(self.folder_of(url))
        return entry if entry and entry.url == masked(url) else None

    def folders(self) -> tuple[Path, ...]:
        """The folder of every entry and of every unfinished download."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return tuple(sorted(path for path in paths if _FOLDER.fullmatch(path.name) and path.is_dir()))

    def entries(self) -> tuple[CacheEntry, ...]:
        """Every entry, by URL."""
        return tuple(sorted(filter(None, map(CacheEntry.read, self.folders())), key=lambda entry: entry.url))

    def valid(self, url: str, sha256: str | None) -> CacheEntry | None:
        """The entry of a URL if its file is as it was fetched, and the one asked for."""
        entry = self.find(url)
        return entry if entry and entry.sha256.startswith(sha256 or "") and not entry.problem() else None

    def remove(self, folder: Path) -> None:
        """Remove an entry's folder, with what is left of a download of it."""
        with self.locked(folder.name), self.writable():
            shutil.rmtree(folder, ignore_errors=not folder.exists())

    @contextlib.contextmanager
    def locked(self, name: str, patience: float = 600.0) -> Iterator[None]:
        """Hold the lock of this name. Raises FetchError if another process does not let it go for so many seconds.

        Its file stays: who removed it would let in a second one.
        """
        from filelock import FileLock, Timeout  # torch brings it

        path = self.folder / ".locks" / name
        lock = FileLock(str(path))
        with self.writable():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=patience)
            except Timeout as error:
                raise FetchError(f"another process has held {path} for {patience:g} s") from error
            except NotImplementedError as error:  # what filelock says of a file system that has no locks
                raise OSError(str(error)) from error
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def writable(self) -> Iterator[None]:
        """Turn an error of the disk into one that says how to move the cache."""
        try:
            yield
        except OSError as error:
            raise FetchError(f"the cache {self.folder} cannot be written: {error}; TORCHINIT_CACHE moves it") from error


@dataclass(frozen=True, slots=True)
class Request:
    """The conditions of a fetch: bounds, the hash that the file must have, the revision that is locked."""

    limits: Limits
    progress: Progress
    cache: Cache
    sha256: str | None = None
    revision: str = ""
