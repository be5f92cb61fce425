"""Readers: checkpoints of every format, opened by one function and read alike."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from torchinit.checkpoints.hub.schemes import fetch
from torchinit.checkpoints.readers.base import Checkpoint, Info
from torchinit.checkpoints.readers.calls import RefusedPickleError
from torchinit.checkpoints.readers.dcp import DistributedCheckpoint
from torchinit.checkpoints.readers.memory import MemoryCheckpoint, of_model
from torchinit.checkpoints.readers.numpy_file import NumpyCheckpoint
from torchinit.checkpoints.readers.safetensors_file import SafetensorsCheckpoint
from torchinit.checkpoints.readers.sharded import ShardedCheckpoint
from torchinit.checkpoints.readers.sniff import sniff
from torchinit.checkpoints.readers.states import find_state
from torchinit.checkpoints.readers.torch_file import TorchCheckpoint
from torchinit.errors import CheckpointError

__all__ = ["Checkpoint", "Info", "RefusedPickleError", "open_checkpoint", "open_file"]


def open_checkpoint(
    source: str | os.PathLike[str] | Mapping[str, Any] | nn.Module | Checkpoint,
    *,
    part: str | None = None,
    trust: bool = False,
) -> Checkpoint:
    """The named tensors of a file, a dict or a model; what a file is tells its content, not its name.

    Read are safetensors, files of ``torch.save``, the indices of sharded ones, and NumPy's. Of nested training
    checkpoints the weights are found; ``part`` says where they are instead. No code in a file is run, unless
    ``trust`` allows it for a folder of torch.distributed.checkpoint. Sources are those of :func:`fetch`. Raises
    CheckpointError, and FileNotFoundError for a path where nothing is.

    >>> import torch
    >>> checkpoint = open_checkpoint({"epoch": 3, "state_dict": {"fc.weight": torch.zeros(2, 3)}})
    >>> checkpoint.part, checkpoint.keys(), checkpoint.info("fc.weight").shape
    ('state_dict', ('fc.weight',), (2, 3))
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, nn.Module):
        return of_model(source)
    if isinstance(source, Mapping):
        tensors, where, notes = find_state(source, "dict in memory", part)
        return MemoryCheckpoint("dict in memory", tensors, part=where, notes=notes)
    try:
        path = fetch(source)
        if trust and path.is_dir():
            return DistributedCheckpoint(path)
        return open_file(path, os.fspath(source), part)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{os.fspath(source)}: cannot be read: {error}") from error


def open_file(path: Path, source: str, part: str | None = None) -> Checkpoint:
    """A local file, which is what ``source`` stands for; the files of an index are had from beside the source."""
    form = sniff(path)
    if form in ("zip", "pickle"):
        return TorchCheckpoint(path, part=part)
    if part is not None:
        raise CheckpointError(f"{path}: is no nested checkpoint, so it has no part {part!r}")
    if form == "index":
        return ShardedCheckpoint(path, source, _open_shard)
    return SafetensorsCheckpoint(path) if form == "safetensors" else NumpyCheckpoint(path)


def _open_shard(source: str) -> Checkpoint:
    path = fetch(source)
    if sniff(path) == "index":
        raise CheckpointError(f"{path}: is an index again, where an index named a file of weights")
    return open_file(path, source)
