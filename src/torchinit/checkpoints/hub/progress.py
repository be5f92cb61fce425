"""Meters: how far a download is, in a terminal."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator

from torchinit.checkpoints.hub.download import Progress


@contextlib.contextmanager
def shown(source: str, progress: Progress | None) -> Iterator[Progress]:
    """What is told of a download: the function given, else a bar in a terminal, else nobody."""
    if progress is not None:
        yield progress
    elif sys.stderr.isatty() and importlib.util.find_spec("rich"):
        with _bar(source) as bar:
            yield bar
    else:
        yield lambda done, total: None


@contextlib.contextmanager
def _bar(source: str) -> Iterator[Progress]:
    """A bar on standard error from the first byte on, gone after the last."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    bar = Bar(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    task = bar.add_task(source.rpartition("/")[2], total=None)

    def tell(done: int, total: int | None) -> None:
        bar.start()  # does nothing if it has started
        bar.update(task, completed=done, total=total)

    try:
        yield tell
    finally:
        bar.stop()
