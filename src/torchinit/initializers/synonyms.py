"""Synonyms: what the initializers of torch.nn.init, Keras, JAX and others are called here (synonyms.toml)."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torchinit._text import closest


@dataclass(frozen=True, slots=True)
class Synonym:
    """The ``name`` of an initializer in a ``library``, and the ``type`` with the arguments that give the same here."""

    name: str
    library: str
    type: str
    arguments: Mapping[str, Any]

    @property
    def data(self) -> str:
        """The keys of an entry: of a recipe in TOML between braces, of an ``init_cfg`` within ``dict(...)``."""
        return ", ".join(f"{key}={_quoted(value)}" for key, value in {"type": self.type, **self.arguments}.items())

    @property
    def call(self) -> str:
        """The expression that makes the initializer, once torchinit is imported."""
        home = "torchinit" if self.type in sys.modules["torchinit"].__all__ else "torchinit.initializers"
        return f"{home}.{self.type}({', '.join(f'{key}={_quoted(value)}' for key, value in self.arguments.items())})"


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


@cache
def synonyms() -> Mapping[str, tuple[Synonym, ...]]:
    """All synonyms by their :func:`spelling`."""
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    found: dict[str, tuple[Synonym, ...]] = {}
    for library, rows in table.items():
        for name, row in rows.items():
            synonym = Synonym(name, library, row["type"], {key: row[key] for key in row if key != "type"})
            found[spelling(name)] = (*found.get(spelling(name), ()), synonym)
    return found


def spelling(name: str) -> str:
    """The letters of a name that libraries agree on.

    >>> [spelling(name) for name in ("he_normal", "keras.initializers.HeNormal", "XavierInit", "xavier_")]
    ['henormal', 'henormal', 'xavier', 'xavier']
    """
    letters = re.sub(r"[^a-z0-9]", "", name.rpartition(".")[2].casefold())
    return re.sub(r"(?<=.)init(ializer)?$", "", letters)


def meanings(name: str, key: str) -> tuple[Synonym, ...]:
    """The synonyms of a :func:`spelling`, which a name has or is near."""
    # What torch's underscore marks is torch's; without it the name may be anybody's, and each says his own.
    rows = synonyms().get(key, ())
    return tuple(row for row in rows if row.name == name.rpartition(".")[2] and name.endswith("_")) or rows


def hint(name: str, known: Iterable[str], *, as_call: bool = False) -> str:
    """The tail of an error text about an unknown initializer: the near name among the known, or what to write instead.

    It is data, or ``as_call`` Python.

    >>> hint("Kaimng", ["Kaiming", "Xavier"])
    "; did you mean 'Kaiming'?"
    >>> hint("xavier_uniform", ["Kaiming", "Xavier"])
    '; xavier_uniform_ of torch.nn.init, xavier_uniform of JAX: write type="Xavier", distribution="uniform"'
    """
    known = [*known]
    key, own = spelling(str(name)), {spelling(each): each for each in known}
    near = key if key in own or key in synonyms() else closest(key, [*own, *synonyms()])
    if near is None:
        return ""
    lines: dict[str, list[str]] = {}
    for row in meanings(name, near):
        # Where the name alone says it, or a name of ours was misspelt, it is offered already.
        more = near not in own or (row.arguments and (near == key or not name[:1].isupper()))
        if more and (as_call or row.type in known):
            lines.setdefault(row.call if as_call else row.data, []).append(f"{row.name} of {row.library}")
    first = f"; did you mean {own[near]!r}?" if near in own else ""
    return first + "".join(f"; {', '.join(names)}: write {line}" for line, names in lines.items())
