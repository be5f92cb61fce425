"""The lock file: the hash of each source, so that it stays the same file; docs/guides/sources.md shows one."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import torchinit._limits as limits
from torchinit._files import expanded, read_bounded
from torchinit._text import masked
from torchinit.checkpoints.hub.cache import Cache, check_hash, default_folder, stamp_of, write_whole
from torchinit.checkpoints.hub.config import is_on
from torchinit.errors import FetchError
from torchinit.serialization.json import DuplicateKeyError, reject_duplicate_keys

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
