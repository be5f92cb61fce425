"""parity: compare a model from the meta device, as it starts, with one that is built in memory."""

from __future__ import annotations

import argparse
from functools import partial

from torchinit.cli import models, options
from torchinit.linting import meta_parity


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.set_defaults(on_error=2)
    options.add_model(parser)
    text = "what starts it after to_empty(): a method such as init_weights, or a recipe (default: its own method)"
    parser.add_argument("--init", metavar="INIT", help=text)
    options.add_set(parser)
    parser.add_argument("--seed", type=int, default=0, help="of all draws (default: 0)")
    options.add_all(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; 1 if there is an error among them."""
    factory = partial(models.build, arguments.model, models.parse_arguments(arguments.arg), "cpu")
    settings = models.parse_arguments(arguments.set, "--set") or None
    findings = meta_parity(factory, init=arguments.init, seed=arguments.seed, arguments=settings)
    options.show(arguments, findings.to_dict(), findings)
    return 1 if findings.errors else 0
