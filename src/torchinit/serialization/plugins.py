"""Plug-ins: what other packages offer under entry points; nothing of theirs is imported before it is needed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from typing import Any

from torchinit.errors import ConfigError


def plugins(group: str) -> Mapping[str, EntryPoint]:
    """The entry points of a group by name; of two packages that offer one name, the one that is found first counts."""
    return _found(group, tuple(sys.path))


@lru_cache(maxsize=32)
def _found(group: str, path: tuple[str, ...]) -> Mapping[str, EntryPoint]:
    """Reading what all packages say takes milliseconds, and layouts are looked up for each class of a model."""
    return {point.name: point for point in reversed(tuple(entry_points(group=group)))}


def load_plugin(point: EntryPoint, kind: str) -> Any:
    """The object that an entry point names; ConfigError if its package does not have it."""
    try:
        return point.load()
    except Exception as error:
        raise unloadable(point, kind, error) from error


def read_plugin(point: EntryPoint, kind: str) -> str:
    """The text of the file NAME.toml in the package that an entry point NAME names; ConfigError if there is none."""
    try:  # resources.files() would import the package
        if (spec := find_spec(point.value)) is None:
            raise ModuleNotFoundError(f"there is no package {point.value!r}")
        loader: Any = spec.loader
        folder: Traversable = loader.get_resource_reader(point.value).files()
        return folder.joinpath(f"{point.name}.toml").read_text("utf-8")
    except Exception as error:
        raise unloadable(point, kind, error) from error


def unloadable(point: EntryPoint, kind: str, error: Exception) -> ConfigError:
    """The error of a plug-in that is not what its entry point promises."""
    why = f"{type(error).__name__}: {error}"
    return ConfigError(f"the plug-in for {kind} {point.name!r} ({point.value}) cannot be loaded: {why}")


def described(point: EntryPoint) -> str:
    """Say where a plug-in is from, for one that has not been imported."""
    return f"{point.value}, of the package {point.dist.name if point.dist else '?'}"
