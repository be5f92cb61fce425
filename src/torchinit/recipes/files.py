"""Files: recipes in TOML, JSON and YAML, and the schemes that come with the package."""

from __future__ import annotations

import json
import tomllib
import warnings
from collections.abc import Callable
from functools import partial
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from torchinit._text import did_you_mean
from torchinit.errors import ConfigError, MissingExtraError
from torchinit.serialization.json import reject_duplicate_keys
from torchinit.serialization.reading import Data

LARGEST: Final = 1 << 20
"""The most bytes of a recipe."""

MOST_NODES: Final = 100_000
"""The most values of a recipe once YAML's aliases are followed."""


def schemes() -> dict[str, str]:
    """The recipes that come with the package, each with a line on what it is for.

    >>> schemes()["gpt2"]
    'GPT-2: normal weights, residual projections made smaller with depth'
    """
    return {name: read_scheme(name)["about"] for name in _schemes()}


def read_scheme(name: str) -> Data:
    """The plain data of a recipe that comes with the package."""
    return tomllib.loads(_schemes()[name].read_text("utf-8"))


def _schemes() -> dict[str, Traversable]:
    folder = resources.files("torchinit.recipes") / "schemes"
    files = [item for item in folder.iterdir() if item.name.endswith(".toml")]
    return {item.name.removesuffix(".toml"): item for item in sorted(files, key=lambda item: item.name)}


def read_data(path: Path) -> Data:
    """The plain data in a file, by its suffix. Raises as :func:`torchinit.load_recipe` does."""
    parse = _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise ConfigError(f"{path}: a recipe is a file of type {', '.join(_PARSERS)}, not {path.suffix or 'none'!r}")
    if not path.is_file():
        neighbours = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(f"there is no file '{path}'{did_you_mean(path.name, neighbours)}")
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ConfigError(f"{path}: a recipe has at most {LARGEST:,} bytes")
    try:
        return parse(content.decode("utf-8-sig"))
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def _yaml(text: str) -> Data:
    try:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import ReusedAnchorWarning, YAMLError
    except ImportError:
        raise MissingExtraError("reading YAML", "yaml") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)  # YAML allows it
            data = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, TypeError, LookupError, ArithmeticError, AttributeError) as error:  # a table as a key, and such
        mark, texts = (
            getattr(error, "problem_mark", None),
            (getattr(error, key, None) for key in ("context", "problem")),
        )
        raise ValueError(f"line {mark.line + 1}: {', '.join(filter(None, texts))}" if mark else str(error)) from None
    _weigh(data, {})
    return data


def _weigh(data: Data, known: dict[int, int]) -> int:
    """The number of values. An alias counts each time: ten levels of ten are ten thousand million values."""
    if not isinstance(data, (dict, list)):
        return 1
    if id(data) not in known:
        items = data.values() if isinstance(data, dict) else data
        known[id(data)] = 1 + sum(_weigh(item, known) for item in items)
        if known[id(data)] > MOST_NODES:
            raise ValueError(f"a recipe holds at most {MOST_NODES:,} values")
    return known[id(data)]


_PARSERS: Final[dict[str, Callable[[str], Data]]] = {
    ".toml": tomllib.loads,
    ".json": partial(json.loads, object_pairs_hook=reject_duplicate_keys),
    ".yaml": _yaml,
    ".yml": _yaml,
}
