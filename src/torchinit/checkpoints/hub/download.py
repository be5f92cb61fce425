"""Downloads: one URL into one file, whole or not at all, taken up again where it broke off."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from torchinit.checkpoints.hub import refusals
from torchinit.checkpoints.hub.config import Limits
from torchinit.checkpoints.hub.http import Answer, PassingError, answer
from torchinit.errors import FetchError, masked

_log = logging.getLogger("torchinit")

_BLOCK: Final = 1 << 18
_BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


class Progress(Protocol):
    """Is told how many bytes there are now, and of how many where that is known."""

    def __call__(self, done: int, total: int | None, /) -> object: ...


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was downloaded."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Part:
    """A download that is not whole yet: its bytes, and beside them what tells whether the source is still the same."""

    path: Path

    @property
    def note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def validator(self) -> str:
        """``ETag`` or ``Last-Modified`` of the answer that the bytes come from; empty if unknown."""
        try:
            return str(json.loads(self.note.read_text("utf-8"))["validator"])
        except (OSError, ValueError, TypeError, KeyError):
            return ""

    def size(self) -> int:
        """How many bytes are here that can be gone on with."""
        return self.path.stat().st_size if self.validator() and self.path.is_file() else 0

    def begin(self, validator: str) -> None:
        """Forgets the bytes of before."""
        self.drop()
        self.note.write_text(json.dumps({"validator": validator}), "utf-8")

    def drop(self) -> None:
        """Removes everything; the note first, for bytes without one are never gone on with."""
        self.note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Download:
    """One URL on its way into a file; with ``sha256`` no other file is taken."""

    url: str
    part: Part
    limits: Limits
    sha256: str | None
    progress: Progress

    def run(self) -> Receipt:
        """Makes ``part.path`` the file that the URL leads to, and says what it is.

        Raises FetchError. What has come by then is removed if it was refused; if the connection broke off, it is
        kept, and the next call goes on from there.
        """
        deadline, attempt = time.monotonic() + self.limits.total, 1
        while True:
            try:
                return self._attempt(deadline)
            except PassingError as error:
                pause = max(error.wait, self._pause(attempt))
                if attempt >= self.limits.attempts or time.monotonic() + pause > deadline:
                    tries = f" (attempt {attempt})" if attempt > 1 else ""
                    raise FetchError(f"{self.url} cannot be fetched: {error}{tries}") from error
                _log.info("%s: %s; trying again in %.1f s", masked(self.url), error, pause)
                time.sleep(pause)
                attempt += 1

    def _pause(self, attempt: int) -> float:
        """Doubles, and differs between processes, so that they do not all come back at once."""
        longest = min(self.limits.pause * 2.0 ** (attempt - 1), refusals.LONGEST_PAUSE)
        return longest * random.Random().uniform(0.5, 1.0)

    def _attempt(self, deadline: float) -> Receipt:
        held = self.part.size()
        digest = self._digest(held)  # before anybody is kept waiting
        with answer(self.url, self._headers(held), self.limits, deadline) as said:
            start, total = self._agreed(said, held)
            with self._refusing():
                self._check(said, total)
            refusals.check_disk(self.url, (total or 0) - start, self.part.path.parent)
            with self._refusing():
                if not start:
                    self.part.begin(refusals.validator_of(said.headers))
                    digest = hashlib.sha256()
                return self._whole(self._written(said, digest, total), resumed=bool(start))

    def _digest(self, held: int) -> Any:
        """The running hash of what is here already."""
        if not held:
            return hashlib.sha256()
        with self.part.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256")

    def _headers(self, held: int) -> dict[str, str]:
        """A file of weights is asked for as it is: a packed answer could grow without end."""
        headers = {"User-Agent": "torchinit", "Accept": "*/*", "Accept-Encoding": "identity"}
        return {**headers, "Range": f"bytes={held}-", "If-Range": self.part.validator()} if held else headers

    def _agreed(self, said: Answer, held: int) -> tuple[int, int | None]:
        """Where the body begins, and how long the whole file is."""
        if said.status == 200:
            return 0, refusals.length_of(self.url, said.headers)
        if held and said.status in (206, 416):
            return held, self._whole_length(said, held)
        if said.status in _BUSY:
            raise PassingError(f"the server says {said.status}", refusals.retry_after(said.headers))
        raise refusals.refuse_status(said.url, said.status)

    def _whole_length(self, said: Answer, held: int) -> int:
        """The length that a range is part of; begins anew where it is not the range that was asked for."""
        found = _RANGE.fullmatch(said.headers.get("content-range", ""))
        same = refusals.validator_of(said.headers) in ("", self.part.validator())
        if said.status == 206 and found and same:
            first, last, length = map(int, found.groups())
            if first == held and last + 1 == length:
                return length
        self.part.drop()
        raise PassingError("the server does not go on where the last attempt broke off")

    def _check(self, said: Answer, total: int | None) -> None:
        """Refuses an answer before any of its body is taken."""
        refusals.check_headers(self.url, said.headers)
        if not said.marks_its_end and self.sha256 is None:
            raise FetchError(
                f"{self.url}: the answer has no length, so half of it would pass for the whole; give its sha256"
            )
        refusals.check_size(self.url, total or 0, self.limits.size)

    def _written(self, said: Answer, digest: Any, total: int | None) -> Receipt:
        """Takes the body, block by block, behind what is here already."""
        with self.part.path.open("ab") as file:
            size = self._copy(said, file, digest, total)
            file.flush()
            os.fsync(file.fileno())
        return Receipt(digest.hexdigest(), size)

    def _copy(self, said: Answer, file: BinaryIO, digest: Any, total: int | None) -> int:
        size = file.tell()
        self.progress(size, total)
        while block := said.read(_BLOCK):
            size += len(block)
            refusals.check_size(self.url, size, self.limits.size)
            file.write(block)
            digest.update(block)
            self.progress(size, total)
        if total is not None and size != total:
            raise PassingError(f"the answer ended after {size:,} of {total:,} bytes")
        return size

    def _whole(self, receipt: Receipt, *, resumed: bool) -> Receipt:
        """Refuses a file that is whole, but not what was asked for; two halves that do not fit are tried anew."""
        try:
            refusals.check_content(self.url, self.part.path)
            refusals.check_hash(self.url, receipt.sha256, self.sha256)
        except FetchError as error:
            if resumed:
                self.part.drop()
                raise PassingError(str(error)) from error
            raise
        return receipt

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Removes what was refused, and what the disk could not hold."""
        try:
            yield
        except FetchError:
            self.part.drop()
            raise
        except OSError as error:  # the disk's; the network's have become PassingError before
            self.part.drop()
            raise FetchError(f"{self.url} cannot be written to {self.part.path}: {error}") from error
