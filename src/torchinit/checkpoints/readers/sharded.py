"""Sharded checkpoints: an index that says in which of several files each tensor is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from torchinit.checkpoints.hub.index import member_of
from torchinit.checkpoints.readers.base import Checkpoint, Info, Stamp
from torchinit.checkpoints.readers.headers import unique_json
from torchinit.core.shards import Box
from torchinit.errors import CheckpointError


class ShardedCheckpoint(Checkpoint):
    """The files of an ``*.index.json``, each opened when one of its tensors is asked for.

    Raises CheckpointError for an index that points out of its folder.
    """

    format = "sharded"

    def __init__(self, path: Path, source: str, open_file: Callable[[str], Checkpoint]) -> None:
        self.name = str(path)
        self._stamp = Stamp(path)
        self._map = read_index(path)
        self._open_file = open_file
        self._sources = {file: member_of(source, file) for file in sorted(set(self._map.values()))}
        self._files: dict[str, Checkpoint] = {}

    def keys(self) -> tuple[str, ...]:
        return tuple(self._map)

    def _info(self, key: str) -> Info:
        return self._file(key).info(key)

    def _read(self, key: str, box: Box | None) -> Tensor:
        return self._file(key).read(key, box)

    def _known(self) -> Mapping[str, object]:
        return self._map

    def is_current(self, keys: Iterable[str] | None = None) -> bool:
        looked = self._files if keys is None else self._files.keys() & {self._map.get(key, "") for key in keys}
        return super().is_current() and all(self._files[file].is_current() for file in looked)

    def _file(self, key: str) -> Checkpoint:
        file = self._map[key]
        if file not in self._files:
            try:
                self._files[file] = self._open_file(self._sources[file])
            except OSError as error:
                raise CheckpointError(f"{self.name}: names {file!r}, but {error}") from error
        return self._files[file]


def read_index(path: Path) -> dict[str, str]:
    """Which file each tensor is in; raises CheckpointError for an index that is no such table or not safe to follow."""
    try:
        data = unique_json(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    files = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise CheckpointError(f"{path}: has no table 'weight_map' of file names")
    return files
