"""Files: recipes in TOML, JSON and YAML, and the schemes that come with the package."""

from __future__ import annotations

import json
import re
import tomllib
import warnings
from collections.abc import Callable
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

import torchinit._limits as limits
from torchinit._files import read_bounded
from torchinit._text import did_you_mean
from torchinit.errors import ConfigError, MissingExtraError
from torchinit.serialization.json import check_size, reject_duplicate_keys
from torchinit.serialization.reading import Data
from torchinit.serialization.registry import described, plugins, read_plugin, unloadable

_PART: Final = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_DOTTED: Final = re.compile(rf"(?<![\w-])(?:{_PART}[ \t]*+\.[ \t]*+){{{limits.LEVELS}}}", re.ASCII)
_LONG: Final = re.compile(rf"(?<![\w.+-])[\w.+-]{{{limits.TEXT_LENGTH}}}", re.ASCII)
"""A key of too many parts, and a number of too many digits, which tomllib would spend much time and memory on."""
_TOO_MANY: Final = f"holds more than {limits.RECIPE_VALUES:,} values"
_PLUGINS: Final = "torchinit.schemes"
"""The entry points of other packages: the name of a scheme, and the package that has it as a file NAME.toml."""


def schemes() -> dict[str, str]:
    """The recipes that go by a name, each with a line on what it is for; those of plug-ins with the package's name.

    >>> schemes()["gpt2"]
    'GPT-2: normal weights, residual projections made smaller with depth'
    """
    offered = {name: described(point) for name, point in plugins(_PLUGINS).items()}
    return offered | {name: read_scheme(name)["about"] for name in shipped_schemes()}


def scheme_names() -> list[str]:
    """The names of all of them; nothing is read."""
    return [*dict.fromkeys((*plugins(_PLUGINS), *shipped_schemes()))]


def read_scheme(name: str) -> Data:
    """The plain data of a recipe that goes by a name; ConfigError for a plug-in's that cannot be read."""
    if (shipped := shipped_schemes().get(name)) is not None:
        return tomllib.loads(shipped.read_text("utf-8"))
    point = plugins(_PLUGINS)[name]
    try:
        return _toml(read_plugin(point, "scheme"))
    except (RecursionError, ValueError) as error:
        raise error if isinstance(error, ConfigError) else unloadable(point, "scheme", error) from error


def shipped_schemes() -> dict[str, Traversable]:
    """The files of the recipes that come with the package, by name; they are not read."""
    files = {item.name: item for item in (resources.files("torchinit.recipes") / "schemes").iterdir()}
    return {name.removesuffix(".toml"): files[name] for name in sorted(files) if name.endswith(".toml")}


def read_data(path: Path) -> Data:
    """The plain data in a file, by its suffix. Raises as :func:`torchinit.load_recipe` does."""
    parse = _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise ConfigError(f"{path}: a recipe is a file of type {', '.join(_PARSERS)}, not {path.suffix or 'none'!r}")
    if not path.is_file():
        neighbours = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(f"there is no file '{path}'{did_you_mean(path.name, neighbours)}")
    try:
        return parse(read_bounded(path, limits.RECIPE_BYTES).decode("utf-8-sig"))
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _toml(text: str) -> Data:
    if _DOTTED.search(text):
        raise RecursionError
    if _LONG.search(text):
        raise ValueError(f"holds a word or number of more than {limits.TEXT_LENGTH:,} characters")
    check_size(text, limits.RECIPE_VALUES)
    return _weighed(tomllib.loads(text))


def _json(text: str) -> Data:
    check_size(text, limits.RECIPE_VALUES)
    return _weighed(json.loads(text, object_pairs_hook=reject_duplicate_keys))


def _yaml(text: str) -> Data:
    try:
        from ruamel.yaml import YAML
        from ruamel.yaml.composer import Composer
        from ruamel.yaml.error import ReusedAnchorWarning, YAMLError
    except ImportError:
        raise MissingExtraError("reading YAML", "yaml") from None

    class Bounded(Composer):
        values = level = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.values, self.level = self.values + 1, self.level + 1
            if self.values > limits.RECIPE_VALUES:
                raise ValueError(_TOO_MANY)
            if self.level > limits.LEVELS:
                raise RecursionError
            node = super().compose_node(parent, index)
            self.level -= 1
            return node

    if len(text) > limits.YAML_BYTES:
        raise ValueError(f"has more than {limits.YAML_BYTES:,} characters, too many for YAML; TOML may have more")
    reader = YAML(typ="safe", pure=True)
    reader.Composer = Bounded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)  # YAML allows it
            # Nodes first: an alias is one node in many places, and what is made of them copies merge keys' tables.
            if (node := reader.compose(text)) is None:
                return None
            _weigh(node, _inside)
            return _weighed(reader.constructor.construct_document(node))
    except (YAMLError, TypeError, LookupError, ArithmeticError, AttributeError) as error:  # a table as a key, and such
        mark = getattr(error, "problem_mark", None)
        texts = (getattr(error, key, None) for key in ("context", "problem"))
        raise ValueError(f"line {mark.line + 1}: {', '.join(filter(None, texts))}" if mark else str(error)) from None


def _inside(node: Any) -> Any:
    """The nodes in a list, the keys and values of a table, or the text of any other node."""
    if not isinstance(node.value, list):
        return node.value
    return [each for item in node.value for each in (item if isinstance(item, tuple) else (item,))]


def _weighed(data: Data) -> Data:
    """The data, if they are within the limits; ValueError or RecursionError if not."""
    _weigh(data, lambda data: [*data, *data.values()] if isinstance(data, dict) else data)
    return data


def _weigh(data: Any, items_of: Callable[[Any], Any]) -> None:
    """Raise ValueError for too many values, a text or a number that is too long; RecursionError for too many levels."""
    known: dict[int, int] = {}

    def weight(item: Any, level: int = 0) -> int:
        """The number of values. An alias counts each time: ten levels of ten are ten thousand million values."""
        if id(item) in known:
            return known[id(item)]
        if level > limits.LEVELS:
            raise RecursionError
        inner = items_of(item)
        if isinstance(inner, str) and len(inner) > limits.TEXT_LENGTH:
            raise ValueError(f"a text in a recipe has at most {limits.TEXT_LENGTH:,} characters, not {len(inner):,}")
        if isinstance(inner, int) and abs(inner) >= 10**limits.DIGITS:
            raise ValueError(f"a number in a recipe has at most {limits.DIGITS} digits")
        if not isinstance(inner, list):
            return 1
        known[id(item)] = total = 1 + sum(weight(one, level + 1) for one in inner)
        if total > limits.RECIPE_VALUES:
            raise ValueError(_TOO_MANY)
        return total

    weight(data)


_PARSERS: Final[dict[str, Callable[[str], Data]]] = {".toml": _toml, ".json": _json, ".yaml": _yaml, ".yml": _yaml}
