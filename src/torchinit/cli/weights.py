"""Weights: the tensors of a model, to a safetensors file that is the same for the same values, byte for byte.

The library ``safetensors`` writes its metadata in an order that changes from run to run, hence a writer of our own.
The format: https://huggingface.co/docs/safetensors#format
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from torchinit import fingerprint
from torchinit.checkpoints.formats.safetensors import DTYPES, TIED, SafetensorsCheckpoint
from torchinit.cli.errors import UsageError
from torchinit.errors import count
from torchinit.model.names import normalize
from torchinit.plans import Change, Fingerprint

CODES = {dtype: code for code, dtype in DTYPES.items()}
"""The format's names of dtypes."""


def check_output(path: Path, *, force: bool) -> None:
    """Refuses an output that cannot be written before anything costly is done."""
    if path.suffix != ".safetensors":
        raise UsageError(f"the output is a .safetensors file, but got {str(path)!r}")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {str(path.parent)!r} to write {path.name!r} to")
    if path.exists() and not force:
        raise UsageError(f"{str(path)!r} exists already; --force overwrites it")


def write_model(path: Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Writes what ``model.state_dict()`` holds, a tied tensor once, under its first name.

    Its other names are in the metadata, under ``torchinit.tied``, as a JSON object. Raises UsageError for what
    the format cannot hold.
    """
    tensors, tied = distinct(model.state_dict())
    extra = {TIED: json.dumps(tied, sort_keys=True)} if tied else {}
    write(path, tensors, {"format": "pt", **metadata, **extra})


def distinct(state: Mapping[str, object]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a state by their first names, and which other name means which of them."""
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[object, str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise UsageError(f"{name} is a {type(tensor).__name__}; safetensors holds tensors only")
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        first = seen.setdefault(key, name)
        if first == name:
            kept[name] = tensor
        else:
            tied[name] = first
    return kept, tied


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, whole or not at all."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # the widest first: aligned
    head = _head({name: tensors[name] for name in order}, metadata)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for name in order:
                _write_tensor(file, tensors[name])
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _head(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    begin = 0
    for name, tensor in tensors.items():
        if name == "__metadata__" or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise UsageError(f"{name!r} cannot be written: safetensors has no such name for a tensor")
        if tensor.dtype not in CODES or tensor.layout != torch.strided or tensor.is_meta:
            raise UsageError(f"{name} cannot be written: safetensors has no {tensor.dtype}, {tensor.layout}")
        end = begin + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)


def _write_tensor(file: BinaryIO, tensor: Tensor) -> None:
    here = tensor.detach().cpu().contiguous()
    size = here.numel() * here.element_size()
    if size:  # straight from the tensor's memory; `here` keeps it alive
        file.write((ctypes.c_char * size).from_address(here.data_ptr()))


def compare(a: Path, b: Path) -> tuple[Change, ...]:
    """The tensors in which two safetensors files differ, bit for bit; the files are mapped, not read into memory."""
    first, second = File(a), File(b)
    found = [Change(name, "removed", before=_shown(first[name])) for name in first.keys() - second.keys()]
    found += [Change(name, "added", after=_shown(second[name])) for name in second.keys() - first.keys()]
    for name in first.keys() & second.keys():
        one, other = first[name], second[name]
        if not same_bits(one, other):
            found.append(Change(name, "changed", _shown(one), _shown(other) + _distance(one, other)))
    return tuple(sorted(found, key=lambda change: change.name))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same in shape, dtype and every bit: NaN equals itself, -0 is not 0."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


class File(Mapping[str, Tensor]):
    """What a safetensors file holds, by name; ``tied`` are the other names of its tensors.

    Raises UsageError where there is no file, CheckpointError for one that is not sound.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UsageError(f"there is no file {str(path)!r}")
        self._file = SafetensorsCheckpoint(path)
        self.tied = self._file.tied

    def __len__(self) -> int:
        return len(self._file) - len(self.tied)

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._file if key not in self.tied)

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._file:
            raise KeyError(key)
        return self._file.read(key)


def fingerprint_of(path: Path) -> Fingerprint:
    """The fingerprint of what a safetensors file holds; a tensor at a time is in memory."""
    file = File(path)
    return replace(fingerprint(file), aliases=file.tied)


def load(file: Mapping[str, Tensor], model: nn.Module) -> None:
    """Gives a model what a file holds under its names, wrappers left out of them, and in its shapes; no more."""
    state = {normalize(name): tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    for key in file:
        target = state.get(normalize(key))
        value = file[key] if target is not None else None
        if target is not None and value is not None and target.shape == value.shape:
            target.copy_(value)


def _shown(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _distance(one: Tensor, other: Tensor) -> str:
    if one.shape != other.shape or not one.numel():
        return ""
    wide = torch.complex128 if one.is_complex() or other.is_complex() else torch.float64
    apart = (one.to(wide) - other.to(wide)).abs()
    return f", {count(int(apart.ne(0).sum()), 'element')} apart by up to {float(apart.max()):.6g}"
