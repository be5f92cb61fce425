"""NumPy files: arrays by name (.npz) or one array (.npy); pickled objects in them are refused."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED

import torch
from torch import Tensor

import torchinit._limits as limits
from torchinit.checkpoints.formats.base import Checkpoint, Info, Stamp, cut, is_shape
from torchinit.errors import CheckpointError, MissingExtraError
from torchinit.model.shards import Box


class NumpyCheckpoint(Checkpoint):
    """A .npz file, an array a name, or a .npy file, whose array is called as the file is.

    The file stays open: if another takes its place, what is read is still what was looked at.
    """

    def __init__(self, path: Path) -> None:
        try:
            import numpy
        except ImportError:
            raise MissingExtraError("reading a NumPy file", "numpy") from None
        self._numpy: Any = numpy
        self.name: str = str(path)
        self._stamp = Stamp(path)
        self._archive: zipfile.ZipFile | None = None
        self._members: dict[str, zipfile.ZipInfo] = {}
        with self._reading(""):
            if zipfile.is_zipfile(path):
                self.format, self._archive = "npz", zipfile.ZipFile(path)
                self._entries = self._zip_infos(self._archive)
            else:
                self.format: str = "npy"
                with path.open("rb") as file:
                    self._entries = {path.stem: self._header(file, path.stem, path.stat().st_size)}
                self._array = numpy.load(path, mmap_mode="c", allow_pickle=False)

    def _read(self, key: str, box: Box | None) -> Tensor:
        with self._reading(f"{key} "):
            if self._archive is None:
                return cut(torch.from_numpy(self._array), box)
            with self._archive.open(self._members[key]) as file:
                return cut(torch.from_numpy(self._numpy.lib.format.read_array(file, allow_pickle=False)), box)

    @contextmanager
    def _reading(self, subject: str) -> Iterator[None]:
        """Raise whatever NumPy and zipfile raise as CheckpointError; a header written by Python 2 is fine."""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", r"Reading `\.npy` or `\.npz` file", UserWarning)
                yield
        except CheckpointError:
            raise
        except Exception as error:
            why = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise self._error(f"{subject}cannot be read: {why}") from error

    def _error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.name}: {text}")

    def _zip_infos(self, archive: zipfile.ZipFile) -> dict[str, Info]:
        infos: dict[str, Info] = {}
        members = archive.infolist()
        if odd := [member for member in members if member.compress_type not in (ZIP_STORED, ZIP_DEFLATED)]:
            raise self._error(f"{odd[0].filename} is packed as NumPy never does; refused")
        # Packed weights are hardly smaller. What grows a hundredfold is all one number, or meant to fill the memory.
        packed, unpacked = (sum(getattr(member, size) for member in members) for size in ("compress_size", "file_size"))
        if unpacked > limits.UNPACKED_BYTES + 32 * packed:
            remedy = "If it is sound, numpy.savez writes it unpacked"
            raise self._error(f"its {packed:,} bytes unpack to {unpacked:,}; refused. {remedy}")
        for member in members:
            key = member.filename.removesuffix(".npy")
            if key == member.filename or key in infos:
                raise self._error(f"{member.filename} is not an array, or is there twice")
            self._members[key] = member
            with archive.open(member) as file:
                infos[key] = self._header(file, key, member.file_size)
        return infos

    def _header(self, file: IO[bytes], key: str, size: int) -> Info:
        """Shape and dtype by the header of an array, once it agrees with how long the array is."""
        lib = self._numpy.lib.format
        version = lib.read_magic(file)
        read = {(1, 0): lib.read_array_header_1_0, (2, 0): lib.read_array_header_2_0}.get(version)
        if read is None:
            raise self._error(f"{key} is of version {version}, which is not known")
        shape, _, kind = read(file)
        if kind.hasobject or kind.names or kind.subdtype:
            raise self._error(f"{key} holds Python objects or records, not numbers; refused")
        if not is_shape(shape):
            raise self._error(f"{key} has {shape!r} for a shape")
        if size != file.tell() + math.prod(shape) * kind.itemsize:
            raise self._error(f"{key} is not as long as its header says: cut short?")
        try:
            if not kind.isnative:
                raise TypeError("its bytes are in another order")
            return Info(tuple(shape), torch.from_numpy(self._numpy.empty(0, kind)).dtype)
        except TypeError as error:
            raise self._error(f"{key} is of {kind}: {error}") from None
