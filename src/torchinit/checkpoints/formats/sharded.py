"""Checkpoints of several files: an index that says in which of them each tensor is; folders of torch.distributed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

import torchinit._limits as limits
from torchinit._files import read_bounded
from torchinit._text import abbreviate, count
from torchinit.checkpoints.formats.base import Checkpoint, Info, Stamp, cut
from torchinit.checkpoints.hub.urls import member_of
from torchinit.errors import CheckpointError
from torchinit.model.shards import Box
from torchinit.serialization.json import unique_json


class ShardedCheckpoint(Checkpoint):
    """The files of an ``*.index.json``, each opened when one of its tensors is asked for.

    Files that are not there are in ``gone`` and noted; those of an address are fetched when they are needed. Raises
    CheckpointError for an index that points out of its folder.
    """

    format = "sharded"

    def __init__(self, path: Path, source: str, open_file: Callable[[str], Checkpoint]) -> None:
        self.name: str = str(path)
        self._index, self._open_file = Stamp(path), open_file
        self._entries = read_index(path)
        self._sources = {file: member_of(source, file) for file in sorted(set(self._entries.values()))}
        if len(self._sources) > limits.FILES:
            raise CheckpointError(f"{path}: names more than {limits.FILES:,} files")
        is_here = "://" not in source or source.startswith("file://")
        self.gone: list[str] = [file for file in self._sources if is_here and not _is_file(path.parent / file)]
        if self.gone:  # no error: of a model that is spread over machines each may have the files of its own part
            which = f"{len(self.gone)} of the {count(len(self._sources), 'file')} that the index names"
            verb = "is" if len(self.gone) == 1 else "are"
            self.notes: tuple[str, ...] = (f"{which} {verb} not there: {abbreviate(self.gone, limits.HINTS)}",)
        self._files: dict[str, Checkpoint] = {}
        self._failed: dict[str, CheckpointError] = {}  # so that what cannot be opened is not tried for each tensor

    def _info(self, key: str) -> Info:
        return self._file(key).info(key)

    def _read(self, key: str, box: Box | None) -> Tensor:
        return self._file(key).read(key, box)

    def is_current(self, keys: Iterable[str] | None = None) -> bool:
        # A file that has not been opened has told nothing yet that could be out of date.
        files = self._files if keys is None else self._files.keys() & {self._entries.get(key, "") for key in keys}
        return self._index.is_same() and all(self._files[file].is_current() for file in files)

    def _file(self, key: str) -> Checkpoint:
        file = self._entries[key]
        if file not in self._files and file not in self._failed:
            try:
                self._files[file] = self._open_file(self._sources[file])
            except CheckpointError as error:
                self._failed[file] = error
            except OSError as error:
                self._failed[file] = CheckpointError(f"{self.name}: names {file!r}, but {error}")
        if file in self._failed:
            raise self._failed[file]
        return self._files[file]


def _is_file(path: Path) -> bool:
    with suppress(OSError):  # its name may be too long
        return path.is_file()
    return False


def read_index(path: Path) -> dict[str, str]:
    """The file of each tensor; raises CheckpointError for JSON that is not such a table."""
    try:
        data = unique_json(read_bounded(path, limits.JSON_BYTES))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(data, dict) or "weight_map" not in data:
        raise CheckpointError(f"{path}: is JSON without a 'weight_map', so neither weights nor an index of them")
    files = data["weight_map"]
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise CheckpointError(f"{path}: has no table 'weight_map' of file names")
    return files


class DistributedCheckpoint(Checkpoint):
    """A folder that ``torch.distributed.checkpoint.save`` wrote. Opening it unpickles: a file can run code.

    A tensor is read whole, also for a box of it. Raises CheckpointError where there is no such metadata.
    """

    format = "torch.distributed.checkpoint"

    def __init__(self, path: Path) -> None:
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        self.name: str = str(path)
        self._reader = FileSystemReader(path)
        if not (path / ".metadata").is_file():
            raise CheckpointError(f"{path}: is a folder without .metadata, so none of torch.distributed.checkpoint")
        self._entries = {
            key: Info(tuple(entry.size), entry.properties.dtype)
            for key, entry in self._reader.read_metadata().state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }

    def _read(self, key: str, box: Box | None) -> Tensor:
        from torch.distributed.checkpoint.state_dict_loader import load

        info = self._entries[key]
        into = {key: torch.empty(info.shape, dtype=info.dtype, device="cpu")}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is", UserWarning)  # that it reads by itself is meant
            load(into, storage_reader=self._reader, no_dist=True)
        return cut(into[key], box)
