"""Classes: what one that plain data can name takes, and a rule with it, as TOML and as Python."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torchinit.checkpoints.adapters import ADAPTERS
from torchinit.errors import ConfigError
from torchinit.recipes import to_rules
from torchinit.rules.rule import INITIALIZERS, SCHEMA, SELECTORS, example_of
from torchinit.serialization.reading import Reader, kind_of
from torchinit.serialization.registry import ClassRegistry

# --- arguments -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExplainedArgument:
    """An argument of a class, its default as text (empty: it must be given), its choices, and what it means."""

    name: str
    default: str = ""
    choices: tuple[str, ...] = ()
    meaning: str = ""

    def __str__(self) -> str:
        head = f"{self.name} = {self.default}" if self.default else f"{self.name}, required"
        choices = f" ({', '.join(self.choices)})" if self.choices else ""
        return "\n".join(
            [head + choices, *textwrap.wrap(self.meaning, 94, initial_indent="  ", subsequent_indent="  ")]
        )


def arguments_of(cls: type[Any]) -> tuple[ExplainedArgument, ...]:
    """The arguments of a dataclass, in order; none of any other class.

    >>> from torchinit import Normal
    >>> arguments_of(Normal)[1]
    ExplainedArgument(name='std', default='1.0', choices=(), meaning='The standard deviation of the values.')
    """
    if not dataclasses.is_dataclass(cls):
        return ()
    try:
        hints = get_type_hints(cls)
    except NameError:  # a plug-in that names its types for type checkers only
        hints = {}
    choices = {name: tuple(map(str, get_args(hint))) for name, hint in hints.items() if get_origin(hint) is Literal}
    fields = {field.name: field for field in dataclasses.fields(cls)}
    return tuple(
        ExplainedArgument(
            name, _default(each, fields[name]), choices.get(name, ()), _meaning(cls, name, hints.get(name))
        )
        for name, each in inspect.signature(cls).parameters.items()
        if name in fields
    )


def _default(parameter: inspect.Parameter, field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "" if parameter.default is parameter.empty else repr(parameter.default)


@cache
def _meanings() -> Mapping[str, Any]:
    return tomllib.loads(Path(__file__).with_name("arguments.toml").read_text("utf-8"))


def _meaning(cls: type[Any], name: str, hint: Any) -> str:
    """Return what an argument means: by its class, by the docstring's sentence, by its name alone, by its type."""
    # Docstrings tell arguments in sentences, most of them one each; where one tells several, the table has the words.
    own = [text for text in _sentences(cls) if re.search(rf"``{name}(``|=)", text)]
    text = _meanings().get(cls.__name__, {}).get(name) or (own[0] if own else _meanings().get(name, ""))
    if not text and hint is not None:
        text = f"{kind_of(hint).describe(Reader(SCHEMA.vocabularies, ''))}."
    text = without_roles(re.sub(rf"^(\w[\w ]*: )?``{name}`` (is|are) ", "", text))
    return text[:1].upper() + text[1:]


def _sentences(cls: type[Any]) -> list[str]:
    paragraphs = re.split(r"\n\s*\n", inspect.getdoc(cls) or "")
    prose = [" ".join(part.split()) for part in paragraphs if not part.startswith((">>>", ".. math::"))]
    return [text for part in prose for text in re.split(r"(?<=[.!?])\s+(?=[A-Z`])|;\s+(?=``)", part)]


def without_roles(text: str) -> str:
    """The text of a docstring without the marks of names.

    >>> without_roles(":func:`gain` takes ``a``")
    'gain takes a'
    """
    return re.sub(r":\w+:`([^`]*)`|``([^`]*)``", lambda match: match[1] or match[2], text)


# --- examples --------------------------------------------------------------------------------------------------------

_REGISTRIES = (INITIALIZERS, SELECTORS, ADAPTERS)


def examples_of(name: str, registry: ClassRegistry) -> dict[str, str]:
    """The example of a class, by language; none where its arguments are not known, as of a plug-in's class."""
    entry = _entry(name, registry)
    try:
        to_rules(entry)
    except ConfigError:
        return {}
    if registry is SELECTORS:
        where, init = entry["where"], entry["init"]
    else:
        where, init = entry["name"], {key: value for key, value in entry.items() if key != "name"}
    used: set[type] = set()
    rule = f"Rule({_python(where, used)}, {_python(init, used)})"
    table = ["[[rules]]", *(f"{key} = {as_toml(value)}" for key, value in entry.items())]
    return {"TOML": "\n".join(table), "Python": "\n".join([*_imports(used), rule])}


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


def as_toml(value: Any) -> str:
    """Plain data as TOML in one line.

    >>> as_toml({"type": "Ones", "**": [1, 0.5]})
    '{ type = "Ones", "**" = [1, 0.5] }'
    """
    if isinstance(value, Mapping):
        keys = [key if key.isidentifier() and key.isascii() else json.dumps(key) for key in value]
        pairs = [f"{key} = {as_toml(item)}" for key, item in zip(keys, value.values(), strict=True)]
        return f"{{ {', '.join(pairs)} }}"
    return f"[{', '.join(map(as_toml, value))}]" if isinstance(value, list) else json.dumps(value)


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
