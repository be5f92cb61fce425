"""Opening: a checkpoint from wherever it is named, once for all the rules and sites that read it."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

from torch import nn

from torchinit.checkpoints.hub.lockfile import lock_of
from torchinit.checkpoints.hub.schemes import fetch
from torchinit.checkpoints.readers import Checkpoint, open_checkpoint, open_file
from torchinit.errors import CheckpointError


@final
class InMemory:
    """A dict, a model or an open checkpoint as the source of values, equal to itself alone."""

    __slots__ = ("checkpoint", "source")

    def __init__(self, source: Mapping[str, Any] | nn.Module | Checkpoint) -> None:
        self.source = source
        self.checkpoint = open_checkpoint(source)

    @classmethod
    def wrap(cls, source: object) -> str | InMemory:
        """What a rule can hold of a source: text as it is, anything else in here.

        Raises TypeError for what is no source, ValueError for empty text.
        """
        if source == "":
            raise ValueError("a checkpoint needs a path or an address, but got ''")
        if isinstance(source, (str, os.PathLike)):
            return os.fspath(source)
        if isinstance(source, (Mapping, nn.Module, Checkpoint)):
            return cls(source)
        if isinstance(source, InMemory):
            return source
        raise TypeError(f"a checkpoint is a path, an address, a dict or a model, but got {source!r}")

    def __repr__(self) -> str:
        return self.checkpoint.name


@dataclass(frozen=True, slots=True)
class _Held:
    """An open checkpoint, and what a lock file says of its source."""

    checkpoint: Checkpoint
    pinned: object

    @classmethod
    def open(cls, source: str, part: str | None, sha256: str | None) -> _Held:
        checkpoint = open_file(fetch(source, sha256=sha256), source, part)
        if sha256 and checkpoint.format == "sharded" and lock_of(None, None).path is None:
            raise CheckpointError(
                f"{source} is an index: its sha256 says nothing of the files that it names. Let a lock file have the"
                " hash of each: TORCHINIT_LOCK=init.lock"
            )
        return cls(checkpoint, _pinned(source, sha256))

    def good(self, source: str, sha256: str | None, keys: Iterable[str] | None) -> bool:
        return self.checkpoint.is_current(keys) and _pinned(source, sha256) == self.pinned


def _pinned(source: str, sha256: str | None) -> object:
    """The lock file that is in use, and what it has of a source."""
    locked = lock_of(None, None)
    return locked, locked.pin(source, sha256)


class _Opened:
    """The checkpoints opened last. What has changed since is opened anew."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held: OrderedDict[tuple[object, ...], _Held] = OrderedDict()

    def get(
        self, source: str, part: str | None, sha256: str | None, again: bool, keys: Iterable[str] | None
    ) -> Checkpoint:
        key = (source, part, sha256)
        held = self.held.get(key)
        if held is None or (again and not held.good(source, sha256, keys)):
            held = self.held[key] = _Held.open(source, part, sha256)
            while len(self.held) > self.most:
                self.held.popitem(last=False)
        self.held.move_to_end(key)
        return held.checkpoint


_OPENED: Final = _Opened(most=16)


def opened(
    source: object,
    *,
    part: str | None = None,
    sha256: str | None = None,
    again: bool = True,
    keys: Iterable[str] | None = None,
) -> Checkpoint:
    """The checkpoint that a source names, opened once while its files and the lock file stay as they are.

    Of the files of an index only those that hold ``keys`` are looked at again, if these are given; with
    ``again=False`` nothing is, if it is open: it is what was read from before.

    Raises CheckpointError where it cannot be had, is refused, or has another SHA-256; and for the SHA-256 of an
    index without a lock file, since the files that an index names would go unchecked.
    """
    if isinstance(source, InMemory):
        return source.checkpoint
    try:
        return _OPENED.get(str(source), part, sha256.lower() if sha256 else None, again, keys)
    except OSError as error:
        raise CheckpointError(str(error)) from error


def forget() -> None:
    """Closes what is held open."""
    _OPENED.held.clear()
