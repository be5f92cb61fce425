"""`torchinit plan`: what a recipe will write where, worked out without memory."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from torchinit import make_plan, sites
from torchinit.cli import options

if TYPE_CHECKING:
    from torchinit.cli.options import Commands


def add(commands: Commands) -> None:
    """Describes the command to the parser."""
    parser = commands.add_parser("plan", help="show what a recipe will write where; nothing is written")
    options.add_model(parser)
    options.add_recipe(parser)
    options.add_json(parser)
    parser.add_argument(
        "--device", choices=("meta", "cpu"), default="meta", help="where the model is built; cpu for code that needs it"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the plan, what is wrong with it included; raises PlanError if anything is."""
    rules = options.recipe_of(arguments.recipe)
    plan = make_plan(sites(options.model_of(arguments, arguments.device)), rules)
    print(plan.to_json() if arguments.json else plan.table())
    plan.check(complete=arguments.complete, strict=arguments.strict)
    return 0
