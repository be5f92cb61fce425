"""Zips: what a zip file of ``torch.save`` holds, in which Python and torch cannot but read the same."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Final

from torchinit.checkpoints.readers.pickles import Memory, check_pickle
from torchinit.errors import CheckpointError

_LARGEST_PICKLE: Final = 1 << 28
_BEGIN: Final = b"PK\x03\x04"


def is_zip(path: Path) -> bool:
    """Whether the file is of the zip format, as torch tells it."""
    with path.open("rb") as file:
        return file.read(4) == _BEGIN


def zip_entries(path: Path) -> list[zipfile.ZipInfo]:
    """The entries of a zip file; raises CheckpointError for one that is no whole one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError) as error:
        raise CheckpointError(f"{path}: is no whole zip file (cut short?): {error}") from error


def check_zip(path: Path) -> None:
    """Raises CheckpointError for a zip that ``torch.save`` did not write.

    That is one with code in it, compressed, overlapping, with names that can be taken for one another, or whose
    pickle asks for what is not there.
    """
    entries = zip_entries(path)
    _check_names(path, [entry.filename for entry in entries])
    _check_entries(path, entries)
    _check_end(path)
    root = entries[0].filename.partition("/")[0]
    sizes = {entry.filename.removeprefix(f"{root}/data/"): entry.file_size for entry in entries}
    pickle = next(entry for entry in entries if entry.filename == f"{root}/data.pkl")
    for key, memory in check_pickle(str(path), _content(path, pickle)).items():
        _check_memory(path, key, memory, sizes.get(key))


def _check_memory(path: Path, key: str, memory: Memory, there: int | None) -> None:
    if memory.nbytes != there:
        held = "no such piece is" if there is None else f"{there:,} are"
        raise CheckpointError(
            f"{path}: a tensor lies in the {memory.nbytes:,} bytes of {key!r}, but {held} in the file"
        )


def _content(path: Path, entry: zipfile.ZipInfo) -> bytes:
    """The bytes of an entry that is stored as it is, behind the header before it."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        head = file.read(30)
        file.seek(int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little"), 1)
        return file.read(entry.file_size)


def _check_names(path: Path, names: list[str]) -> None:
    parts = {name.split("/")[1] for name in names if name.count("/") > 1} | {name.rpartition("/")[2] for name in names}
    if "code" in parts or "constants.pkl" in parts:
        raise CheckpointError(
            f"{path}: is a TorchScript program, code and weights in one. It is not opened; load it with torch.jit.load"
            " where you trust it, and save its state_dict() alone"
        )
    root = names[0].partition("/")[0] if names else ""
    if f"{root}/data.pkl" not in names or not all(name.startswith(f"{root}/") for name in names):
        raise CheckpointError(
            f"{path}: is a zip file without data.pkl in its one folder, so none that torch.save wrote"
        )
    if len({name.casefold() for name in names}) < len(names):  # torch's reader does not tell upper and lower case
        raise CheckpointError(f"{path}: has two entries of one name")


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    at, size = 0, path.stat().st_size
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise CheckpointError(f"{path}: {entry.filename} is compressed, which torch.save never does; refused")
        if entry.flag_bits & 1:
            raise CheckpointError(f"{path}: {entry.filename} is encrypted; refused")
        if entry.header_offset < at or entry.header_offset + entry.file_size > size:
            raise CheckpointError(f"{path}: {entry.filename} overlaps another entry or the end of the file; refused")
        if entry.filename.endswith("data.pkl") and (entry.file_size > _LARGEST_PICKLE or entry.extra):
            raise CheckpointError(f"{path}: its pickle has {entry.file_size:,} bytes, or an odd entry; refused")
        at = entry.header_offset + entry.file_size


def _check_end(path: Path) -> None:
    """Raises CheckpointError unless the table of entries ends where the file's last records begin, at the very end.

    Otherwise two readers may find two different tables.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 98))
        wide, locator, last = (tail := file.read().rjust(98, b"\0"))[:56], tail[56:76], tail[76:]
    length, begin, ends = last[12:16], last[16:20], size - 22
    sound = last.startswith(b"PK\x05\x06") and last.endswith(b"\0\0")
    if locator.startswith(b"PK\x06\x07"):
        length, begin, ends = wide[40:48], wide[48:56], size - 98
        sound &= wide.startswith(b"PK\x06\x06") and int.from_bytes(locator[8:16], "little") == ends
    if not sound or int.from_bytes(begin, "little") + int.from_bytes(length, "little") != ends:
        raise CheckpointError(
            f"{path}: does not end as a zip file of torch.save does (is something appended?); refused"
        )
