"""Files: local ones, by their hash and by what is in them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Final

from torchinit.errors import FetchError

_MARKUP: Final = re.compile(rb"\s*<(!doctype|!--|html|head|body|\?xml)", re.IGNORECASE)
_LARGEST_HEADER: Final = 100_000_000


class HashMismatchError(FetchError):
    """A file that is whole, but not the one that was asked for."""


def check_hash(source: str, found: str, wanted: str | None) -> None:
    """Refuse a file that is not the one that was asked for; the beginning of a hash may be asked for.

    >>> check_hash("a.pth", "00ff", "00fe")
    Traceback (most recent call last):
    torchinit.checkpoints.hub.files.HashMismatchError: a.pth is not the file that was asked for
      wanted sha256 00fe
      found  sha256 00ff
    """
    if not found.startswith(wanted or ""):
        both = [f"wanted sha256 {wanted}", f"found  sha256 {found}"]
        raise HashMismatchError(f"{source} is not the file that was asked for", both)


def hash_of(path: Path) -> str:
    """The SHA-256 of a file; read once a process as long as the file is not touched."""
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
    part = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


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
        if header != b"{" or length > _LARGEST_HEADER:
            return 0
        header += file.read(max(length - 1, 0))
    try:
        end = max(int(entry.get("data_offsets", (0, 0))[1]) for entry in json.loads(header).values())
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
        end = 0
    return 8 + length + end
