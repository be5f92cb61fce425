"""Audit of zip files: Python and torch must not be able to read one of ``torch.save`` in two ways."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Final, NamedTuple

import torchinit._limits as limits
from torchinit._text import one_line
from torchinit.checkpoints.formats.pickle_audit import Leaves, check_pickle
from torchinit.errors import CheckpointError

_BEGIN: Final = b"PK\x03\x04"
_HEADER: Final = struct.Struct("<26xHH")
"""Before each entry; the lengths of its name and of its extra field, which come next."""
_END: Final = struct.Struct("<4s8xIIH")
"""The last record: its signature, the size and offset of the table of entries, the length of a comment."""
_LOCATOR: Final = struct.Struct("<4s4xQ4x")  # before it in a large file: a signature, and where the wide record begins
_WIDE_END: Final = struct.Struct("<4s36xQQ")
"""The wide record: its signature, and size and offset of the table in eight bytes each."""


def is_zip(path: Path) -> bool:
    """Whether the file is of the zip format, as torch tells it."""
    with path.open("rb") as file:
        return file.read(4) == _BEGIN


def zip_entries(path: Path) -> list[zipfile.ZipInfo]:
    """The entries of a zip file; raises CheckpointError for one that is not complete."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError) as error:
        raise CheckpointError(f"{path}: is not a complete zip file (cut short?): {error}") from error


class Audited(NamedTuple):
    """What a pickle asks for that is not to be made; and if it asks for nothing but what all do, the pickle itself."""

    leaves: Leaves
    common: bytes = b""


def check_zip(path: Path) -> Audited:
    """Return what is known of its pickle.

    Raises CheckpointError for a zip that ``torch.save`` did not write: with code in it, compressed, overlapping, with
    names that can be taken for one another, or whose pickle asks for what is not there.
    """
    entries = zip_entries(path)
    root = _check_names(path, entries)
    _check_entries(path, entries)
    _check_end(path)
    _check_headers(path, entries)
    sizes = {entry.filename: entry.file_size for entry in entries}
    pickle = next(entry for entry in entries if entry.filename == f"{root}/data.pkl")
    pieces, leaves, is_common = check_pickle(str(path), content := _content(path, pickle))
    for key, memory in pieces.items():
        if memory.nbytes != (there := sizes.get(f"{root}/data/{key}")):
            lies = f"a tensor lies in the {memory.nbytes:,} bytes of {key!r}"
            why = "no such piece is" if there is None else f"{there:,} are"
            raise CheckpointError(f"{path}: {lies}, but {why} in the file")
    return Audited(leaves, content if is_common else b"")


def _content(path: Path, entry: zipfile.ZipInfo) -> bytes:
    """The bytes of an entry that is stored as it is, behind its own header, as torch finds them."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        name, extra = _HEADER.unpack(file.read(_HEADER.size).ljust(_HEADER.size, b"\0"))
        file.seek(name + extra, 1)
        return file.read(entry.file_size)


def _check_names(path: Path, entries: list[zipfile.ZipInfo]) -> str:
    """Return the one folder that all entries lie in."""
    names = [entry.filename for entry in entries]
    parts = {name.split("/")[1] for name in names if name.count("/") > 1} | {name.rpartition("/")[2] for name in names}
    if "code" in parts or "constants.pkl" in parts:
        remedy = "load it with torch.jit.load where you trust it, and save its state_dict() alone"
        raise CheckpointError(f"{path}: is a TorchScript program, code and weights in one. It is not opened; {remedy}")
    root = names[0].partition("/")[0] if names else ""
    if f"{root}/data.pkl" not in names or not all(name.startswith(f"{root}/") for name in names):
        raise CheckpointError(f"{path}: is a zip file without data.pkl in its one folder, so torch.save never wrote it")
    if odd := [name for name in names if {"", ".", ".."} & {*name.removesuffix("/").split("/")} or "\\" in name]:
        raise CheckpointError(f"{path}: has an entry {one_line(odd[0])!r}, which is not the only name of its place")
    if twice := [entry for entry in entries if _is_read_twice(entry)]:
        raise CheckpointError(f"{path}: has an entry {one_line(twice[0].filename)!r}, which torch gives another name")
    if len({name.casefold() for name in names}) < len(names):  # torch's reader does not tell upper and lower case
        raise CheckpointError(f"{path}: has two entries of one name")
    return root


def _is_read_twice(entry: zipfile.ZipInfo) -> bool:
    """Whether Python and torch call an entry by two names."""
    # Python cuts a name at a zero, takes another one from an extra field, and has two ways to read bytes as letters.
    return entry.filename != entry.orig_filename or not (entry.filename.isascii() or entry.flag_bits & 0x800)


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    at, size = 0, path.stat().st_size
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise CheckpointError(f"{path}: {entry.filename} is compressed, which torch.save never does; refused")
        if entry.flag_bits & 1:
            raise CheckpointError(f"{path}: {entry.filename} is encrypted; refused")
        if entry.header_offset < at or entry.header_offset + entry.file_size > size:
            raise CheckpointError(f"{path}: {entry.filename} overlaps another entry or the end of the file; refused")
        if entry.external_attr & 0x10 and not entry.is_dir():  # of which torch reads memory that nobody has written
            raise CheckpointError(f"{path}: {entry.filename} is marked as a folder; refused")
        if entry.filename.endswith("data.pkl") and (entry.file_size > limits.PICKLE_BYTES or entry.extra):
            raise CheckpointError(f"{path}: its pickle has {entry.file_size:,} bytes, or an odd entry; refused")
        at = entry.header_offset + entry.file_size


def _check_headers(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Raise CheckpointError where the header before an entry names another one than the table does."""
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        for entry in entries:
            try:
                archive.open(entry).close()
            except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, struct.error) as error:
                raise CheckpointError(
                    f"{path}: {entry.filename} is not what the table of entries says: {error}"
                ) from error


def _check_end(path: Path) -> None:
    """Raise CheckpointError unless the table of entries ends where the file's last records begin, at the very end."""
    # A zip file is read from its end, and readers differ in how far they look for the last record and in which of two
    # tables they take. With something appended, or a second table in a comment, the one that Python audits need not
    # be the one that torch reads. So there is one place for each record: the end record fills the last 22 bytes; in a
    # large file the locator lies right before it, and the wide record right before that.
    size, records = path.stat().st_size, _WIDE_END.size + _LOCATOR.size + _END.size
    with path.open("rb") as file:
        file.seek(max(0, size - records))
        tail = file.read().rjust(records, b"\0")
    signature, length, begin, comment = _END.unpack_from(tail, records - _END.size)
    sound, ends = signature == b"PK\x05\x06" and not comment, size - _END.size
    mark, wide_at = _LOCATOR.unpack_from(tail, _WIDE_END.size)
    if mark == b"PK\x06\x07":
        signature, length, begin = _WIDE_END.unpack_from(tail)
        ends = size - records
        sound = sound and signature == b"PK\x06\x06" and wide_at == ends
    if not sound or begin + length != ends:
        raise CheckpointError(f"{path}: does not end as a zip file of torch.save does (something appended?); refused")
