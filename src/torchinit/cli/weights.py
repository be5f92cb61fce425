"""Weights: the tensors of a model, to a safetensors file that is the same for the same values, byte for byte.

The library ``safetensors`` writes its metadata in an order that changes from run to run, hence a writer of our own.
The format: https://huggingface.co/docs/safetensors#format
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchinit._files import replacing
from torchinit._text import count, dtype_name
from torchinit.checkpoints.formats.safetensors import DTYPES, TIED, SafetensorsCheckpoint
from torchinit.cli.frame import UsageError, check_free
from torchinit.model.names import normalize
from torchinit.plans import Diff, Fingerprint
from torchinit.plans.fingerprint import fingerprint

CODES = {dtype: code for code, dtype in DTYPES.items()}  # the format's names of dtypes


def check_output(path: Path, *, force: bool) -> None:
    """Refuse an output that cannot be written before anything costly is done."""
    if path.suffix != ".safetensors":
        raise UsageError(f"the output is a .safetensors file, but got {str(path)!r}")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {str(path.parent)!r} to write {path.name!r} to")
    check_free(path, force=force)


def write_state(
    path: Path, state: Mapping[str, object], metadata: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Write a state dict, a tied tensor once, under its first name; return what :func:`distinct` says of it.

    The other names of tied tensors are in the metadata, under ``torchinit.tied``, as a JSON object. Raises UsageError
    for what the format cannot hold.
    """
    tensors, tied = distinct(state)
    extra = {TIED: json.dumps(tied, sort_keys=True)} if tied else {}
    write(path, tensors, {"format": "pt", **metadata, **extra})
    return tensors, tied


def distinct(state: Mapping[str, object]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a state by their first names, and which other name means which of them."""
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    names: dict[object, str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise UsageError(f"{name} is a {type(tensor).__name__}; safetensors holds tensors only")
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        first = names.setdefault(key, name)
        if first == name:
            kept[name] = tensor
        else:
            tied[name] = first
    return kept, tied


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # the widest first: aligned
    head = _head({name: tensors[name] for name in order}, metadata)
    with replacing(path) as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in order:
            feed(tensors[name], file.write)


def _head(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    begin = 0
    for name, tensor in tensors.items():
        if name == "__metadata__" or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise UsageError(f"{name!r} cannot be written: safetensors has no such name for a tensor")
        if tensor.dtype not in CODES or tensor.layout != torch.strided or tensor.is_meta:
            raise UsageError(f"{name} cannot be written: safetensors has no {tensor.dtype}, {tensor.layout}")
        end = begin + tensor.nbytes
        entries[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)


def feed(tensor: Tensor, function: Callable[[Any], object]) -> None:
    """Call a function with the bytes of a tensor, straight from its memory."""
    here = tensor.detach().cpu().contiguous()  # alive until the function has returned
    if here.nbytes:
        function((ctypes.c_char * here.nbytes).from_address(here.data_ptr()))


def compare(a: Path, b: Path) -> Diff:
    """The tensors in which two safetensors files differ, bit for bit; the files are mapped, not read into memory."""
    (first, _), (second, _) = open_file(a), open_file(b)
    diff = Diff.between(first, second, agree=same_bits, facts=_facts)
    changes = []
    for change in sorted(diff, key=lambda change: change.name):
        distance = _distance(first[change.name], second[change.name]) if change.verb == "changed" else []
        after, gist = (", ".join([*filter(None, [text]), *distance]) for text in (change.after, change.gist))
        changes.append(replace(change, after=after, gist=gist))
    return Diff.of(changes, diff.same)


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same in shape, dtype and every bit: NaN equals itself, -0 is not 0."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))


def open_file(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """The tensors of a safetensors file, by name, in mapped memory; and the other names of tied ones.

    Raises UsageError where there is no file, CheckpointError for one that is not sound.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r}")
    file = SafetensorsCheckpoint(path)
    return {key: file.read(key) for key in file if key not in file.tied}, file.tied


def fingerprint_of(path: Path) -> Fingerprint:
    """The fingerprint of the tensors of a safetensors file."""
    tensors, tied = open_file(path)
    return replace(fingerprint(tensors), aliases=tied)


def load(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Give a model what stands under its names, wrappers left out of them, and in its shapes; no more."""
    state = {normalize(name): tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    for key, value in tensors.items():
        target = state.get(normalize(key))
        if target is not None and target.shape == value.shape:
            target.copy_(value)


def _facts(tensor: Tensor) -> tuple[str, str]:
    return str(list(tensor.shape)), dtype_name(tensor.dtype)


def _distance(first: Tensor, second: Tensor) -> list[str]:
    if first.shape != second.shape or not first.numel():
        return []
    wide = torch.complex128 if first.is_complex() or second.is_complex() else torch.float64
    apart = (first.to(wide) - second.to(wide)).abs()
    return [f"{count(int(apart.ne(0).sum()), 'element')} apart by up to {float(apart.max()):.6g}"]
