"""Catalogue: the page of all initializations that have a name, made of src/torchinit/cli/catalogue.toml.

.venv/bin/python -m tests.catalogue

writes docs/reference/catalogue.md. tests/test_catalogue.py checks that it is up to date, and runs what it says.
"""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional as F

import torchinit

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs/reference/catalogue.md"
TABLE: Final = ROOT / "src/torchinit/cli/catalogue.toml"
SECTIONS: Final[list[dict[str, Any]]] = tomllib.loads(TABLE.read_text("utf-8"))["sections"]
ENTRIES: Final[dict[int, dict[str, Any]]] = {entry["n"]: entry for part in SECTIONS for entry in part["entries"]}
NAMES: Final[dict[str, Any]] = {
    **{name: getattr(torchinit.initializers, name) for name in torchinit.initializers.__all__},
    "F": F,
    "Pretrained": torchinit.Pretrained,
    "math": math,
    "nn": nn,
    "torch": torch,
}
"""The names that a line of Python may use; those of its data aside."""

WAYS: Final = {
    "own": "by its own name",
    "scheme": "as a scheme",
    "line": "in one line",
    "rules": "in several rules",
    "python": "in one line of Python",
    "no": "not",
}

HEAD: Final = """\
# Catalogue: initializations that have a name

What papers and libraries call an initialization, and how it is written here.

{counts}.

A line in braces is an entry of a recipe, `rules = [...]` in TOML; without a selector (`layer`, `name`) it goes with
any. A name in quotes is a [scheme](schemes.md) with arguments as verbs take them; entries below it say the same part by
names of layers, for a model whose roles are not known. Numbers as text are
[expressions](recipes.md#numbers-as-text). A line of Python is an initializer, for
`Rule(selector, ...)`: `nn`, `F` and `math` are the usual modules, and names that explain themselves (`counts`,
`online`) are data of one's own. Every line of this page is run by the tests and compared with SciPy's distributions,
with torch, or with the formula written as a loop.

What has no line says why. Most of that needs a batch, while a plan is made from names and shapes alone. Values that
such code has made can be loaded, and
[a function of a tensor](recipes.md) or [an initializer of one's own](../guides/extending.md) writes what none of
these does.
"""


def way(entry: dict[str, Any]) -> str:
    """Which of :data:`WAYS` leads to an entry."""
    if "no" in entry:
        return "no"
    if entry.get("own"):
        return "own"
    if "scheme" in entry:
        return "scheme"
    if "rules" in entry:
        return "line" if len(entry["rules"]) == 1 else "rules"
    return "python"


def inline(value: object) -> str:
    """Plain data as TOML in one line.

    >>> inline({"type": "Ones", "name": ["a", "b"], "x-y": 0.5})
    '{ type = "Ones", name = ["a", "b"], "x-y" = 0.5 }'
    """
    match value:
        case dict():
            keys = (key if key.replace("_", "").isalnum() else f'"{key}"' for key in value)
            each = (f"{key} = {inline(inner)}" for key, inner in zip(keys, value.values(), strict=True))
            return f"{{ {', '.join(each)} }}"
        case list():
            return f"[{', '.join(map(inline, value))}]"
        case str():
            return f'"{value}"'
        case bool():
            return str(value).lower()
        case _:
            return repr(value)


def page() -> str:
    """The whole page."""
    found = Counter(map(way, ENTRIES.values()))
    counts = ", ".join(f"{found[kind]} {text}" for kind, text in WAYS.items())
    parts = [HEAD.format(counts=f"Of {len(ENTRIES)}: {counts}")]
    for section in SECTIONS:
        rows = [f"| {' | '.join(_cells(entry))} |" for entry in section["entries"]]
        head = ["| # | name | starts as | source | here |", "|---|---|---|---|---|"]
        parts.append("\n".join([f"## {section['title']}", "", *head, *rows, ""]))
    return "\n".join(parts)


def _cells(entry: dict[str, Any]) -> list[str]:
    papers = [f"[{number}](https://arxiv.org/abs/{number})" for number in entry.get("arxiv", [])]
    source = ", ".join([*papers, *([entry["source"]] if "source" in entry else [])]) or "–"
    arguments = "".join(f", {name}={inline(value)}" for name, value in entry.get("arguments", {}).items())
    lines = [f'`"{entry["scheme"]}"{arguments}`'] if "scheme" in entry else []
    lines += [f"`{inline(rule)}`" for rule in entry.get("rules", [])]
    lines += [f"`{entry['python']}`"] if "python" in entry else []
    kind = way(entry)
    here = f"not: {entry['no']}" if kind == "no" else f"{WAYS[kind]}: {'<br>'.join(lines)}"
    return [str(entry["n"]), entry["name"], entry["start"], source, "; ".join(filter(None, (here, entry.get("note"))))]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
