"""Torch files: what ``torch.save`` wrote, mapped into memory and unpickled by torch's restricted unpickler alone."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchinit.checkpoints.readers.memory import MemoryCheckpoint
from torchinit.checkpoints.readers.pickles import check_pickle, check_pickles
from torchinit.checkpoints.readers.states import find_state
from torchinit.errors import CheckpointError

_LARGEST_PICKLE = 1 << 28
_LARGEST_HEADER = 1 << 17


class RefusedPickleError(CheckpointError, pickle.UnpicklingError):
    """A pickle that asks for more than tensors and plain data; nothing of it was run."""


class TorchCheckpoint(MemoryCheckpoint):
    """A file of ``torch.save``: of the zip format nothing is read before it is used, of the older one everything."""

    def __init__(self, path: Path, *, part: str | None = None) -> None:
        state, where, notes = find_state(load_file(path), str(path), part)
        form = "torch" if is_zip(path) else "torch, legacy"
        super().__init__(str(path), state, form=form, part=where, notes=notes)


def load_file(path: Path, map_location: Any = "cpu", *, mapped: bool = True) -> Any:
    """Whatever a file of ``torch.save`` holds, without running any code in it; ``mapped`` reads nothing before its use.

    Raises CheckpointError for a file that is damaged or compressed, and RefusedPickleError, which is one, for
    other objects than tensors and plain data.
    """
    zipped = is_zip(path)
    sizes = check_zip(path) if zipped else check_old(path)
    try:
        held = torch.load(path, map_location=map_location, weights_only=True, mmap=zipped and mapped)
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from None
    except Exception as error:
        # What a damaged pickle raises depends on where it is damaged.
        raise CheckpointError(f"{path}: cannot be read, it is damaged: {_first_line(error)}") from error
    _check_memory(path, held, sizes)
    return held


def _check_memory(path: Path, held: object, sizes: list[int]) -> None:
    """Raises CheckpointError where tensors lie in more memory than the file has for them."""
    pieces = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in _tensors(held)}
    beyond = Counter(size for size in pieces.values() if size) - Counter(sizes)
    if beyond:
        raise CheckpointError(f"{path}: a tensor lies in {min(beyond):,} bytes, but there is no such piece in the file")


def _tensors(held: object) -> Iterator[Tensor]:
    """Every plain tensor in tables and lists, however deep."""
    left, seen = [held], set[int]()
    while left:
        one = left.pop()
        if id(one) in seen:  # a list may hold itself
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            if one.layout == torch.strided and not one.is_meta:
                yield one
        elif isinstance(one, Mapping):
            left += one.values()
        elif isinstance(one, (list, tuple, set)):
            left += one


def is_zip(path: Path) -> bool:
    """Whether the file is of the zip format, as torch tells it."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _refused(path: Path, error: Exception) -> RefusedPickleError:
    text = str(error)
    found = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"(?:class|function|global) ([\w.]+)", text)
    what = f"asks for {found[1]}" if found else f"does what torch.save does not ({_first_line(error).rstrip('.')})"
    return RefusedPickleError(
        f"{path}: is refused: its pickle {what}, and only tensors and plain data are read. Nothing in it was run."
        " Get the weights as .safetensors, or save their state_dict alone"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    _, _, reason = text.rpartition("WeightsUnpickler error:")
    return (reason.strip().splitlines() or [type(error).__name__])[0][:200]


def check_old(path: Path) -> list[int]:
    """The sizes of the pieces of memory in a file of torch's older format; raises CheckpointError for a damaged one."""
    with path.open("rb") as file:
        return check_pickles(str(path), file)


def check_zip(path: Path) -> list[int]:
    """The sizes of the pieces of memory in a zip that ``torch.save`` wrote.

    Raises CheckpointError for any other: compressed, overlapping, with code in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeError, OverflowError) as error:
        raise CheckpointError(f"{path}: is no whole zip file (cut short?): {error}") from error
    _check_names(path, [entry.filename for entry in entries])
    _check_entries(path, entries)
    with path.open("rb") as file:
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                file.seek(entry.header_offset)
                check_pickle(str(path), _content(file.read(entry.file_size + _LARGEST_HEADER), entry))
    return [entry.file_size for entry in entries if "/data/" in entry.filename]


def _content(raw: bytes, entry: zipfile.ZipInfo) -> bytes:
    """The bytes of an entry that is stored as it is, behind the header before it."""
    begin = 30 + int.from_bytes(raw[26:28], "little") + int.from_bytes(raw[28:30], "little")
    return raw[begin : begin + entry.file_size]


def _check_names(path: Path, names: list[str]) -> None:
    parts = {name.split("/")[1] for name in names if name.count("/") > 1} | {name.rpartition("/")[2] for name in names}
    if "code" in parts or "constants.pkl" in parts:
        raise CheckpointError(
            f"{path}: is a TorchScript program, code and weights in one. It is not opened; load it with torch.jit.load"
            " where you trust it, and save its state_dict() alone"
        )
    if "data.pkl" not in parts:
        raise CheckpointError(f"{path}: is a zip file without data.pkl, so none that torch.save wrote")
    if len(set(names)) < len(names):
        raise CheckpointError(f"{path}: has two entries of one name")


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    at, size = 0, path.stat().st_size
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise CheckpointError(f"{path}: {entry.filename} is compressed, which torch.save never does; refused")
        if entry.flag_bits & 1:
            raise CheckpointError(f"{path}: {entry.filename} is encrypted; refused")
        if entry.header_offset < at or entry.header_offset + entry.file_size > size:
            raise CheckpointError(f"{path}: {entry.filename} overlaps another entry or the end of the file; refused")
        if entry.filename.endswith("data.pkl") and entry.file_size > _LARGEST_PICKLE:
            raise CheckpointError(f"{path}: its pickle has {entry.file_size:,} bytes; refused")
        at = entry.header_offset + entry.file_size
