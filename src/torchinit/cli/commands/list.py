"""list: list initializers, selectors, adapters, layers, roles, schemes, checks or nonlinearities."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from torch import nn

from torchinit._text import format_table
from torchinit.checkpoints.adapters import ADAPTERS
from torchinit.cli import options
from torchinit.cli.commands import explain
from torchinit.knowledge.gains import gain, nonlinearities
from torchinit.knowledge.role_rules import known_roles
from torchinit.linting import known_checks
from torchinit.model.layouts import known_layers
from torchinit.probing import PROBE_CHECKS
from torchinit.recipes import schemes
from torchinit.rules.catalog import INITIALIZERS, SELECTORS
from torchinit.serialization.registry import ClassRegistry, described
from torchinit.transfer import TRANSFER_CHECKS


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("kind", nargs="?", choices=[*KINDS], default="initializers", help="default: initializers")
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print each name with what it means in a line."""
    head, make = KINDS[arguments.kind]
    meanings = make()
    return options.show(arguments, meanings, format_table(head, [*meanings.items()]))


def _classes(registry: ClassRegistry) -> dict[str, str]:
    texts = {name: explain.describe(name, registry.get(name)).text for name in registry}
    # A plug-in is named with its package, and not imported: that would run code only to list it.
    offers = {point.name: described(point) for point in registry.plugins()}
    return offers | {name: " ".join(text[0].split()) if text else "" for name, text in texts.items()}


def _layers() -> dict[str, str]:
    """The layers whose axes are known, those of torch.nn one by one; a subclass is known with its base."""
    known = set(known_layers())
    rows = {name.rpartition(".")[2]: name for name in known}
    for name, layer in vars(nn).items():
        if isinstance(layer, type) and known & {f"{base.__module__}.{base.__qualname__}" for base in layer.__mro__}:
            rows[name] = f"torch.nn.{name}"
    return {name: rows[name] for name in sorted(rows) if not name.startswith("_")}


KINDS: dict[str, tuple[tuple[str, str], Callable[[], Mapping[str, str]]]] = {
    "initializers": (("initializer", "what it does"), lambda: _classes(INITIALIZERS)),
    "selectors": (("selector", "which sites"), lambda: _classes(SELECTORS)),
    "adapters": (("adapter", "what it does"), lambda: _classes(ADAPTERS)),
    "layers": (("layer", "class"), _layers),
    "roles": (("role", "of whose rules"), known_roles),
    "schemes": (("scheme", "what it is"), schemes),
    "checks": (
        ("check", "what it finds"),
        lambda: {
            f"{code} {check.name}": check.summary
            for code, check in sorted({**known_checks(), **PROBE_CHECKS, **TRANSFER_CHECKS}.items())
        },
    ),
    "nonlinearities": (("nonlinearity", "gain"), lambda: {name: f"{gain(name):.6g}" for name in nonlinearities()}),
}
"""The kinds of names: the heads of their table, and its rows."""
