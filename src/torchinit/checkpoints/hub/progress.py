"""Progress: how far a download is, told to a function or shown in a terminal."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Protocol


class Progress(Protocol):
    """A function that is told how many bytes have come, and of how many, where that is known."""

    def __call__(self, done: int, total: int | None, /) -> object: ...


@contextlib.contextmanager
def show_progress(source: str, progress: Progress | None) -> Iterator[Progress]:
    """The function to tell: the one given, else a bar on standard error where that is a terminal, else nobody."""
    if progress is not None:
        yield progress
    elif not (sys.stderr.isatty() and importlib.util.find_spec("rich")):
        yield lambda done, total: None
    else:
        from rich.console import Console
        from rich.progress import DownloadColumn, TransferSpeedColumn
        from rich.progress import Progress as Bar

        columns = *Bar.get_default_columns(), DownloadColumn(), TransferSpeedColumn()
        bar = Bar(*columns, console=Console(stderr=True), transient=True)
        task = bar.add_task(source.rpartition("/")[2], total=None)

        def update(done: int, total: int | None) -> None:
            bar.start()  # at the first byte, not before; does nothing if it has started
            bar.update(task, completed=done, total=total)

        try:
            yield update
        finally:
            bar.stop()
