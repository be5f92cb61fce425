"""Files: what the tests of checkpoints write, sound and otherwise."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor


def state() -> dict[str, Tensor]:
    """A few tensors of several dtypes."""
    return {
        "stem.weight": torch.arange(24, dtype=torch.float32).view(4, 2, 3) / 7,
        "stem.bias": torch.tensor([1.0, -2.0, 3.0, -4.0], dtype=torch.float16),
        "norm.num_batches_tracked": torch.tensor(5),
        "norm.running_var": torch.tensor([0.5, 2.0], dtype=torch.bfloat16),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
    }


def write(form: str, folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    """The tensors in a file of this format."""
    if form == "safetensors":
        save_file(dict(tensors), folder / "a.safetensors")
        return folder / "a.safetensors"
    if form in ("zip", "legacy"):
        torch.save(dict(tensors), folder / "a.pth", _use_new_zipfile_serialization=form == "zip")
        return folder / "a.pth"
    if form == "npz":
        numpy = __import__("numpy")
        numpy.savez(folder / "a.npz", **{key: value.numpy() for key, value in tensors.items()})
        return folder / "a.npz"
    return write_index(folder, tensors, form.removeprefix("sharded-"))


def write_index(folder: Path, tensors: Mapping[str, Tensor], form: str) -> Path:
    """The tensors in two files of a format, and an index of them."""
    weight_map: dict[str, str] = {}
    for number in (0, 1):
        part = dict(list(tensors.items())[number::2])
        (inner := folder / f"part-{number}").mkdir()
        file = write(form, inner, part)
        file = file.rename(folder / f"{number}{file.suffix}")
        weight_map |= dict.fromkeys(part, file.name)
    path = folder / "model.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def raw_safetensors(path: Path, header: Any, body: bytes = b"", *, length: int | None = None) -> Path:
    """A safetensors file with this header, given as data or as bytes, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path
