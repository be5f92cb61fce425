"""cache: list, verify or remove what was fetched."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from torchinit._text import count, did_you_mean, format_table
from torchinit.checkpoints.hub.cache import Cache, CacheEntry, default_folder
from torchinit.checkpoints.hub.urls import address_of
from torchinit.cli import options
from torchinit.cli.errors import UsageError
from torchinit.errors import FetchError


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parts = parser.add_subparsers(dest="part", metavar="ls|verify|rm", required=True)
    parts.add_parser("ls", help="list what is in the cache")
    parts.add_parser("verify", help="compare every file with its hash")
    remove = parts.add_parser("rm", help="remove files, by URL or by name")
    remove.add_argument("which", nargs="*", metavar="URL|NAME", help="what `cache ls` shows")
    remove.add_argument("--all", action="store_true", help="remove everything, unfinished downloads too")
    for part in parts.choices.values():
        options.add_json(part)


def run(arguments: argparse.Namespace) -> int:
    """List, verify or remove entries."""
    parts = {"ls": _list, "verify": _verify, "rm": _remove}
    return parts[arguments.part](Cache(default_folder()), arguments)


def _list(cache: Cache, arguments: argparse.Namespace) -> int:
    """Print a row for each entry, and how much lies there unfinished."""
    entries = cache.entries()
    unfinished = len(cache.folders()) - len(entries)
    rows = [_row(entry) for entry in entries]
    table = [format_table(("name", "bytes", "fetched (UTC)", "sha256", "url"), rows)] if rows else []
    total = f"{count(len(entries), 'file')}, {sum(entry.size for entry in entries):,} bytes in {cache.folder}"
    tail = f"; {count(unfinished, 'unfinished download')}" if unfinished else ""
    data = [{**asdict(entry), "path": str(entry.path)} for entry in entries]
    return options.show(
        arguments,
        {"folder": str(cache.folder), "entries": data, "unfinished": unfinished},
        "\n".join([*table, total + tail]),
    )


def _row(entry: CacheEntry) -> tuple[str, ...]:
    when = datetime.fromtimestamp(entry.fetched, UTC).strftime("%Y-%m-%d %H:%M")
    return entry.path.name, f"{entry.size:,}", when, entry.sha256[:12], entry.url


def _verify(cache: Cache, arguments: argparse.Namespace) -> int:
    """Print what is not as it was fetched; 1 if there is anything."""
    problems = [(entry, entry.problem()) for entry in cache.entries()]
    lines = [
        f"{entry.path} {problem}\n  from {entry.url}; it is fetched again when it is needed"
        for entry, problem in problems
        if problem
    ]
    data = [{"url": entry.url, "path": str(entry.path), "problem": problem} for entry, problem in problems]
    options.show(arguments, data, "\n".join([*lines, f"{count(len(problems), 'file')}, {len(lines)} damaged"]))
    return 1 if lines else 0


def _remove(cache: Cache, arguments: argparse.Namespace) -> int:
    """Remove what is named, or nothing if one of the names is wrong."""
    if bool(arguments.which) == arguments.all:
        raise UsageError("name what is to be removed by URL or name, or say --all")
    chosen = cache.folders() if arguments.all else tuple(_folder(cache, text) for text in arguments.which)
    for folder in chosen:
        cache.remove(folder)
    return options.show(arguments, list(map(str, chosen)), f"{count(len(chosen), 'file')} removed")


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
