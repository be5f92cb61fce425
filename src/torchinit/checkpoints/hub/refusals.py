"""Refusals: answers and files that are not the weights that were asked for."""

from __future__ import annotations

import json
import re
import shutil
import time
import zipfile
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

from torchinit.errors import FetchError

LONGEST_PAUSE: Final = 60.0
"""How many seconds are waited at most before something is tried again."""

_MARKUP: Final = re.compile(rb"\s*<(!doctype|!--|html|head|body|\?xml)", re.IGNORECASE)
_LARGEST_HEADER: Final = 100_000_000
_POINTER: Final = b"version https://git-lfs"
_MEANING: Final = {
    401: ": it wants to know who asks",
    403: ": it is not open to everyone",
    404: ": there is no such file",
    410: ": the file is gone",
}


class OtherFileError(FetchError):
    """A file that is whole, but not the one that was asked for."""


def refuse_status(url: str, status: int) -> FetchError:
    """The error for a status that nothing can be made of."""
    return FetchError(f"{url}: the server says {status}{_MEANING.get(status, '')}")


def length_of(url: str, headers: Mapping[str, str]) -> int | None:
    """The bytes of the body, where the headers tell; FetchError for a length that is none."""
    text = headers.get("content-length")
    if text is None or "transfer-encoding" in headers:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise FetchError(f"{url}: the length {text!r} is no number")
    return int(text)


def check_headers(url: str, headers: Mapping[str, str]) -> None:
    """Refuses what is not a file as it lies on the server."""
    coding = headers.get("content-encoding", "")
    if coding.lower() not in ("", "identity"):
        raise FetchError(f"{url}: the answer is packed ({coding}), though it was asked for as it is")
    if headers.get("content-type", "").lower().startswith("text/html"):
        raise FetchError(f"{url} is a web page, not a file of weights")


def check_size(url: str, size: int, most: int) -> None:
    """Refuses what is larger than the bound."""
    if size > most:
        raise FetchError(f"{url} is larger than {most:,} bytes; TORCHINIT_MAX_DOWNLOAD sets the bound")


def check_disk(url: str, needed: int, folder: Path) -> None:
    """Refuses what the disk has no room for."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FetchError(
            f"{url} needs {needed:,} bytes, and {folder} has {free:,} free; TORCHINIT_CACHE moves the cache"
        )


def check_content(url: str, path: Path) -> None:
    """Refuses a file that cannot be weights: empty, a web page, a pointer of Git LFS, one that is cut short."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise FetchError(f"{url} is empty")
    if _MARKUP.match(head.removeprefix(b"\xef\xbb\xbf")):
        raise FetchError(f"{url} is a web page, not a file of weights")
    if head.startswith(_POINTER):
        raise FetchError(f"{url} is a pointer of Git LFS, not the file itself; take the URL of the raw file")
    if _is_cut(head, path):
        raise FetchError(f"{url} ends before its own table of contents does, whatever length the server says")


def _is_cut(head: bytes, path: Path) -> bool:
    """Whether a zip or safetensors file is shorter than it says itself; everything else is left to its reader."""
    if head.startswith(b"PK\x03\x04"):
        return not zipfile.is_zipfile(path)
    length, size = int.from_bytes(head[:8], "little"), path.stat().st_size
    if head[8:9] != b"{" or length > _LARGEST_HEADER:
        return False
    with path.open("rb") as file:
        file.seek(8)
        text = file.read(length)
    try:
        end = max(int(entry.get("data_offsets", (0, 0))[1]) for entry in json.loads(text).values())
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
        end = 0
    return size < 8 + length + end


def check_hash(source: str, found: str, wanted: str | None) -> None:
    """Refuses a file that is not the one that was asked for; the beginning of a hash may be asked for.

    >>> check_hash("a.pth", "00ff", "00fe")
    Traceback (most recent call last):
    torchinit.checkpoints.hub.refusals.OtherFileError: a.pth is not the file that was asked for
      wanted sha256 00fe
      found  sha256 00ff
    """
    if not found.startswith(wanted or ""):
        both = [f"wanted sha256 {wanted}", f"found  sha256 {found}"]
        raise OtherFileError(f"{source} is not the file that was asked for", both)


def validator_of(headers: Mapping[str, str]) -> str:
    """What If-Range takes to tell whether a file is still the same: a strong ETag, or else a date; may be empty.

    >>> validator_of({"etag": '"v1"'}), validator_of({"etag": 'W/"v1"'})
    ('"v1"', '')
    """
    tag = headers.get("etag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("last-modified", "")


def retry_after(headers: Mapping[str, str]) -> float:
    """How many seconds a busy server asks us to stay away, within bounds.

    >>> retry_after({"retry-after": "7"}), retry_after({"retry-after": "soon"}), retry_after({})
    (7.0, 0.0, 0.0)
    """
    text = headers.get("retry-after", "0")
    try:
        wait = float(text) if text.isdecimal() else parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(wait, 0.0), LONGEST_PAUSE)
