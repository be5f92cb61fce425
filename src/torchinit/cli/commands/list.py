"""`torchinit list`: the names that a recipe can use."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from torchinit._text import columns
from torchinit.checkpoints.adapters import ADAPTERS
from torchinit.cli import options
from torchinit.cli.commands import explain
from torchinit.knowledge import gain
from torchinit.knowledge.gains import nonlinearities
from torchinit.linting import CHECKS
from torchinit.model.layouts import known_layers
from torchinit.recipes import schemes
from torchinit.rules.catalog import INITIALIZERS
from torchinit.serialization.registry import Registry

if TYPE_CHECKING:
    from torchinit.cli.options import Commands


def add(commands: Commands) -> None:
    """Describes the command to the parser."""
    parser = commands.add_parser("list", help="list initializers, adapters, layers, schemes, checks or nonlinearities")
    parser.add_argument("what", nargs="?", choices=KINDS, default="initializers", help="default: initializers")
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints each name with what it means in a line."""
    head, rows = KINDS[arguments.what]
    found = rows()
    print(json.dumps(dict(found), indent=2, ensure_ascii=False) if arguments.json else columns(head, found))
    return 0


def _words(registry: Registry) -> list[tuple[str, str]]:
    texts = ((name, explain.describe(name, registry.get(name)).text) for name in registry)
    return [(name, " ".join(text[0].split()) if text else "") for name, text in texts]


def _initializers() -> list[tuple[str, str]]:
    return _words(INITIALIZERS)


def _adapters() -> list[tuple[str, str]]:
    return _words(ADAPTERS)


def _layers() -> list[tuple[str, str]]:
    """The layers whose axes are known, those of torch.nn one by one; a subclass is known with its base."""
    known = set(known_layers())
    rows = {name.rpartition(".")[2]: name for name in known}
    for name, layer in vars(nn).items():
        if isinstance(layer, type) and known & {f"{base.__module__}.{base.__qualname__}" for base in layer.__mro__}:
            rows[name] = f"torch.nn.{name}"
    return sorted((name, full) for name, full in rows.items() if not name.startswith("_"))


def _schemes() -> list[tuple[str, str]]:
    return list(schemes().items())


def _checks() -> list[tuple[str, str]]:
    return [(f"{code} {one.name}", one.summary) for code, one in sorted(CHECKS.items())]


def _nonlinearities() -> list[tuple[str, str]]:
    return [(name, f"{gain(name):.6g}") for name in nonlinearities()]


Rows = Callable[[], list[tuple[str, str]]]

KINDS: dict[str, tuple[tuple[str, str], Rows]] = {
    "initializers": (("initializer", "what it does"), _initializers),
    "adapters": (("adapter", "what it does"), _adapters),
    "layers": (("layer", "class"), _layers),
    "schemes": (("scheme", "what it is"), _schemes),
    "checks": (("check", "what it finds"), _checks),
    "nonlinearities": (("nonlinearity", "gain"), _nonlinearities),
}
"""What can be listed: the heads of the table, and its rows."""
