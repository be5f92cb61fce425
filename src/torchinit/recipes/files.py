"""Files: recipes in TOML, JSON and YAML, and the schemes that come with the package."""

from __future__ import annotations

import json
import os
import tomllib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

from torchinit.core.maps import unique
from torchinit.core.plans import Recipe
from torchinit.core.vocabulary import INITIALIZERS
from torchinit.errors import ConfigError, MissingExtraError, did_you_mean
from torchinit.recipes.decode import decode_recipe
from torchinit.schema import Data

LARGEST: Final = 1 << 20
"""How many bytes a recipe may have."""

MOST_NODES: Final = 100_000
"""How many values a recipe may hold once YAML's aliases are followed."""


def load_recipe(source: str | os.PathLike[str]) -> Recipe:
    """The recipe in a TOML, JSON or YAML file, or the scheme of that name that comes with the package.

    Raises ConfigError for a file that is missing, too large or cannot be read, with the line where that is
    known, and for a recipe with mistakes; MissingExtraError for YAML without the extra ``yaml``.

    >>> len(load_recipe("gpt2")) > 0
    True
    >>> load_recipe("gtp2")
    Traceback (most recent call last):
    torchinit.errors.ConfigError: there is no file 'gtp2' and no scheme of this name; did you mean 'gpt2'?
    """
    if "\n" in str(source):
        raise ConfigError("a recipe is the path of a file, or data, and not the text of a file: parse it first")
    path, shipped = Path(source), _schemes()
    if str(source) in shipped and not path.is_file():
        return load_scheme(str(source))
    if not path.suffix and not path.exists():
        raise ConfigError(_nothing_called(str(source), shipped))
    return decode_recipe(read_data(path), str(source))


def _nothing_called(name: str, shipped: Iterable[str]) -> str:
    known = next((one for one in INITIALIZERS if one.casefold() == name.casefold()), None)
    if known is None:
        return f"there is no file {name!r} and no scheme of this name{did_you_mean(name, shipped)}"
    entry = {"type": known, "name": "**.weight"}
    return f"{name!r} is the name of an initializer, not of a recipe; write {known}() in Python, or {entry} as data"


def load_scheme(name: str) -> Recipe:
    """The recipe of this name that comes with the package; each of its rules knows its ``scheme``."""
    rules = decode_recipe(_toml(_schemes()[name].read_text("utf-8")), name)
    return tuple(replace(rule, scheme=name) for rule in rules)


def schemes() -> dict[str, str]:
    """The recipes that come with the package, and what each is for.

    >>> schemes()["gpt2"]
    'GPT-2: normal weights, residual projections made smaller with depth'
    """
    return {name: _toml(file.read_text("utf-8"))["about"] for name, file in _schemes().items()}


def _schemes() -> dict[str, Traversable]:
    folder = resources.files("torchinit.recipes") / "schemes"
    files = [item for item in folder.iterdir() if item.name.endswith(".toml")]
    return {item.name.removesuffix(".toml"): item for item in sorted(files, key=lambda item: item.name)}


def read_data(path: Path) -> Data:
    """The plain data in a file, by its suffix. Raises as :func:`load_recipe` does."""
    parse = _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise ConfigError(f"{path}: a recipe is a file of type {', '.join(_PARSERS)}, not {path.suffix or 'none'!r}")
    if not path.is_file():
        raise ConfigError(f"there is no file '{path}'{did_you_mean(path.name, _neighbours(path))}")
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


def _neighbours(path: Path) -> list[str]:
    return [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []


def _toml(text: str) -> dict[str, Any]:
    return tomllib.loads(text)


def _json(text: str) -> Data:
    return json.loads(text, object_pairs_hook=unique)


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
        mark, said = getattr(error, "problem_mark", None), (getattr(error, key, None) for key in ("context", "problem"))
        raise ValueError(f"line {mark.line + 1}: {', '.join(filter(None, said))}" if mark else str(error)) from None
    _weigh(data, {})
    return data


def _weigh(data: Data, known: dict[int, int]) -> int:
    """How many values the data hold. An alias counts each time: ten levels of ten are ten thousand million values."""
    if not isinstance(data, (dict, list)):
        return 1
    if id(data) not in known:
        items = data.values() if isinstance(data, dict) else data
        known[id(data)] = 1 + sum(_weigh(item, known) for item in items)
        if known[id(data)] > MOST_NODES:
            raise ValueError(f"a recipe holds at most {MOST_NODES:,} values")
    return known[id(data)]


_PARSERS: Final[dict[str, Callable[[str], Data]]] = {".toml": _toml, ".json": _json, ".yaml": _yaml, ".yml": _yaml}
