"""`torchinit fetch`: the local file of a source, and what it names, fetched if it is not here."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from torchinit.checkpoints import fetch
from torchinit.checkpoints.formats.sharded import read_index
from torchinit.checkpoints.hub.cache import hash_of
from torchinit.checkpoints.hub.urls import member_of
from torchinit.cli import options

if TYPE_CHECKING:
    from torchinit.cli.options import Commands


def add(commands: Commands) -> None:
    """Describes the command to the parser."""
    parser = commands.add_parser("fetch", help="fetch a checkpoint and print where it lies")
    parser.add_argument("source", metavar="SOURCE", help="a path, https://, hf://, torchvision:// or timm://")
    parser.add_argument("--sha256", metavar="HASH", help="the hash that the file must have")
    parser.add_argument("--lock", type=Path, metavar="FILE", help="the lock file (default: $TORCHINIT_LOCK)")
    parser.add_argument(
        "--frozen", action="store_true", default=None, help="refuse a source that is not in the lock file"
    )
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the path of the file; of an index also those of the files that it names."""
    options = {"lock": arguments.lock, "frozen": arguments.frozen}
    path = fetch(arguments.source, sha256=arguments.sha256, **options)
    parts = {source: fetch(source, **options) for source in _parts(arguments.source, path)}
    if arguments.json:
        more = {"parts": [_described(*part) for part in parts.items()]} if parts else {}
        print(json.dumps({**_described(arguments.source, path), **more}, indent=2))
    else:
        print(path, *parts.values(), sep="\n")
    return 0


def _described(source: str, path: Path) -> dict[str, object]:
    whole = {"sha256": hash_of(path), "size": path.stat().st_size} if path.is_file() else {}
    return {"source": source, "path": str(path), **whole}


def _parts(source: str, path: Path) -> tuple[str, ...]:
    """The sources of the files that an index names; none for any other file."""
    if not path.name.endswith(".index.json"):
        return ()
    return tuple(member_of(source, name) for name in sorted({*read_index(path).values()}))
