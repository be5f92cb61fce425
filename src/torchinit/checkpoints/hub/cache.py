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
from pathlib import Path
from typing import Final

from torchinit.checkpoints.hub.config import Limits
from torchinit.checkpoints.hub.files import hash_of, write_whole
from torchinit.checkpoints.hub.progress import Progress
from torchinit.checkpoints.hub.urls import address_of, check_allowed, name_of
from torchinit.errors import FetchError, masked

_log = logging.getLogger("torchinit")

_NOTE: Final = ".entry.json"
_FOLDER: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One file of the cache: where it came from, its hash, where it lies, and when it came (seconds since 1970).

    The URL is masked: what is kept for long holds no secret.
    """

    url: str
    sha256: str
    size: int
    path: Path
    fetched: float

    @classmethod
    def read(cls, folder: Path) -> CacheEntry | None:
        """The entry in a folder, if there is one."""
        try:
            data = json.loads((folder / _NOTE).read_text("utf-8"))
            url, sha256 = str(data["url"]), str(data["sha256"])
            entry = cls(url, sha256, int(data["size"]), folder / name_of(url), float(data["fetched"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return entry if entry.path.is_file() else None

    def write(self) -> None:
        """Write the note beside the file that tells all this."""
        note = {key: value for key, value in asdict(self).items() if key != "path"}
        write_whole(self.path.parent / _NOTE, json.dumps(note, indent=2))

    def problem(self) -> str:
        """What is wrong with the file; empty if it is the one that was fetched."""
        try:
            size = self.path.stat().st_size
            if size != self.size:
                return f"has {size:,} bytes instead of {self.size:,}"
            sha256 = hash_of(self.path)
        except OSError as error:
            return f"cannot be read: {error}"
        return "" if sha256 == self.sha256 else f"has the sha256 {sha256} instead of {self.sha256}"


def default_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """``$TORCHINIT_CACHE``, or ``$XDG_CACHE_HOME/torchinit``, or ``~/.cache/torchinit``.

    >>> default_folder({"XDG_CACHE_HOME": "/var/cache"}).as_posix()
    '/var/cache/torchinit'
    """
    own, everyone = environment.get("TORCHINIT_CACHE"), environment.get("XDG_CACHE_HOME")
    return Path(own).expanduser() if own else Path(everyone or "~/.cache").expanduser() / "torchinit"


@contextlib.contextmanager
def shared_failure(path: Path, since: float, sha256: str | None) -> Iterator[None]:
    """Raise the FetchError that another process had with the same file since a time, or record one's own.

    Of many ranks that wait for one download none tries again, in turn, what has just failed for the first.
    """
    try:
        failure = json.loads(path.read_text("utf-8"))
        if failure["at"] >= since and failure["sha256"] == sha256:
            raise FetchError(failure["headline"], failure["problems"])
    except (OSError, ValueError, TypeError, KeyError):
        pass  # there was none
    try:
        yield
    except FetchError as error:
        failure = {"headline": error.headline, "problems": error.problems, "sha256": sha256, "at": time.time()}
        with contextlib.suppress(OSError):
            write_whole(path, json.dumps(failure))
        raise


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of files from URLs. An entry is a folder of its own, named by the hash of the whole URL.

    Entries appear whole, by a rename, so they are read without a lock. The process that fetches one takes its
    lock first; the others wait for it and find the file. The lock is the operating system's: it is gone with the
    process that holds it.
    """

    folder: Path

    def folder_of(self, url: str) -> Path:
        """Where the entry of a URL lies, or would lie."""
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
        entries = (entry for entry in map(CacheEntry.read, self.folders()) if entry)
        return tuple(sorted(entries, key=lambda entry: entry.url))

    def get(self, url: str, limits: Limits, *, sha256: str | None, progress: Progress) -> CacheEntry:
        """The entry of a URL, fetched if it is not here or is damaged. Raises FetchError."""
        address, since = address_of(url), time.time()
        entry = self._valid(address.url, sha256)
        if entry is None:
            check_allowed(address, limits)
            name = self.folder_of(address.url).name
            failed = self.folder / ".locks" / f"{name}.failed"
            with self.locked(name, limits.total + 60), shared_failure(failed, since, sha256):
                entry = self._valid(address.url, sha256) or self._fetch(address.url, limits, sha256, progress)
        return entry

    def _valid(self, url: str, sha256: str | None) -> CacheEntry | None:
        """The entry if its file is as it was fetched, and the one asked for."""
        entry = self.find(url)
        return entry if entry and entry.sha256.startswith(sha256 or "") and not entry.problem() else None

    def _fetch(self, url: str, limits: Limits, sha256: str | None, progress: Progress) -> CacheEntry:
        try:  # not before, for it imports urllib3
            from torchinit.checkpoints.hub.download import Download, PartialFile
        except ModuleNotFoundError as error:
            remedy = f"{error.name} is not installed: pip install {error.name}"
            raise FetchError(f"{url} cannot be fetched: {remedy}") from error
        folder, old = self.folder_of(url), self.find(url)
        if old and (problem := old.problem()):
            _log.warning("%s %s; it is fetched again from %s", old.path, problem, old.url)
        with self._writable():
            folder.mkdir(parents=True, exist_ok=True)
        part = PartialFile(folder / ".part")
        try:
            digest, size = Download(url, part, limits, sha256, progress).run()
        except FetchError:
            with contextlib.suppress(OSError):
                folder.rmdir()  # if nothing is in it
            raise
        entry = CacheEntry(masked(url), digest, size, folder / name_of(url), time.time())
        with self._writable():
            entry.write()  # first, so that a file never stands beside a note of another one unnoticed
            part.path.replace(entry.path)
            part.drop()
        return entry

    def remove(self, folder: Path) -> None:
        """Remove an entry's folder, with what is left of a download of it."""
        with self.locked(folder.name), self._writable():
            shutil.rmtree(folder, ignore_errors=not folder.exists())

    @contextlib.contextmanager
    def locked(self, name: str, patience: float = 600.0) -> Iterator[None]:
        """Hold the lock of this name. Raises FetchError if another process does not let it go for so many seconds.

        Its file stays: who removed it would let in a second one.
        """
        from filelock import FileLock, Timeout  # torch brings it

        path = self.folder / ".locks" / name
        with self._writable():
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(str(path))
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
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FetchError(f"the cache {self.folder} cannot be written: {error}; TORCHINIT_CACHE moves it") from error
