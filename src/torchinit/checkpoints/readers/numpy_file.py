"""NumPy files: arrays by name (.npz) or one array (.npy); pickled objects in them are refused."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from torchinit.checkpoints.readers.base import Checkpoint, Info, Stamp, cut, is_shape
from torchinit.core.shards import Box
from torchinit.errors import CheckpointError, MissingExtraError


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        raise MissingExtraError("reading a NumPy file", "numpy") from None
    return numpy


class NumpyCheckpoint(Checkpoint):
    """A .npz file, an array a name, or a .npy file, whose array is called as the file is."""

    _stamp: Stamp

    def __init__(self, path: Path) -> None:
        self._numpy = _numpy()
        self.name = str(path)
        self._stamp = Stamp(path)
        zipped = zipfile.is_zipfile(path)
        self.format = "npz" if zipped else "npy"
        self._archive: zipfile.ZipFile | None = None
        self._entries: dict[str, zipfile.ZipInfo] = {}
        with self._told(""):  # the file stays open: if another one takes its place, this is what was looked at
            if zipped:
                self._archive = zipfile.ZipFile(path)
                self._infos = self._zip_infos(self._archive)
            else:
                self._infos = {path.stem: self._file_info(path)}
                self._array = self._numpy.load(path, mmap_mode="c", allow_pickle=False)

    def keys(self) -> tuple[str, ...]:
        return tuple(self._infos)

    def _info(self, key: str) -> Info:
        return self._infos[key]

    def _read(self, key: str, box: Box | None) -> Tensor:
        self._stamp.check()
        with self._told(f"{key} "):
            if self._archive is None:
                return cut(torch.from_numpy(self._array), box)
            with self._archive.open(self._entries[key]) as file:
                return cut(torch.from_numpy(self._numpy.lib.format.read_array(file, allow_pickle=False)), box)

    def _known(self) -> Mapping[str, object]:
        return self._infos

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Whatever NumPy and zipfile raise as CheckpointError; that a header is of Python 2 is no matter."""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", r"Reading `\.npy` or `\.npz` file", UserWarning)
                yield
        except CheckpointError:
            raise
        except Exception as error:
            why = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise CheckpointError(f"{self.name}: {what}cannot be read: {why}") from error

    def _file_info(self, path: Path) -> Info:
        with path.open("rb") as file:
            return self._header(file, path.stem, path.stat().st_size)

    def _zip_infos(self, archive: zipfile.ZipFile) -> dict[str, Info]:
        found = {}
        for entry in archive.infolist():
            key = entry.filename.removesuffix(".npy")
            if key == entry.filename or key in found:
                raise CheckpointError(f"{self.name}: {entry.filename} is no array, or there twice")
            self._entries[key] = entry
            with archive.open(entry) as file:
                found[key] = self._header(file, key, entry.file_size)
        return found

    def _header(self, file: IO[bytes], key: str, size: int) -> Info:
        """What the header of an array says, once it agrees with how long the array is."""
        lib = self._numpy.lib.format
        version = lib.read_magic(file)
        read = {(1, 0): lib.read_array_header_1_0, (2, 0): lib.read_array_header_2_0}.get(version)
        if read is None:
            raise CheckpointError(f"{self.name}: {key} is of version {version}, which is not known")
        shape, _, kind = read(file)
        if kind.hasobject or kind.names or kind.subdtype:
            raise CheckpointError(f"{self.name}: {key} holds Python objects or records, not numbers; refused")
        if not is_shape(shape):
            raise CheckpointError(f"{self.name}: {key} has {shape!r} for a shape")
        if size != file.tell() + math.prod(shape) * kind.itemsize:
            raise CheckpointError(f"{self.name}: {key} is not as long as its header says: cut short?")
        return Info(tuple(shape), self._dtype(key, kind))

    def _dtype(self, key: str, kind: Any) -> torch.dtype:
        try:
            if not kind.isnative:
                raise TypeError("its bytes are in another order")
            return torch.from_numpy(self._numpy.empty(0, kind)).dtype
        except TypeError as error:
            raise CheckpointError(f"{self.name}: {key} is of {kind}: {error}") from None
