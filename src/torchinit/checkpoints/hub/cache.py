"""The cache: files from URLs, each whole and with its hash; the lock file, so that a source stays the same file."""

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
from typing import Any, Final

import torchinit._limits as limits
from torchinit._files import expanded, read_bounded, replacing
from torchinit._text import masked
from torchinit.checkpoints.hub.urls import Limits, Progress, address_of, is_on, name_of
from torchinit.errors import FetchError
from torchinit.serialization.json import DuplicateKeyError, reject_duplicate_keys

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


def read_note(path: Path) -> dict[str, Any]:
    """The table that a small file holds; an empty one where the file is not there or is damaged."""
    try:
        return dict(json.loads(read_bounded(path, limits.NOTE_BYTES)))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


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
        data = read_note(folder / _NOTE)
        try:
            url, sha256 = str(data["url"]), str(data["sha256"])
            entry = cls(url, sha256, int(data["size"]), folder / name_of(url), float(data["fetched"]))
        except (ValueError, TypeError, KeyError, OverflowError):
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

    Entries appear whole, by a rename, so they are read without a lock. The process that fetches one takes its lock
    first, which is the operating system's, gone with its process; the others wait for it and find the file.
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


# --- the lock file ---------------------------------------------------------------------------------------------------


VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Pin:
    """The file that a source was: hash and size; ``revision`` is the commit it came from, ``url`` where it led to."""

    sha256: str
    size: int
    url: str = ""
    revision: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256 is 64 hexadecimal digits in small letters, but got {self.sha256!r}")
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 0:
            raise ValueError(f"size is a number of bytes, but got {self.size!r}")
        if not isinstance(self.url, str) or not isinstance(self.revision, str):
            raise ValueError("url and revision are text")


def read_pins(path: Path) -> dict[str, Pin]:
    """The pins of a lock file by source; none if there is no file. Raises FetchError with every mistake."""
    return dict(_read_pins(path, stamp_of(path)))


@lru_cache(maxsize=8)
def _read_pins(path: Path, _: object) -> dict[str, Pin]:
    try:
        data = json.loads(read_bounded(path, limits.NOTE_BYTES), object_pairs_hook=reject_duplicate_keys)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        twice = f"{', '.join(sorted(error.keys))} is there twice" if isinstance(error, DuplicateKeyError) else ""
        raise FetchError(f"the lock file {path} cannot be read: {twice or error}") from None
    sources = data.get("sources") if isinstance(data, dict) else None
    if not isinstance(sources, dict) or data.get("version") != VERSION:
        raise FetchError(f"{path} is not a lock file of version {VERSION}")
    pins, problems = {}, []
    for source, entry in sources.items():
        try:
            pins[source] = Pin(**entry)
        except (TypeError, ValueError) as error:
            problems.append(f"{source}: {error}")
        if len(problems) == limits.MISTAKES:
            break
    if problems:
        raise FetchError(f"the lock file {path} has entries that cannot be read", problems)
    return pins


def write_pins(path: Path, pins: Mapping[str, Pin]) -> None:
    """Write a lock file, sorted, so that a change of one source is a change of its lines."""
    sources = {name: {key: value for key, value in asdict(pin).items() if value != ""} for name, pin in pins.items()}
    text = json.dumps({"version": VERSION, "sources": dict(sorted(sources.items()))}, indent=2, ensure_ascii=False)
    try:
        write_whole(path, text + "\n")
    except OSError as error:
        raise FetchError(f"the lock file {path} cannot be written: {error}") from error


@dataclass(frozen=True, slots=True)
class LockFile:
    """A lock file in use, or none; ``frozen`` refuses sources that are not in it."""

    path: Path | None
    frozen: bool = False

    def pin(self, source: str, sha256: str | None) -> Pin | None:
        """The pin of a source, if there is one. Raises FetchError where frozen, and for two hashes that differ."""
        pin = read_pins(self.path).get(masked(source)) if self.path else None
        if self.frozen and pin is None:
            where = f"not in the lock file {self.path}" if self.path else "in no lock file, for none is given"
            raise FetchError(f"{source} is {where}, and it is frozen; record it once without TORCHINIT_FROZEN")
        if pin:
            check_hash(f"{source}, as {self.path} has it,", pin.sha256, sha256)
        return pin

    def add(self, source: str, pin: Pin) -> None:
        """Record a source. Raises FetchError if another process has meanwhile recorded another file for it."""
        if self.path is not None:
            # One lock a lock file, in the cache: beside it would be one more file in a user's repository.
            path = self.path.absolute()
            with Cache(default_folder()).locked(f"lock-{hashlib.sha256(str(path).encode()).hexdigest()[:32]}"):
                pins = read_pins(path)
                known = pins.setdefault(masked(source), pin)
                check_hash(f"{source}, fetched just now,", pin.sha256, known.sha256)
                write_pins(path, pins)


def lock_of(path: str | os.PathLike[str] | None, frozen: bool | None) -> LockFile:
    """The lock file that is given, or else that of the variables TORCHINIT_LOCK and TORCHINIT_FROZEN."""
    # The environment turns it on, not a file beside a recipe: that covers every source of a program, and nothing is
    # written that was not asked for.
    chosen = path or os.environ.get("TORCHINIT_LOCK")
    return LockFile(expanded(chosen) if chosen else None, is_on("TORCHINIT_FROZEN") if frozen is None else frozen)
