"""Counting: calls of functions as a measure of cost that no other load on the machine changes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torchinit

ROOT = str(Path(torchinit.__file__).parent)


def calls(job: Callable[[], object]) -> int:
    """The calls of Python functions within torchinit, and those that these make of functions written in C."""
    counted = 0

    def watch(frame: FrameType, event: str, _: object) -> None:
        nonlocal counted
        path = frame.f_code.co_filename
        counted += event in ("call", "c_call") and (path.startswith(ROOT) or path == "<string>")

    job()  # what is looked up once a class, or once a process, is known then
    sys.setprofile(watch)
    try:
        job()
    finally:
        sys.setprofile(None)
    return counted
