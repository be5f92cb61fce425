"""`torchinit fetch`: the local file of a source, fetched if it is not here."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from torchinit.checkpoints import fetch
from torchinit.checkpoints.cache import hash_of
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
    """Prints the path of the file."""
    path = fetch(arguments.source, sha256=arguments.sha256, lock=arguments.lock, frozen=arguments.frozen)
    if arguments.json:
        whole = {"sha256": hash_of(path), "size": path.stat().st_size} if path.is_file() else {}
        print(json.dumps({"source": arguments.source, "path": str(path), **whole}, indent=2))
    else:
        print(path)
    return 0
