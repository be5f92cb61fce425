"""Downloads: the file behind a URL into the cache, whole or not at all, resumed where it broke off."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import re
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from urllib3 import Retry
from urllib3.exceptions import InvalidHeader

from torchinit import _limits
from torchinit._text import masked
from torchinit.checkpoints.hub.cache import CacheEntry, Request, check_hash, read_note, write_whole
from torchinit.checkpoints.hub.http import Answer, TransientError, get
from torchinit.checkpoints.hub.urls import address_of, name_of
from torchinit.errors import FetchError
from torchinit.serialization.json import check_size

_log = logging.getLogger("torchinit")

_LONGEST_PAUSE: Final = 60.0
_MARKUP: Final = re.compile(rb"\s*<(!doctype|!--|html|head|body|\?xml)", re.IGNORECASE)
_BLOCK: Final = 1 << 18
_BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_MEANING: Final = {
    401: ": it wants to know who asks",
    403: ": it is not open to everyone",
    404: ": there is no such file",
    410: ": the file is gone",
}
# Weights are asked for as they are: a packed answer could grow without end.
_HEADERS: Final = {"User-Agent": "torchinit", "Accept": "*/*", "Accept-Encoding": "identity"}


def download(url: str, request: Request) -> CacheEntry:
    """The entry of a URL in the cache, fetched now if no other process has fetched it meanwhile. Raises FetchError."""
    # Each process fetches for itself, behind one file lock an entry. No collectives: a source may be
    # fetched without a process group, and with one a rank would wait for another one's failure.
    url, since, cache = address_of(url).url, time.time(), request.cache
    folder = cache.folder_of(url)
    failure = cache.folder / ".locks" / f"{folder.name}.failed"
    with cache.locked(folder.name, request.limits.total + 60), sharing_failure(failure, since, request.sha256):
        return cache.valid(url, request.sha256) or _download(url, folder, request)


def _download(url: str, folder: Path, request: Request) -> CacheEntry:
    cache = request.cache
    if (old := cache.find(url)) and (problem := old.problem()):
        _log.warning("%s %s; it is fetched again from %s", old.path, problem, old.url)
    with cache.writable():
        folder.mkdir(parents=True, exist_ok=True)
    transfer = _Transfer(url, folder / ".part", request)
    try:
        digest, size = transfer.run()
    except FetchError:
        with contextlib.suppress(OSError):
            folder.rmdir()  # if nothing is in it
        raise
    entry = CacheEntry(masked(url), digest, size, folder / name_of(url), time.time())
    with cache.writable():
        entry.write()  # first, so that a file never stands beside a note of another one unnoticed
        transfer.path.replace(entry.path)
        transfer.drop()
    return entry


@contextlib.contextmanager
def sharing_failure(path: Path, since: float, sha256: str | None) -> Iterator[None]:
    """Raise the FetchError that another process had with the same file since a time, or record one's own.

    Of many ranks that wait for one download none tries again, in turn, what has just failed for the first.
    """
    with contextlib.suppress(TypeError, KeyError):  # there was none
        if (failure := read_note(path))["at"] >= since and failure["sha256"] == sha256:
            raise FetchError(failure["headline"], failure["problems"])
    try:
        yield
    except FetchError as error:
        failure = {"headline": error.headline, "problems": error.problems, "sha256": sha256, "at": time.time()}
        with contextlib.suppress(OSError):
            write_whole(path, json.dumps(failure))
        raise


@dataclass(frozen=True, slots=True)
class _Transfer:
    """A URL on its way into the file ``path``, and the note beside it that tells if the source is still the same."""

    url: str
    path: Path
    request: Request

    @property
    def note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def drop(self) -> None:
        """Remove everything; the note first, for bytes without one are never resumed from."""
        self.note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def run(self) -> tuple[str, int]:
        """Make ``path`` the file behind the URL, and return its SHA-256 and size.

        Raises FetchError. What has come by then is removed if it is not what was asked for; if the connection broke
        off, or the server says something else meanwhile, it is kept, and the next call resumes from it.
        """
        limits = self.request.limits
        deadline, attempt = time.monotonic() + limits.total, 1
        while True:
            try:
                return self._attempt(deadline)
            except TransientError as error:
                # The pause doubles, and differs between processes, so that they do not all come back at once.
                longest = min(limits.pause * 2.0 ** (attempt - 1), _LONGEST_PAUSE)
                pause = max(error.wait, longest * random.Random().uniform(0.5, 1.0))
                if attempt >= limits.attempts or time.monotonic() + pause > deadline:
                    tries = f" (attempt {attempt})" if attempt > 1 else ""
                    raise FetchError(f"{self.url} cannot be fetched: {error}{tries}") from error
                _log.info("%s: %s; trying again in %.1f s", masked(self.url), error, pause)
                time.sleep(pause)
                attempt += 1

    def _attempt(self, deadline: float) -> tuple[str, int]:
        # Bytes without the ETag or Last-Modified of the answer that they come from are not gone on with.
        digest, headers, validator = hashlib.sha256(), _HEADERS, str(read_note(self.note).get("validator", ""))
        size = self.path.stat().st_size if validator and self.path.is_file() else 0
        if size:  # hashed before the server is kept waiting
            headers = {**headers, "Range": f"bytes={size}-", "If-Range": validator}
            with self.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
        with get(self.url, headers, self.request.limits, deadline) as answer:
            start, total = self._range(answer, size, validator)
            self._check_answer(answer, start, total)  # which leaves the bytes of before as they are
            try:
                if not start:
                    self.drop()
                    self.note.write_text(json.dumps({"validator": validator_of(answer.response.headers)}), "utf-8")
                    digest = hashlib.sha256()
                size = self._write(answer, digest, total)
                check_content(self.url, self.path)
                check_hash(self.url, digest.hexdigest(), self.request.sha256)
            except FetchError as error:
                self.drop()
                if start:  # two halves that do not fit are tried anew
                    raise TransientError(str(error)) from error
                raise
            except OSError as error:  # the disk's; the network's have become TransientError before
                self.drop()
                raise FetchError(f"{self.url} cannot be written to {self.path}: {error}") from error
            return digest.hexdigest(), size

    def _range(self, answer: Answer, size: int, validator: str) -> tuple[int, int | None]:
        """The offset at which the body begins, and the length of the whole file."""
        status, headers = answer.response.status, answer.response.headers
        if status == 200:
            return 0, length_of(self.url, headers)
        if size and status in (206, 416):
            # Only the rest that was asked for, of the file that it was asked of, goes behind the bytes that are here.
            span = _RANGE.fullmatch(headers.get("content-range", ""))
            if status == 206 and span and validator_of(headers) in ("", validator):
                first, last, length = map(int, span.groups())
                if first == size and last + 1 == length:
                    return size, length
            self.drop()
            raise TransientError("the server does not go on where the last attempt broke off")
        if status in _BUSY:
            raise TransientError(f"the server says {status}", retry_after(headers))
        raise FetchError(f"{answer.url}: the server says {status}{_MEANING.get(status, '')}")

    def _check_answer(self, answer: Answer, start: int, total: int | None) -> None:
        """Refuse an answer that is not a file as it lies on the server, or too large, before its body is taken."""
        headers, response, folder = answer.response.headers, answer.response, self.path.parent
        coding, transfer = headers.get("content-encoding", ""), headers.get("transfer-encoding", "")
        if coding.lower() not in ("", "identity") or transfer.lower() not in ("", "chunked"):
            coding = ", ".join(filter(None, (coding, transfer)))
            raise FetchError(f"{self.url}: the answer is packed ({coding}), though it was asked for as it is")
        if headers.get("content-type", "").lower().startswith("text/html"):
            raise FetchError(f"{self.url} is a web page, not a file of weights")
        if response.length_remaining is None and not response.chunked and self.request.sha256 is None:
            why = "has no length, so half of it would pass for the whole; give its sha256"
            raise FetchError(f"{self.url}: the answer {why}")
        self._check_size(total or 0)
        needed, free = (total or 0) - start, shutil.disk_usage(folder).free
        if free < needed:
            room = f"needs {needed:,} bytes, and {folder} has {free:,} free"
            raise FetchError(f"{self.url} {room}; TORCHINIT_CACHE moves the cache")

    def _check_size(self, size: int) -> None:
        if size > (most := self.request.limits.size):
            raise FetchError(f"{self.url} is larger than {most:,} bytes; TORCHINIT_MAX_DOWNLOAD sets the bound")

    def _write(self, answer: Answer, digest: Any, total: int | None) -> int:
        """Write the body, block by block, behind the bytes that are here; the size of the whole."""
        with self.path.open("ab") as file:
            size = file.tell()
            self.request.progress(size, total)
            for block in answer.blocks(_BLOCK):  # as they come, so that what is here when it breaks off is on disk
                size += len(block)
                self._check_size(size)
                file.write(block)
                digest.update(block)
                self.request.progress(size, total)
            if total is not None and size != total:
                raise TransientError(f"the answer ended after {size:,} of {total:,} bytes")
            file.flush()
            os.fsync(file.fileno())
        return size


def length_of(url: str, headers: Mapping[str, str]) -> int | None:
    """The bytes of the body, where the headers tell. Raises FetchError for a length that is not a number."""
    text = headers.get("content-length")
    if text is None or "transfer-encoding" in headers:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise FetchError(f"{url}: the length {text!r} is not a number")
    return int(text)


def validator_of(headers: Mapping[str, str]) -> str:
    """The text by which If-Range tells that a file is still the same: a strong ETag, or else a date; may be empty."""
    tag = headers.get("etag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("last-modified", "")


def retry_after(headers: Mapping[str, str]) -> float:
    """The seconds that a busy server asks us to stay away, within bounds."""
    try:
        return min(float(Retry().parse_retry_after(headers.get("retry-after", "0"))), _LONGEST_PAUSE)
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0


def check_content(url: str, path: Path) -> None:
    """Refuse a file that cannot be weights: empty, a web page, a pointer of Git LFS, one that is cut short."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise FetchError(f"{url} is empty")
    if _MARKUP.match(head.removeprefix(b"\xef\xbb\xbf")):
        raise FetchError(f"{url} is a web page, not a file of weights")
    if head.startswith(b"version https://git-lfs"):
        raise FetchError(f"{url} is a pointer of Git LFS, not the file itself; take the URL of the raw file")
    if not zipfile.is_zipfile(path) if head.startswith(b"PK\x03\x04") else path.stat().st_size < _least_size(path):
        raise FetchError(f"{url} ends before its own table of contents does, whatever length the server says")


def _least_size(path: Path) -> int:
    """The size that the header of a safetensors file implies; 0 for others, which are left to their readers."""
    with path.open("rb") as file:
        length, header = int.from_bytes(file.read(8), "little"), file.read(1)
        if header != b"{" or length > _limits.HEADER_BYTES:
            return 0
        header += file.read(max(length - 1, 0))
    try:
        check_size(header, 10 * _limits.TENSORS)
        end = max(int(entry.get("data_offsets", (0, 0))[1]) for entry in json.loads(header).values())
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
        end = 0
    return 8 + length + end
