"""Catalogue: what papers and libraries call an initialization, by these names, with how each is written here."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torchinit.cli.classes import as_toml


@cache
def catalogue() -> Mapping[str, tuple[Mapping[str, Any], ...]]:
    """The entries of catalogue.toml by the :func:`key` of each name that they have: the whole, and parts of it."""
    table = tomllib.loads(Path(__file__).with_name("catalogue.toml").read_text("utf-8"))
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for section in table["sections"]:
        for entry in section["entries"]:
            for name in names_of(entry):
                found[key(name)].append(entry)
    return {word: tuple(entries) for word, entries in found.items()}


def names_of(entry: Mapping[str, Any]) -> list[str]:
    """The names of an entry: all of it, and what commas divide.

    >>> names_of({"name": "Glorot, Xavier"})
    ['Glorot, Xavier', 'Glorot', 'Xavier']
    """
    return [*dict.fromkeys((entry["name"], *entry["name"].split(", ")))]


def key(name: str) -> str:
    """The letters and digits of a name, whatever their case.

    >>> key("T-Fixup"), key("depth-μP")
    ('tfixup', 'depthmup')
    """
    return re.sub(r"[\W_]", "", name.casefold().replace("μ", "mu"))


def texts_of(entry: Mapping[str, Any]) -> Iterator[str]:
    """The paragraphs on an entry: how it starts, where it is from, why it is not here, what is worth knowing."""
    yield entry["start"]
    papers = [f"https://arxiv.org/abs/{number}" for number in entry.get("arxiv", ())]
    if source := ", ".join([*papers, *filter(None, [entry.get("source")])]):
        yield f"Source: {source}"
    if why := entry.get("no"):
        yield f"Not here: {why}."
    if note := entry.get("note"):
        yield f"{note[:1].upper()}{note[1:]}."


def ways_of(entry: Mapping[str, Any]) -> dict[str, str]:
    """The ways to write an entry, by language."""
    ways = {}
    if rules := entry.get("rules"):
        tables = (["[[rules]]", *(f"{name} = {as_toml(value)}" for name, value in rule.items())] for rule in rules)
        ways["TOML"] = "\n\n".join("\n".join(lines) for lines in tables)
    if "python" in entry:
        ways["Python"] = entry["python"]
    if "scheme" in entry:
        more = "".join(f", {name}={value!r}" for name, value in entry.get("arguments", {}).items())
        sets = "".join(f" --set {name}={value}" for name, value in entry.get("arguments", {}).items())
        ways["Python"] = f'torchinit.initialize(model, "{entry["scheme"]}"{more}, seed=0)'
        ways["command"] = f"torchinit plan MODEL {entry['scheme']}{sets}"
    return ways
