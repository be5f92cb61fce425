"""Arguments: what a rule with a checkpoint is given, checked and in one form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from torchinit.checkpoints.adapters import Adapter
from torchinit.checkpoints.key_mapping import Renames
from torchinit.serialization.json import FrozenDict


def frozen(given: object) -> Any:
    """A list as a tuple and a table as a frozen one, with what they hold; anything else as it is."""
    if isinstance(given, Mapping):
        return FrozenDict({key: frozen(value) for key, value in given.items()})
    return tuple(given) if isinstance(given, list) else given


def check_sha256(given: str | None) -> None:
    """Raise ValueError for what cannot be a SHA-256."""
    if given is not None and not re.fullmatch("[0-9a-fA-F]{64}", given):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, but got {given!r}")


def device_name(place: object) -> str:
    """The name of a device. Raises TypeError for anything else, ValueError for one that is not, or holds no values."""
    if not isinstance(place, (str, torch.device)):
        raise TypeError(f"map_location must be the name of a device, but got {place!r}")
    try:
        device = torch.device(place)
    except RuntimeError as error:
        raise ValueError(f"map_location: {str(error).splitlines()[0]}") from None
    if device.type == "meta":
        raise ValueError("map_location: adapters need values, and there are none on the meta device")
    return str(place)


def float_dtype(given: object) -> torch.dtype | None:
    """A dtype of floats, given by itself or by name. Raises TypeError or ValueError for anything else."""
    if given is None:
        return None
    dtype = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype or the name of one, but got {given!r}")
    if not (dtype.is_floating_point or dtype.is_complex):
        raise ValueError(f"dtype rounds floats, so it must hold floats, but got {dtype}")
    return dtype


def pairs(rename: object) -> Renames:
    """Patterns and their replacements. Raises TypeError for anything else."""
    given = [*rename.items()] if isinstance(rename, Mapping) else rename
    if not (isinstance(given, (list, tuple)) and all(map(_is_pair, given))):
        raise TypeError(f"rename is a list of (pattern, replacement), but got {rename!r}")
    return tuple((old, new) for old, new in given)


def _is_pair(item: object) -> bool:
    return isinstance(item, (list, tuple)) and len(item) == 2 and all(isinstance(text, str) for text in item)


def adapters_by_glob(adapt: object) -> FrozenDict[Adapter]:
    """Adapters by glob. Raises TypeError for anything else."""
    if not isinstance(adapt, Mapping):
        raise TypeError(f"adapt gives an adapter to each glob, {{'conv1.weight': InputChannels()}}, but got {adapt!r}")
    for glob, adapter in adapt.items():
        if not isinstance(adapter, Adapter):
            raise TypeError(f"adapt[{glob!r}] must be an adapter such as InputChannels(), but got {adapter!r}")
    return FrozenDict(adapt)
