"""Torch files: what ``torch.save`` wrote, mapped into memory and unpickled by torch's restricted unpickler alone."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchinit.checkpoints.readers.base import Stamp
from torchinit.checkpoints.readers.calls import RefusedPickleError, refused
from torchinit.checkpoints.readers.memory import MemoryCheckpoint
from torchinit.checkpoints.readers.pickles import check_pickles
from torchinit.checkpoints.readers.states import find_state
from torchinit.checkpoints.readers.zips import check_zip, is_zip
from torchinit.core.shards import Box
from torchinit.errors import CheckpointError


class TorchCheckpoint(MemoryCheckpoint):
    """A file of ``torch.save``: of the zip format nothing is read before it is used, of the older one everything."""

    _stamp: Stamp

    def __init__(self, path: Path, *, part: str | None = None) -> None:
        self._stamp = Stamp(path)
        state, where, notes = find_state(load_file(path), str(path), part)
        form = "torch" if is_zip(path) else "torch, legacy"
        super().__init__(str(path), state, form=form, part=where, notes=notes)

    def _read(self, key: str, box: Box | None) -> Tensor:
        self._stamp.check()
        return super()._read(key, box)


def load_file(path: Path, map_location: Any = "cpu", *, mapped: bool = True) -> Any:
    """Whatever a file of ``torch.save`` holds, without running any code in it; ``mapped`` reads nothing before its use.

    Raises CheckpointError for a file that is damaged or compressed, and RefusedPickleError, which is one, for
    other objects than tensors and plain data.
    """
    zipped = is_zip(path)
    check_zip(path) if zipped else check_old(path)
    try:
        held = torch.load(path, map_location=map_location, weights_only=True, mmap=zipped and mapped)
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from None
    except Exception as error:
        # What a damaged pickle raises depends on where it is damaged.
        raise CheckpointError(f"{path}: cannot be read, it is damaged: {_first_line(error)}") from error
    _check_methods(path, held)
    return held


def check_old(path: Path) -> None:
    """Raises CheckpointError for a file of torch's older format that is damaged, or whose memory is not all there."""
    with path.open("rb") as file:
        memory, keys = check_pickles(str(path), file)
        if memory.keys() != {*keys} or len(keys) > len(memory):
            raise CheckpointError(f"{path}: the memory of its tensors is not in the file")
        size = path.stat().st_size
        for key in keys:  # a piece is its number of elements, then these
            numel = int.from_bytes(file.read(8), "little")
            if numel != memory[key].numel or file.seek(memory[key].nbytes, 1) > size:
                raise CheckpointError(f"{path}: the memory {key!r} of its tensors is not whole in the file")


def _check_methods(path: Path, held: object) -> None:
    """Raises CheckpointError where a table or tensor has an attribute in place of one of its methods."""
    left, seen = [held], set[int]()
    while left:
        one = left.pop()
        if id(one) in seen or not isinstance(one, (Tensor, dict, list, tuple, set)):
            continue
        seen.add(id(one))
        if hidden := [name for name in getattr(one, "__dict__", ()) if hasattr(type(one), name)]:
            raise refused(str(path), f"gives a {type(one).__name__} its own {hidden[0]!r}")
        if not isinstance(one, Tensor):
            left += one.values() if isinstance(one, Mapping) else one


def _refused(path: Path, error: Exception) -> RefusedPickleError:
    text = str(error)
    found = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"(?:class|function|global) ([\w.]+)", text)
    what = f"asks for {found[1]}" if found else f"does what torch.save does not ({_first_line(error).rstrip('.')})"
    return refused(str(path), what)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    _, _, reason = text.rpartition("WeightsUnpickler error:")
    return (reason.strip().splitlines() or [type(error).__name__])[0][:200]
