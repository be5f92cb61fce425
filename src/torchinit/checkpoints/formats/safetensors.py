"""Safetensors: a header of names, shapes and offsets, then bytes. The header is checked before anything is read.

The format: https://huggingface.co/docs/safetensors#format. The file is mapped here, not by the package of that name,
which takes ten times as long for a tensor: as long as copying 200,000 numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

import torchinit._limits as limits
from torchinit.checkpoints.formats.base import Checkpoint, Info, Stamp, are_counts, cut, is_shape
from torchinit.errors import CheckpointError
from torchinit.model.sandbox import refuse_fakes
from torchinit.model.shards import Box
from torchinit.noise.engines.tasks import strides
from torchinit.serialization.json import unique_json

DTYPES: Final[Mapping[str, torch.dtype]] = {  # the format's names of dtypes
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
    "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
} | ({"F8_E8M0": torch.float8_e8m0fnu} if hasattr(torch, "float8_e8m0fnu") else {})  # fmt: skip  # since torch 2.7

TIED: Final = "torchinit.tied"
"""The metadata under which torchinit keeps the other names of tied tensors: a JSON object of names."""


class SafetensorsCheckpoint(Checkpoint):
    """A .safetensors file; tensors are views of the mapped file. Raises CheckpointError for a header that lies.

    ``tied`` are the names that stand for another tensor of the file, and for which.
    """

    format = "safetensors"

    def __init__(self, path: Path) -> None:
        self.name: str = str(path)
        self._stamp = Stamp(path)
        metadata, entries = read_header(path)
        self.metadata: Mapping[str, str] = metadata
        self.tied: dict[str, str] = _tied_names(path, self.metadata, entries)
        self._entries = entries | {name: entries[first] for name, first in self.tied.items()}
        self._views: dict[str, Tensor] = {}
        try:  # nothing is read before it is looked at; what would be written to the memory goes nowhere
            self._storage = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
        except (RuntimeError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be mapped: {error}") from error

    def _info(self, key: str) -> Info:
        info: Info | str = self._entries[key][1]
        if isinstance(info, str):
            raise CheckpointError(f"{self.name}: {key} is of dtype {info}, which torch does not have")
        return info

    def _read(self, key: str, box: Box | None) -> Tensor:
        if key not in self._views:
            refuse_fakes()  # who would get a tensor of memory that is there, and fail with it
            begin, info = self._entries[key][0], self._info(key)
            storage: Any = self._storage
            at, odd = divmod(begin, info.dtype.itemsize)
            if odd:  # a header may have any length; a storage of its own may begin anywhere, but takes longer to make
                storage, at = storage[begin : begin + info.nbytes], 0
            view = torch.empty(0, dtype=info.dtype, device="cpu")
            self._views[key] = view.set_(storage, at, info.shape, strides(info.shape))
        return cut(self._views[key], box)


TensorEntry: TypeAlias = tuple[int, Info | str]
"""Where the bytes of a tensor begin in the file, and what it is: of a dtype that torch lacks its name."""


def read_header(path: Path) -> tuple[dict[str, str], dict[str, TensorEntry]]:
    """The text and the tensors of a header.

    Raises CheckpointError for a header that is too long, not JSON, has a key twice, or does not account for
    every byte of the file once.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(limits.HEADER_BYTES, size - 8):
            raise _bad(path, f"its header would have {length:,} bytes, the file has {size:,}: cut short?")
        data = _table(path, "header", file.read(length), 10 * limits.TENSORS)  # a tensor has about seven values
    texts = data.pop("__metadata__", {})
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise _bad(path, "its metadata are not text")
    spans = {key: _span(path, key, entry) for key, entry in data.items()}
    _check_spans(path, [(begin, end) for begin, end, _ in spans.values()], size - 8 - length)
    return texts, {key: (8 + length + begin, info) for key, (begin, _, info) in spans.items()}


def _tied_names(path: Path, texts: Mapping[str, str], entries: Mapping[str, TensorEntry]) -> dict[str, str]:
    names = _table(path, TIED, texts.get(TIED, "{}").encode(errors="surrogatepass"), limits.TIED)
    if not all(isinstance(first, str) and first in entries for first in names.values()):
        raise _bad(path, f"its {TIED} are not names of its tensors")
    return {name: first for name, first in names.items() if name not in entries}


def _table(path: Path, name: str, raw: bytes, most: int) -> dict[str, Any]:
    try:
        data = unique_json(raw, most)
    except ValueError as error:
        raise _bad(path, f"its {name} {error}") from error
    if not isinstance(data, dict):
        raise _bad(path, f"its {name} is not a table")
    return data


def _span(path: Path, key: str, entry: Any) -> tuple[int, int, Info | str]:
    """The bytes of a tensor, and what it is; raises CheckpointError where the two do not agree."""
    if not isinstance(entry, dict) or {*entry} != {"dtype", "shape", "data_offsets"}:
        raise _bad(path, f"{key!r} needs dtype, shape and data_offsets")
    shape, offsets, name = entry["shape"], entry["data_offsets"], entry["dtype"]
    lists = type(shape) is type(offsets) is list
    if not (lists and is_shape(shape) and len(offsets) == 2 and are_counts(offsets) and isinstance(name, str)):
        raise _bad(path, f"{key!r} has a shape, offsets or dtype of a wrong kind")
    begin, end = offsets
    dtype = DTYPES.get(name)
    if begin > end or (dtype is not None and end - begin != math.prod(shape) * dtype.itemsize):
        raise _bad(path, f"{key!r} of shape {shape} in {name} does not fill its bytes {begin} to {end}")
    return begin, end, name if dtype is None else Info(tuple(shape), dtype)


def _check_spans(path: Path, spans: list[tuple[int, int]], size: int) -> None:
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise _bad(path, f"its tensors {'overlap' if begin < at else 'leave a hole'} at byte {min(begin, at)}")
        at = end
    if at != size:
        raise _bad(path, f"its tensors take {at:,} bytes, but {size:,} are there: cut short, or something is appended")


def _bad(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: is not a valid safetensors file: {why}")
