"""Files: read within bounds, and written whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not on Windows, where what a killed run leaves stays
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger("torchinit")


def read_bounded(path: Path | str, most: int) -> bytes:
    """The content of a file. Raises OSError for a device or pipe, which may never end, and for more bytes than that."""
    # Opened without waiting for a writer, and looked at once it is open, so that nothing can change in between.
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        seen = os.fstat(file.fileno())
        if not stat.S_ISREG(seen.st_mode):
            raise OSError("is a device or a pipe, not a file")
        content = file.read(min(seen.st_size, most) + 1)
    if len(content) > most:
        raise OSError(f"has more than {most:,} bytes")
    return content


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with ``~`` replaced. Raises FileNotFoundError where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise FileNotFoundError(f"{path} can not be found: there is no user or home of this name") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of ``path`` once it is whole; of one that is not, nothing is left."""
    # It lies beside its target, since only within a file system is a rename one step. A run that is killed leaves it
    # there, as large as a model, and the next run of the same target removes it. By what could it know that nobody
    # writes to it any more? A process number says nothing on a volume that two machines or containers share, and an age
    # nothing of a slow disk. A lock of the operating system is gone with its process. It can fail where a file system
    # has no locks: then what is left stays.
    remove_leftovers(path)
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.part")
    with part.open("xb") as file:
        try:
            _lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what killed runs left beside a file that they were to write, and say so."""
    form = re.compile(re.escape(f".{path.name[:200]}.") + r"[0-9a-f]{16}\.part")
    if fcntl is None or not path.parent.is_dir():
        return
    names = [name for name in os.listdir(path.parent) if form.fullmatch(name)]  # noqa: PTH208  # there may be many
    for left in map(path.with_name, names):
        with contextlib.suppress(OSError), left.open("rb") as file:
            if _lock(file):
                left.unlink()
                _log.warning("%s was left by a run that was killed; it is removed", left)


def _lock(file: IO[bytes]) -> bool:
    """Whether the file is ours now: nobody else holds it."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return fcntl is not None
