"""Opening: a checkpoint from wherever it is named, once for all the rules and sites that read it."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, final

from torch import nn

from torchinit.checkpoints.readers import Checkpoint, open_checkpoint, open_file
from torchinit.checkpoints.sources import fetch
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

        Raises TypeError for what is no source.
        """
        if isinstance(source, (str, os.PathLike)):
            return os.fspath(source)
        if isinstance(source, (Mapping, nn.Module, Checkpoint)):
            return cls(source)
        if isinstance(source, InMemory):
            return source
        raise TypeError(f"a checkpoint is a path, an address, a dict or a model, but got {source!r}")

    def __repr__(self) -> str:
        return self.checkpoint.name


class _Opened:
    """The checkpoints opened last. A file that has changed since is opened anew."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held: OrderedDict[tuple[object, ...], tuple[Path, object, Checkpoint]] = OrderedDict()

    def get(self, source: str, part: str | None, sha256: str | None) -> Checkpoint:
        key = (source, part, sha256)
        path, seen, _ = self.held.get(key, (None, None, None))
        if path is None or _signature(path) != seen:
            path = fetch(source, sha256=sha256)
            self.held[key] = path, _signature(path), open_file(path, source, part)
            while len(self.held) > self.most:
                self.held.popitem(last=False)
        self.held.move_to_end(key)
        return self.held[key][2]


_OPENED: Final = _Opened(most=4)


def opened(source: object, *, part: str | None = None, sha256: str | None = None) -> Checkpoint:
    """The checkpoint that a source names, opened once while the file stays as it is.

    Raises CheckpointError where it cannot be had, is refused, or has another SHA-256.
    """
    if isinstance(source, InMemory):
        return source.checkpoint
    try:
        return _OPENED.get(str(source), part, sha256)
    except OSError as error:
        raise CheckpointError(str(error)) from error


def forget() -> None:
    """Closes what is held open."""
    _OPENED.held.clear()


def _signature(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
