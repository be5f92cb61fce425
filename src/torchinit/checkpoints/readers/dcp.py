"""Distributed checkpoints: folders of torch.distributed.checkpoint, whose metadata is a pickle: only on trust."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from torchinit.checkpoints.readers.base import Checkpoint, Info, cut
from torchinit.core.shards import Box
from torchinit.errors import CheckpointError


class DistributedCheckpoint(Checkpoint):
    """A folder that ``torch.distributed.checkpoint.save`` wrote. Opening it unpickles: a file can run code.

    A tensor is read whole, also for a box of it. Raises CheckpointError where there is no such metadata.
    """

    format = "torch.distributed.checkpoint"

    def __init__(self, path: Path) -> None:
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        self.name = str(path)
        self._reader = FileSystemReader(path)
        if not (path / ".metadata").is_file():
            raise CheckpointError(f"{path}: is a folder without .metadata, so none of torch.distributed.checkpoint")
        held = self._reader.read_metadata().state_dict_metadata
        self._infos = {
            key: Info(tuple(one.size), one.properties.dtype)
            for key, one in held.items()
            if isinstance(one, TensorStorageMetadata)
        }

    def keys(self) -> tuple[str, ...]:
        return tuple(self._infos)

    def _info(self, key: str) -> Info:
        return self._infos[key]

    def _read(self, key: str, box: Box | None) -> Tensor:
        from torch.distributed.checkpoint.state_dict_loader import load

        info = self._infos[key]
        into = {key: torch.empty(info.shape, dtype=info.dtype)}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is", UserWarning)  # that it reads by itself is meant
            load(into, storage_reader=self._reader, no_dist=True)
        return cut(into[key], box)

    def _known(self) -> Mapping[str, object]:
        return self._infos
