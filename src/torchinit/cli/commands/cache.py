"""Cache: checkpoints fetched, and what lies of them on this machine."""

from __future__ import annotations

import contextlib
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from torchinit._text import count, did_you_mean, format_table
from torchinit.checkpoints.hub.cache import Cache, default_folder, hash_of
from torchinit.checkpoints.hub.urls import address_of
from torchinit.cli import frame
from torchinit.cli.frame import UsageError, command, option
from torchinit.errors import FetchError

# --- fetch -----------------------------------------------------------------------------------------------------------


@command(
    "fetch",
    option("source", metavar="SOURCE", help="a path, https://, hf://, torchvision:// or timm://"),
    option("--sha256", metavar="HASH", help="the hash that the file must have"),
    option("--lock", type=Path, metavar="FILE", help="the lock file (default: $TORCHINIT_LOCK)"),
    option("--frozen", action="store_true", default=None, help="refuse what is not in the lock file"),
    "--json",
)
def run_fetch(arguments: Namespace) -> None:
    """Print the path of the file; of an index also those of the files that it names."""
    from torchinit.checkpoints import fetch, member_of  # these need torch, and the cache does not
    from torchinit.checkpoints.formats.sharded import read_index

    source, lock = arguments.source, {"lock": arguments.lock, "frozen": arguments.frozen}
    path = fetch(source, sha256=arguments.sha256, **lock)
    names = sorted({*read_index(path).values()}) if path.name.endswith(".index.json") else ()
    parts = {part: fetch(part, **lock) for part in (member_of(source, name) for name in names)}
    data = _described(source, path)
    if parts:
        data["parts"] = [_described(*part) for part in parts.items()]
    frame.show(arguments, "\n".join(map(str, [path, *parts.values()])), data)


def _described(source: str, path: Path) -> dict[str, object]:
    content = {"sha256": hash_of(path), "size": path.stat().st_size} if path.is_file() else {}
    return {"source": source, "path": str(path), **content}


# --- cache -----------------------------------------------------------------------------------------------------------


def _parts(parser: ArgumentParser) -> None:
    parts = parser.add_subparsers(dest="part", metavar="ls|verify|rm", required=True)
    parts.add_parser("ls", help="list what is in the cache")
    parts.add_parser("verify", help="compare every file with its hash")
    remove = parts.add_parser("rm", help="remove files, by URL or by name")
    remove.add_argument("which", nargs="*", metavar="URL|NAME", help="what `cache ls` shows")
    remove.add_argument("--all", action="store_true", help="remove everything, unfinished downloads too")
    for part in parts.choices.values():
        frame.JSON(part)


@command("cache", _parts)
def run_cache(arguments: Namespace) -> bool | None:
    """List, verify or remove entries."""
    parts: dict[str, Callable[..., bool | None]] = {"ls": _list, "verify": _verify, "rm": _remove}
    return parts[arguments.part](Cache(default_folder()), arguments)


def _list(cache: Cache, arguments: Namespace) -> None:
    """Print a row for each entry, and how much lies there unfinished."""
    entries = cache.entries()
    unfinished = len(cache.folders()) - len(entries)
    rows = []
    for entry in entries:
        when = datetime.fromtimestamp(entry.fetched, UTC).strftime("%Y-%m-%d %H:%M")
        rows.append((entry.path.name, f"{entry.size:,}", when, entry.sha256[:12], entry.url))
    table = [format_table(("name", "bytes", "fetched (UTC)", "sha256", "url"), rows)] if rows else []
    total = f"{count(len(entries), 'file')}, {sum(entry.size for entry in entries):,} bytes in {cache.folder}"
    tail = f"; {count(unfinished, 'unfinished download')}" if unfinished else ""
    listed = [{**asdict(entry), "path": str(entry.path)} for entry in entries]
    data = {"folder": str(cache.folder), "entries": listed, "unfinished": unfinished}
    frame.show(arguments, "\n".join([*table, total + tail]), data)


def _verify(cache: Cache, arguments: Namespace) -> bool:
    """Print what is not as it was fetched; each of that is a finding."""
    data = [{"url": each.url, "path": str(each.path), "problem": each.problem()} for each in cache.entries()]
    text = "{path} {problem}\n  from {url}; it is fetched again when it is needed"
    lines = [text.format(**each) for each in data if each["problem"]]
    frame.show(arguments, "\n".join([*lines, f"{count(len(data), 'file')}, {len(lines)} damaged"]), data)
    return bool(lines)


def _remove(cache: Cache, arguments: Namespace) -> None:
    """Remove what is named, or nothing if one of the names is wrong."""
    if bool(arguments.which) == arguments.all:
        raise UsageError("name what is to be removed by URL or name, or say --all")
    chosen = cache.folders() if arguments.all else tuple(_folder(cache, text) for text in arguments.which)
    for folder in chosen:
        cache.remove(folder)
    frame.show(arguments, f"{count(len(chosen), 'file')} removed", list(map(str, chosen)))


def _folder(cache: Cache, text: str) -> Path:
    """The folder of the one entry that is meant, or of an unfinished download of this URL."""
    entries = cache.entries()
    with contextlib.suppress(FetchError):
        text = address_of(text).url  # as it is spelled in the cache
    meant = {entry.path.parent for entry in entries if text in (entry.url, entry.path.name, entry.path.parent.name)}
    if "://" in text and not meant:
        meant = {folder for folder in cache.folders() if folder == cache.folder_of(text)}
    if not meant:
        known = [*(entry.path.name for entry in entries), *(entry.url for entry in entries)]
        raise UsageError(f"there is no {text!r} in {cache.folder}{did_you_mean(text, known)}")
    if len(meant) > 1:
        urls = "\n  ".join(entry.url for entry in entries if entry.path.parent in meant)
        raise UsageError(f"{text!r} is the name of {len(meant)} files; name one by its URL\n  {urls}")
    return meant.pop()
