"""inspect: show what a file of weights holds; nothing in it is run."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor

from torchinit._folding import Column, Row, fold
from torchinit._tables import Table
from torchinit._text import count, dtype_name, one_line, shape_text
from torchinit.checkpoints import Checkpoint, fetch, open_checkpoint
from torchinit.checkpoints.hub.cache import hash_of
from torchinit.cli import options, weights
from torchinit.errors import CheckpointError


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("file", metavar="FILE", help="a path, a URL or another source of weights")
    options.add_part(parser)
    parser.add_argument("--hashes", action="store_true", help="also the SHA-256 of each tensor's bytes; reads them all")
    options.add_all(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each tensor, and what is known of the whole."""
    checkpoint = open_checkpoint(arguments.file, part=arguments.part)
    data = describe(checkpoint, fetch(arguments.file), hashes=arguments.hashes)
    return options.show(arguments, data, table(data, full=arguments.all))


def describe(checkpoint: Checkpoint, path: Path, *, hashes: bool) -> dict[str, Any]:
    """The content of a file of weights, as plain data."""
    tensors, odd = [], dict[str, None]()  # a file that cannot be opened is told once, not for each of its tensors
    for key in checkpoint:
        try:
            info = checkpoint.info(key)
        except CheckpointError as error:
            odd[str(error)] = None
            continue
        entry = {"name": key, "shape": list(info.shape), "dtype": dtype_name(info.dtype), "bytes": info.nbytes}
        tensors.append({**entry, "sha256": _hash(checkpoint.read(key))} if hashes else entry)
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
    digest = hashlib.sha256()
    weights.feed(tensor, digest.update)
    return digest.hexdigest()


_COLUMNS = (Column("shape"), Column("dtype", once=True), Column("bytes", "sum", right=True), Column("sha256"))


def table(data: dict[str, Any], *, full: bool = False) -> Table:
    """The same as a table."""
    rows = [
        Row(entry["name"], (shape_text(entry["shape"]), entry["dtype"], entry["bytes"], entry.get("sha256", "")[:16]))
        for entry in data["tensors"]
    ]
    part = f", part {data['part']!r}" if data["part"] else ""
    total = sum(entry["bytes"] for entry in data["tensors"])
    (*dtype,) = {entry["dtype"] for entry in data["tensors"]}
    all_of = f", {dtype[0]}" if len(dtype) == 1 else ""
    foot = [
        f"{data['file']}: {data['format']}{part}, {count(len(rows), 'tensor')} of {total:,} bytes{all_of}",
        f"{data['bytes']:,} bytes in the file, sha256 {data['sha256']}",
        *map(one_line, data["notes"]),
        *(one_line(f"{key}: {text}") for key, text in data["metadata"].items()),
    ]
    return Table(
        "tensor",
        _COLUMNS,
        fold(rows, _COLUMNS, among=[row.name for row in rows], full=full),
        foot=tuple(foot),
        tree=not full,
    )
