"""fetch: fetch a checkpoint and print where it lies."""

from __future__ import annotations

import argparse
from pathlib import Path

from torchinit.checkpoints import fetch, member_of
from torchinit.checkpoints.formats.sharded import read_index
from torchinit.checkpoints.hub.cache import hash_of
from torchinit.cli import options


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("source", metavar="SOURCE", help="a path, https://, hf://, torchvision:// or timm://")
    parser.add_argument("--sha256", metavar="HASH", help="the hash that the file must have")
    parser.add_argument("--lock", type=Path, metavar="FILE", help="the lock file (default: $TORCHINIT_LOCK)")
    parser.add_argument("--frozen", action="store_true", default=None, help="refuse what is not in the lock file")
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the path of the file; of an index also those of the files that it names."""
    source, lock = arguments.source, {"lock": arguments.lock, "frozen": arguments.frozen}
    path = fetch(source, sha256=arguments.sha256, **lock)
    names = sorted({*read_index(path).values()}) if path.name.endswith(".index.json") else ()
    parts = {part: fetch(part, **lock) for part in (member_of(source, name) for name in names)}
    data = _described(source, path)
    if parts:
        data["parts"] = [_described(*part) for part in parts.items()]
    return options.show(arguments, data, "\n".join(map(str, [path, *parts.values()])))


def _described(source: str, path: Path) -> dict[str, object]:
    content = {"sha256": hash_of(path), "size": path.stat().st_size} if path.is_file() else {}
    return {"source": source, "path": str(path), **content}
