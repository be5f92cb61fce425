"""Examples: a rule with a class that plain data can name, as TOML and as Python."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from typing import Any

from torchinit.checkpoints.adapters import ADAPTERS
from torchinit.errors import ConfigError
from torchinit.recipes import to_rules
from torchinit.rules.catalog import INITIALIZERS, SELECTORS, example_of
from torchinit.serialization.registry import ClassRegistry

_REGISTRIES = (INITIALIZERS, SELECTORS, ADAPTERS)


def examples_of(name: str, registry: ClassRegistry) -> dict[str, str]:
    """The example of a class, by language; none where its arguments are not known, as of a plug-in's class."""
    entry = _entry(name, registry)
    try:
        to_rules(entry)
    except ConfigError:
        return {}
    used: set[type] = set()
    if registry is SELECTORS:
        where, init = _python(entry["where"], used), _python(entry["init"], used)
    else:
        words = {key: value for key, value in entry.items() if key != "name"}
        where, init = _python(entry["name"], used), _python(words, used)
    return {"TOML": _table(entry), "Python": "\n".join([*_imports(used), f"Rule({where}, {init})"])}


def _entry(name: str, registry: ClassRegistry) -> dict[str, Any]:
    """The entry of a recipe that uses a class."""
    example = example_of(name)
    place = example.pop("name")
    named = {"type": name, **example}
    if registry is SELECTORS:
        return {"where": named, "init": {"type": "Normal", "std": 0.02}}
    if registry is ADAPTERS:
        return {"type": "Pretrained", "checkpoint": "weights.safetensors", "adapt": {place: named}, "name": "**"}
    return {**named, "name": place}


# --- TOML --------------------------------------------------------------------------------------------------------


def _table(entry: Mapping[str, Any]) -> str:
    return "\n".join(["[[rules]]", *(f"{key} = {_toml(value)}" for key, value in entry.items())])


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        keys = [key if key.isidentifier() and key.isascii() else json.dumps(key) for key in value]
        pairs = [f"{key} = {_toml(item)}" for key, item in zip(keys, value.values(), strict=True)]
        return f"{{ {', '.join(pairs)} }}"
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, list) else json.dumps(value)


# --- Python ------------------------------------------------------------------------------------------------------


def _python(value: Any, used: set[type]) -> str:
    """An expression that makes what data describe; the classes in it are added to those that are used."""
    if isinstance(value, list):
        return f"({', '.join(_python(item, used) for item in value)}{',' * (len(value) == 1)})"
    if not isinstance(value, Mapping):
        return json.dumps(value) if isinstance(value, str) else repr(value)
    items = {key: _python(item, used) for key, item in value.items()}
    if "type" not in value:
        return f"{{{', '.join(f'{json.dumps(key)}: {item}' for key, item in items.items())}}}"
    cls = next(registry.get(value["type"]) for registry in _REGISTRIES if value["type"] in registry)
    used.add(cls)
    star = [name for name, each in inspect.signature(cls).parameters.items() if each.kind is each.VAR_POSITIONAL]
    first = [_python(item, used) for name in star for item in value.get(name, ())]
    rest = [f"{key}={item}" for key, item in items.items() if key not in ("type", *star)]
    return f"{cls.__name__}({', '.join(first + rest)})"


def _imports(used: set[type]) -> list[str]:
    """The lines that import the classes, each from the shortest path that shows it."""
    homes: dict[str, set[str]] = {"torchinit": {"Rule"}}
    for cls in used:
        parts = cls.__module__.split(".")
        paths = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        public = (path for path in paths if cls.__name__ in getattr(sys.modules.get(path), "__all__", ()))
        homes.setdefault(next(public, cls.__module__), set()).add(cls.__name__)
    return [f"from {home} import {', '.join(sorted(names))}" for home, names in sorted(homes.items())]
