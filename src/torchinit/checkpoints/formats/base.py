"""Checkpoint: named tensors that can be looked at and read piece by piece, wherever they are kept."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import torchinit._limits as limits
from torchinit._frozen import quickly_made
from torchinit._text import did_you_mean
from torchinit.checkpoints.hub.cache import stamp_of
from torchinit.errors import CheckpointError
from torchinit.model.shards import Box
from torchinit.serialization.json import FrozenDict


@quickly_made
@dataclass(frozen=True, slots=True)
class Info:
    """Shape and dtype of a tensor that was not read yet.

    >>> Info((2, 3), torch.float32).nbytes
    24
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class Stamp:
    """The identity, size and time of a file when it was opened."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)  # a stat of a str takes half the time of that of a Path
        self._seen = stamp_of(path)

    def is_same(self) -> bool:
        """Whether the file is still there, and as it was."""
        return stamp_of(self._path) == self._seen

    def check(self) -> None:
        """Raise CheckpointError where the file itself was written to."""
        # A mapped file must not change: to touch a page that was cut off ends the process (SIGBUS), which nothing in
        # Python can catch. A file that is gone, or has another in its place, does no harm: what is mapped is the old
        # one, and stays until it is unmapped. So only the same inode with another size or time is refused. It can
        # fail in the moment between this look and the copy.
        now = stamp_of(self._path)
        if now and self._seen and now != self._seen and now[0] == self._seen[0]:
            raise CheckpointError(f"{self._path}: has been written to since it was opened; open it again")


class Checkpoint(ABC):
    """Named tensors, each with its shape and dtype known, none read before it is asked for.

    ``name`` is what messages call it, ``format`` how it is kept, ``part`` which part of a nested one this is,
    ``notes`` what its reader should know, ``metadata`` the text that the file holds beside its tensors.

    >>> from torchinit import open_checkpoint
    >>> checkpoint = open_checkpoint({"fc.weight": torch.zeros(2, 3)})
    >>> list(checkpoint), checkpoint.info("fc.weight"), "fc.bias" in checkpoint
    (['fc.weight'], Info(shape=(2, 3), dtype=torch.float32), False)
    """

    name: str
    format: str = ""
    part: str = ""
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = FrozenDict()
    _entries: Mapping[str, Any]  # an Info for each tensor, by name, or whatever else a format keeps of it
    _stamp: Stamp | None = None  # of the file that is mapped, if there is one

    def keys(self) -> tuple[str, ...]:
        """The names of all tensors, in the order of the file."""
        return tuple(self._entries)

    def _info(self, key: str) -> Info:
        info: Info = self._entries[key]
        return info

    @abstractmethod
    def _read(self, key: str, box: Box | None) -> Tensor:
        """The tensor, or a box of it; the key is there."""

    def info(self, key: str) -> Info:
        """Shape and dtype of a tensor; raises CheckpointError where there is none, or one of an odd kind."""
        if key not in self._entries:
            self._check_key(key)
        return self._info(key)

    def read(self, key: str, box: Box | None = None) -> Tensor:
        """The tensor, or a box of it, on the CPU; raises CheckpointError where there is none.

        It may be the file's own memory: do not write to it.
        """
        self._check_key(key)
        if self._stamp is not None:
            self._stamp.check()
        return self._read(key, box)

    def read_all(self, keys: Iterable[str]) -> list[Tensor]:
        """Several whole tensors: so many small ones that their file need be looked at only once."""
        if self._stamp is not None:
            self._stamp.check()
        return [self._read(key, None) for key in keys]

    def is_current(self, keys: Iterable[str] | None = None) -> bool:
        """Whether its files are still the same; of several only those are looked at that hold ``keys``, if given."""
        del keys
        return self._stamp is None or self._stamp.is_same()

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {len(self)} tensors>"

    def _check_key(self, key: str) -> None:
        if key not in self._entries:
            raise CheckpointError(f"{self.name}: holds no {key!r}{did_you_mean(key, self.keys())}")


def is_shape(values: Sequence[Any]) -> bool:
    """Whether these are sizes that a tensor can have; its strides are products of them, even where one is zero."""
    fits = len(values) <= limits.DIMENSIONS and are_counts(values)
    return fits and math.prod(max(1, size) for size in values) < 1 << 60


def are_counts(values: Sequence[Any]) -> bool:
    """Whether these are numbers that can count bytes."""
    return all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def cut(tensor: Tensor, box: Box | None) -> Tensor:
    """The box of a tensor, as a view."""
    return tensor if box is None or box.shape == tensor.shape else box.of(tensor)
