"""Pickles that ask for nothing but what all do, read by Python's own unpickler; torch's takes ten times as long."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import TypedStorage

from torchinit.checkpoints.formats.pickle_audit import COMMON
from torchinit.checkpoints.formats.zip_audit import Audited


def _tensor(memory: TypedStorage, offset: int, size: Any, stride: Any, requires_grad: bool, hooks: Any) -> torch.Tensor:
    """A tensor as ``torch._utils._rebuild_tensor_v2`` makes it, which looks for fake modes each time."""
    made: Any = torch._utils._rebuild_tensor(memory, offset, size, stride)
    made.requires_grad = requires_grad
    made._backward_hooks = hooks
    return made  # type: ignore[no-any-return]  # what torch makes is not annotated


class _Common(pickle.Unpickler):
    """An unpickler that knows no name but the common ones, and takes memory from the mapped file."""

    # The audit has followed each operation and found these alone: dicts and lists that are filled, OrderedDicts, which
    # may get attributes, and plain tensors. So this does no more than torch's own unpickler would, which is written in
    # Python; and whatever goes wrong here is left to that one to tell.
    def __init__(self, path: Path, audited: Audited) -> None:
        super().__init__(io.BytesIO(audited.common))
        self._file: Any = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
        self._places = audited.places
        self._pieces: dict[str, TypedStorage] = {}

    def find_class(self, module: str, name: str) -> Any:
        known = COMMON[f"{module}.{name}"]
        return _tensor if known is torch._utils._rebuild_tensor_v2 else known

    def persistent_load(self, wanted: Any) -> TypedStorage:
        _, dtype, key, _, _ = wanted
        if key not in self._pieces:
            piece = self._file[self._places[key]]
            self._pieces[key] = TypedStorage(wrap_storage=piece, dtype=dtype, _internal=True)
        return self._pieces[key]


def read_common(path: Path, audited: Audited) -> Any:
    """The content of a file of ``torch.save``, its tensors in the mapped file; None where torch has to read it."""
    if not audited.common or torch._guards.detect_fake_mode(None) is not None:
        return None
    try:
        return _Common(path, audited).load()
    except Exception:  # noqa: BLE001  # of any kind, as from torch: it depends on what is wrong
        return None
