"""The cache: files from URLs, one entry a URL, each whole and with its hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from torchinit.checkpoints.hub.config import Limits
from torchinit.checkpoints.hub.download import Download, Part, Progress
from torchinit.checkpoints.hub.urls import address_of, check_allowed, name_of
from torchinit.errors import FetchError, masked

_log = logging.getLogger("torchinit")

_NOTE: Final = ".entry.json"
_PART: Final = ".part"
_DIGEST: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the cache: where it came from, what it is, where it lies, and when it came (seconds since 1970).

    The URL is masked: what is kept for long holds no secret.
    """

    url: str
    sha256: str
    size: int
    path: Path
    fetched: float

    def problem(self) -> str:
        """What is wrong with the file; empty if it is the one that was fetched."""
        try:
            size = self.path.stat().st_size
            if size != self.size:
                return f"has {size:,} bytes instead of {self.size:,}"
            found = hash_of(self.path)
        except OSError as error:
            return f"cannot be read: {error}"
        return "" if found == self.sha256 else f"has the sha256 {found} instead of {self.sha256}"


def default_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """``$TORCHINIT_CACHE``, or ``$XDG_CACHE_HOME/torchinit``, or ``~/.cache/torchinit``.

    >>> default_folder({"XDG_CACHE_HOME": "/var/cache"}).as_posix()
    '/var/cache/torchinit'
    """
    own, everyone = environment.get("TORCHINIT_CACHE"), environment.get("XDG_CACHE_HOME")
    return Path(own).expanduser() if own else Path(everyone or "~/.cache").expanduser() / "torchinit"


def stamp_of(path: Path | str) -> tuple[int, int, int] | None:
    """What differs once a file was touched or replaced; None where there is none."""
    try:
        seen = os.stat(path)  # noqa: PTH116  # of text it takes half the time, and every tensor asks for it
    except OSError:
        return None
    return seen.st_ino, seen.st_size, seen.st_mtime_ns


def hash_of(path: Path) -> str:
    """The sha256 of a file; read once a process as long as the file is not touched."""
    return _hash_of(path, stamp_of(path))


@lru_cache(maxsize=4096)
def _hash_of(path: Path, _: object) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Failure:
    """How a download ended that others waited for since a time (in seconds since 1970): they need not try it, too."""

    path: Path
    since: float

    @contextlib.contextmanager
    def shared(self, sha256: str | None) -> Iterator[None]:
        """Raises the error that another process had with the same file while this one waited, or records its own."""
        try:
            said = json.loads(self.path.read_text("utf-8"))
            if said["at"] >= self.since and said["sha256"] == sha256:
                raise FetchError(said["headline"], said["problems"])
        except (OSError, ValueError, TypeError, KeyError):
            pass  # nothing was said
        try:
            yield
        except FetchError as error:
            said = {"headline": error.headline, "problems": error.problems, "sha256": sha256, "at": time.time()}
            with contextlib.suppress(OSError):
                write_whole(self.path, json.dumps(said))
            raise


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of files from URLs. An entry is a folder of its own, named by the hash of the whole URL.

    Entries appear whole, by a rename, so they are read without a lock. Who has to fetch one takes the entry's
    lock first; the others wait for it and find the file. The lock is the operating system's: it is gone with the
    process that holds it.
    """

    folder: Path

    def folder_of(self, url: str) -> Path:
        """Where the entry of a URL lies, or would lie."""
        return self.folder / hashlib.sha256(url.encode()).hexdigest()[:32]

    def find(self, url: str) -> Entry | None:
        """The entry of a URL, if there is one, whole or damaged."""
        url = address_of(url).url
        entry = _read(self.folder_of(url))
        return entry if entry and entry.url == masked(url) else None

    def folders(self) -> tuple[Path, ...]:
        """The folder of every entry and of every unfinished download."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return tuple(sorted(path for path in found if _DIGEST.fullmatch(path.name) and path.is_dir()))

    def entries(self) -> tuple[Entry, ...]:
        """Every entry, by URL."""
        found = (entry for entry in map(_read, self.folders()) if entry)
        return tuple(sorted(found, key=lambda entry: entry.url))

    def get(self, url: str, limits: Limits, *, sha256: str | None, progress: Progress) -> Entry:
        """The entry of a URL, fetched if it is not here or is damaged. Raises FetchError."""
        url = address_of(url).url
        entry = self._sound(url, sha256)
        if entry is None:
            check_allowed(address_of(url), limits)
            failure = Failure(self.folder / ".locks" / f"{self.folder_of(url).name}.failed", time.time())
            with self.locked(self.folder_of(url).name, limits.total + 60), failure.shared(sha256):
                entry = self._sound(url, sha256) or self._fetch(url, limits, sha256, progress)
        return entry

    def _sound(self, url: str, sha256: str | None) -> Entry | None:
        """The entry if its file is what it was, and what is asked for."""
        entry = self.find(url)
        return entry if entry and entry.sha256.startswith(sha256 or "") and not entry.problem() else None

    def _fetch(self, url: str, limits: Limits, sha256: str | None, progress: Progress) -> Entry:
        folder, old = self.folder_of(url), self.find(url)
        if old and (problem := old.problem()):
            _log.warning("%s %s; it is fetched again from %s", old.path, problem, old.url)
        with self._writable():
            folder.mkdir(parents=True, exist_ok=True)
        part = Part(folder / _PART)
        try:
            receipt = Download(url, part, limits, sha256, progress).run()
        except FetchError:
            with contextlib.suppress(OSError):
                folder.rmdir()  # if nothing is in it
            raise
        entry = Entry(masked(url), receipt.sha256, receipt.size, folder / name_of(url), time.time())
        with self._writable():
            _write_note(entry)  # first, so that a file never stands beside a note of another one unnoticed
            part.path.replace(entry.path)
            part.drop()
            _sync(folder)
        return entry

    def remove(self, folder: Path) -> None:
        """Removes an entry's folder, with what is left of a download of it."""
        with self.locked(folder.name), self._writable():
            shutil.rmtree(folder, ignore_errors=not folder.exists())

    @contextlib.contextmanager
    def locked(self, name: str, patience: float = 600.0) -> Iterator[None]:
        """Holds the lock of this name; FetchError if another process does not let it go for so many seconds.

        Its file stays: who removed it would let in a second one.
        """
        from filelock import FileLock, Timeout  # torch brings it

        locks = self.folder / ".locks"
        with self._writable():
            locks.mkdir(parents=True, exist_ok=True)
            lock = FileLock(str(locks / name))
            try:
                lock.acquire(timeout=patience)
            except Timeout as error:
                raise FetchError(f"another process has held {locks / name} for {patience:g} s") from error
            except NotImplementedError as error:  # what filelock says of a file system that has no locks
                raise OSError(str(error)) from error
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FetchError(f"the cache {self.folder} cannot be written: {error}; TORCHINIT_CACHE moves it") from error


def _read(folder: Path) -> Entry | None:
    try:
        data = json.loads((folder / _NOTE).read_text("utf-8"))
        url, sha256 = str(data["url"]), str(data["sha256"])
        entry = Entry(url, sha256, int(data["size"]), folder / name_of(url), float(data["fetched"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return entry if entry.path.is_file() else None


def _write_note(entry: Entry) -> None:
    data = {key: value for key, value in asdict(entry).items() if key != "path"}
    write_whole(entry.path.parent / _NOTE, json.dumps(data, indent=2))


def write_whole(path: Path, text: str) -> None:
    """Writes a small file so that it is always the old one or the new one."""
    part = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Makes the renames in a folder last, where the system has that."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
