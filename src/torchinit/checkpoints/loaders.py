"""Loaders: functions that load what a file name with a certain beginning stands for, as MMEngine has them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar, overload

import torch

from torchinit.checkpoints.formats.detect import detect_format
from torchinit.checkpoints.formats.torch_save import load_file
from torchinit.checkpoints.open import open_file
from torchinit.checkpoints.prefixes import Prefixes
from torchinit.checkpoints.sources import fetch
from torchinit.errors import masked

LoadFunction: TypeAlias = Callable[[str, Any], Any]
"""Gives what a file holds, from its name and ``map_location``."""

_Load = TypeVar("_Load", bound=LoadFunction)
_log = logging.getLogger("torchinit")


class CheckpointLoader:
    """Loads checkpoints by how their names begin; what nobody registered a function for is :func:`fetch`-ed.

    >>> @CheckpointLoader.register_scheme("shelf://")
    ... def load_from_shelf(filename, map_location):
    ...     return {"weight": torch.ones(1)}
    >>> CheckpointLoader.load_checkpoint("shelf://three")
    {'weight': tensor([1.])}
    """

    _schemes: ClassVar[Prefixes[LoadFunction]] = Prefixes()

    @overload
    @classmethod
    def register_scheme(
        cls, prefixes: str | Iterable[str], loader: None = None, force: bool = False
    ) -> Callable[[_Load], _Load]: ...
    @overload
    @classmethod
    def register_scheme(cls, prefixes: str | Iterable[str], loader: LoadFunction, force: bool = False) -> None: ...

    @classmethod
    def register_scheme(
        cls, prefixes: str | Iterable[str], loader: LoadFunction | None = None, force: bool = False
    ) -> Callable[[_Load], _Load] | None:
        """Lets a function ``(filename, map_location)`` load what begins so; also as a decorator.

        Prefixes are regular expressions. Raises KeyError for one that is taken, unless ``force`` replaces it.
        """

        def register(function: _Load) -> _Load:
            cls._schemes.register(prefixes, function, force=force)
            return function

        if loader is None:
            return register
        cls._schemes.register(prefixes, loader, force=force)
        return None

    @classmethod
    def load_checkpoint(cls, filename: str, map_location: Any = None, logger: Any = "current") -> Any:
        """What a file holds, whatever it is; of formats without structure a dict of tensors.

        No code in it is run, unless a registered function does. Raises CheckpointError, FileNotFoundError.
        """
        return load(str(filename), map_location, logger_of(logger))


def load(filename: str, map_location: Any, logger: logging.Logger, *, mapped: bool = False) -> Any:
    """What a file holds. ``mapped`` tensors are the file's own memory: for those who copy them and let them go."""
    function = CheckpointLoader._schemes.find(filename)
    name = _scheme(filename) if function is None else getattr(function, "__name__", "a").removeprefix("load_from_")
    logger.info("Loads checkpoint by %s backend from path: %s", name, masked(filename))
    if function is not None:
        return function(filename, map_location)
    return read(fetch(filename), filename, map_location, mapped=mapped)


def read(path: Path, source: str, map_location: Any = "cpu", *, mapped: bool = False) -> Any:
    """What a local file holds: all of a file of ``torch.save``, of another format its tensors by name."""
    _check_place(map_location)
    if detect_format(path) in ("zip", "pickle"):
        return load_file(path, map_location, mapped=mapped)
    checkpoint = open_file(path, source)
    device = map_location if isinstance(map_location, (str, torch.device)) else "cpu"
    tensors = {key: checkpoint.read(key) for key in checkpoint}
    return {key: tensor.to(device) if mapped else tensor.to(device, copy=True) for key, tensor in tensors.items()}


def _check_place(place: object) -> None:
    """Raises TypeError for what cannot be a ``map_location``, ValueError for text that names no device."""
    if not (place is None or isinstance(place, (str, torch.device, Mapping)) or callable(place)):
        raise TypeError(f"map_location must be a device, a dict of devices, a function or None, but got {place!r}")
    if isinstance(place, str):
        try:
            torch.device(place)
        except RuntimeError:
            raise ValueError(f"map_location must be the name of a device such as 'cpu', but got {place!r}") from None


def logger_of(logger: Any) -> logging.Logger:
    """The logger that MMEngine's argument of that name means; torchinit's own for ``None`` and ``"current"``."""
    if isinstance(logger, logging.Logger):
        return logger
    return _SILENT if logger == "silent" else _log


_SILENT = logging.getLogger("torchinit.silent")
_SILENT.disabled = True


def _scheme(filename: str) -> str:
    found = re.match(r"([\w+.-]+)://", filename)
    scheme = found[1] if found else "file"
    return {"file": "local", "https": "http"}.get(scheme, scheme)
