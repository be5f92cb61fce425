"""`torchinit inspect`: what a file of weights holds: names, shapes, dtypes, sizes, hashes. Nothing in it is run."""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from torchinit import CheckpointError, open_checkpoint
from torchinit._text import columns, one_line, shape_text
from torchinit.checkpoints import Checkpoint, fetch
from torchinit.checkpoints.hub.cache import hash_of
from torchinit.cli import options
from torchinit.errors import count, plain

if TYPE_CHECKING:
    from torchinit.cli.options import Commands


def add(commands: Commands) -> None:
    """Describes the command to the parser."""
    parser = commands.add_parser("inspect", help="show what a file of weights holds; nothing in it is run")
    parser.add_argument("file", metavar="FILE", help="a path, a URL or another source of weights")
    options.add_part(parser)
    parser.add_argument("--hashes", action="store_true", help="also the SHA-256 of each tensor's bytes; reads them all")
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints a line a tensor, and what is known of the whole."""
    checkpoint = open_checkpoint(arguments.file, part=arguments.part)
    found = describe(checkpoint, fetch(arguments.file), hashes=arguments.hashes)
    print(plain(json.dumps(found, indent=2, ensure_ascii=False) if arguments.json else table(found)))
    return 0


def describe(checkpoint: Checkpoint, path: Path, *, hashes: bool) -> dict[str, Any]:
    """What is known of a file of weights, as plain data."""
    tensors, odd = [], []
    for key in checkpoint:
        try:
            info = checkpoint.info(key)
        except CheckpointError as error:
            odd.append(str(error))
            continue
        dtype = str(info.dtype).removeprefix("torch.")
        tensors.append({"name": key, "shape": list(info.shape), "dtype": dtype, "bytes": info.nbytes})
        if hashes:
            tensors[-1]["sha256"] = _hash(checkpoint.read(key))
    return {
        "file": str(path),
        "format": checkpoint.format,
        "part": checkpoint.part,
        "notes": [*checkpoint.notes, *odd],
        "bytes": path.stat().st_size,
        "sha256": hash_of(path),
        "metadata": dict(checkpoint.metadata),
        "tensors": tensors,
    }


def _hash(tensor: Tensor) -> str:
    here = tensor.contiguous()
    size = here.numel() * here.element_size()
    return hashlib.sha256((ctypes.c_char * size).from_address(here.data_ptr()) if size else b"").hexdigest()


def table(found: dict[str, Any]) -> str:
    """The same as text."""
    tensors = found["tensors"]
    head = ("name", "shape", "dtype", "bytes", "sha256")
    rows = [
        (one["name"], shape_text(one["shape"]), one["dtype"], f"{one['bytes']:,}", one.get("sha256", "")[:16])
        for one in tensors
    ]
    width = 5 if any(row[4] for row in rows) else 4
    part = f", part {found['part']!r}" if found["part"] else ""
    total = sum(one["bytes"] for one in tensors)
    return "\n".join(
        [
            columns(head[:width], [row[:width] for row in rows]),
            f"{found['file']}: {found['format']}{part}, {count(len(tensors), 'tensor')} of {total:,} bytes",
            f"{found['bytes']:,} bytes in the file, sha256 {found['sha256']}",
            *map(one_line, found["notes"]),
            *(one_line(f"{key}: {text}") for key, text in found["metadata"].items()),
        ]
    )
