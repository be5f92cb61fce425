"""Pickles that ask for nothing but what all do, read by Python's own unpickler; torch's takes ten times as long."""

from __future__ import annotations

import io
import pickle
import sys
from pathlib import Path
from typing import Any, Final

import torch
from torch import TypedStorage

from torchinit.checkpoints.formats.pickle_names import COMMON
from torchinit.checkpoints.formats.zip_audit import Audited

_USUAL: Final = {
    "version": b"3\n", "byteorder": sys.byteorder.encode(), ".format_version": b"1", ".storage_alignment": b"64",
}  # fmt: skip
"""What torch.save writes beside the pickle on a machine like this one, the last two since torch 2.7."""


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
    # Python; and whatever goes wrong here is left to that one to tell. What is read are the bytes that were audited,
    # and where the memory lies says torch's own reader of zips: no other is asked which entry is meant.
    def __init__(self, path: Path, pickled: bytes) -> None:
        super().__init__(io.BytesIO(pickled))
        reader: Any = torch._C.PyTorchFileReader(str(path))
        reader.get_all_records(), reader.serialization_id()  # which fail for names that torch cannot read
        for name, text in {**_USUAL, "data.pkl": pickled}.items():
            if (reader.get_record(name) if reader.has_record(name) or name == "byteorder" else text) != text:
                raise pickle.UnpicklingError(f"an unusual {name}")
        self._place_of = reader.get_record_offset
        self._file: Any = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
        self._pieces: dict[str, TypedStorage] = {}

    def find_class(self, module: str, name: str) -> Any:
        known = COMMON[f"{module}.{name}"]
        return _tensor if known is torch._utils._rebuild_tensor_v2 else known

    def persistent_load(self, wanted: Any) -> TypedStorage:
        _, kind, key, _, numel = wanted
        if key not in self._pieces:
            begin = self._place_of(f"data/{key}")
            piece = self._file[begin : begin + numel * (dtype := kind.dtype).itemsize]
            self._pieces[key] = TypedStorage(wrap_storage=piece, dtype=dtype, _internal=True)
        return self._pieces[key]


def read_common(path: Path, audited: Audited) -> Any:
    """The content of a file of ``torch.save``, its tensors in the mapped file; None where torch has to read it."""
    if not audited.common or torch._guards.detect_fake_mode(None) is not None:
        return None
    try:
        return _Common(path, audited.common).load()
    except Exception:  # noqa: BLE001  # of any kind, as from torch: it depends on what is wrong
        return None
