"""`torchinit cache`: what was fetched, whether it is whole, and its removal."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from torchinit._text import columns, count, did_you_mean
from torchinit.checkpoints.hub.cache import Cache, CacheEntry, default_folder
from torchinit.checkpoints.hub.urls import address_of
from torchinit.cli import options
from torchinit.cli.errors import UsageError
from torchinit.errors import FetchError

if TYPE_CHECKING:
    from torchinit.cli.options import Commands


def add(commands: Commands) -> None:
    """Describes the command to the parser."""
    parser = commands.add_parser("cache", help="list, verify or remove what was fetched")
    parts = parser.add_subparsers(dest="part", metavar="ls|verify|rm", required=True)
    listing = parts.add_parser("ls", help="list what is in the cache")
    listing.set_defaults(run=_list)
    verify = parts.add_parser("verify", help="compare every file with its hash")
    verify.set_defaults(run=_verify)
    remove = parts.add_parser("rm", help="remove files, by URL or by name")
    remove.add_argument("which", nargs="*", metavar="URL|NAME", help="what `cache ls` shows")
    remove.add_argument("--all", action="store_true", help="remove everything, unfinished downloads too")
    remove.set_defaults(run=_remove)
    for part in (listing, verify, remove):
        options.add_json(part)


def _list(arguments: argparse.Namespace) -> int:
    """Prints a row an entry, and what lies there unfinished."""
    cache = Cache(default_folder())
    entries, folders = cache.entries(), cache.folders()
    unfinished = len(folders) - len(entries)
    if arguments.json:
        print(json.dumps({"folder": str(cache.folder), "entries": _plain(entries), "unfinished": unfinished}, indent=2))
        return 0
    if entries:
        print(columns(("name", "bytes", "fetched (UTC)", "sha256", "url"), [_row(entry) for entry in entries]))
    total = sum(entry.size for entry in entries)
    print(f"{count(len(entries), 'file')}, {total:,} bytes in {cache.folder}", end="")
    print(f"; {count(unfinished, 'unfinished download')}" if unfinished else "")
    return 0


def _row(entry: CacheEntry) -> tuple[str, ...]:
    when = datetime.fromtimestamp(entry.fetched, UTC).strftime("%Y-%m-%d %H:%M")
    return entry.path.name, f"{entry.size:,}", when, entry.sha256[:12], entry.url


def _plain(entries: Iterable[CacheEntry]) -> list[dict[str, object]]:
    return [{**asdict(entry), "path": str(entry.path)} for entry in entries]


def _verify(arguments: argparse.Namespace) -> int:
    """Prints what is not as it was fetched; 1 if there is anything."""
    entries = Cache(default_folder()).entries()
    found = [(entry, entry.problem()) for entry in entries]
    damaged = [(entry, problem) for entry, problem in found if problem]
    if arguments.json:
        shown = [{"url": entry.url, "path": str(entry.path), "problem": problem} for entry, problem in found]
        print(json.dumps(shown, indent=2))
    else:
        for entry, problem in damaged:
            print(f"{entry.path} {problem}\n  from {entry.url}; it is fetched again when it is needed")
        print(f"{count(len(entries), 'file')}, {len(damaged)} damaged")
    return 1 if damaged else 0


def _remove(arguments: argparse.Namespace) -> int:
    """Removes what is named, or nothing if one of the names is wrong."""
    if bool(arguments.which) == arguments.all:
        raise UsageError("name what is to be removed by URL or name, or say --all")
    cache = Cache(default_folder())
    chosen = cache.folders() if arguments.all else tuple(_folder(cache, text) for text in arguments.which)
    for folder in chosen:
        cache.remove(folder)
    print(json.dumps([str(folder) for folder in chosen]) if arguments.json else f"{count(len(chosen), 'file')} removed")
    return 0


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
