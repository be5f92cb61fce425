"""`torchinit plan`: what a recipe will write where, worked out without memory."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from torchinit import Plan
from torchinit.api import draft
from torchinit.cli import options
from torchinit.cli.errors import UsageError
from torchinit.distributed.estimate.cost import Cost, cost_of, measured
from torchinit.distributed.estimate.partition import parse_mesh, parse_placing

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
    mesh = parser.add_argument_group("on a mesh of ranks", "what each rank holds and how long it takes, by arithmetic")
    mesh.add_argument("--mesh", metavar="512x8", help="the sizes of its dimensions")
    mesh.add_argument("--parallel", metavar="WAYS", default="", help="what each dimension does: replicate,fsdp,tp,ep")
    mesh.add_argument(
        "--place", action="append", default=[], metavar="WAY:NAME=AXIS", help="cut these sites otherwise than usual"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the plan, what is wrong with it included; raises PlanError if anything is."""
    rules = options.recipe_of(arguments.recipe)
    plan = draft(options.model_of(arguments, arguments.device), rules)
    cost = _cost(arguments, plan) if arguments.mesh else None
    if cost is None:
        print(plan.to_json() if arguments.json else plan.table())
    else:
        print(json.dumps(cost.to_dict(), indent=2) if arguments.json else f"{cost.table()}\n{plan.summary()}")
    plan.check(complete=arguments.complete, strict=arguments.strict)
    return 0


def _cost(arguments: argparse.Namespace, plan: Plan) -> Cost:
    try:
        partition = parse_mesh(arguments.mesh, arguments.parallel)
        partition = replace(partition, placings=tuple(map(parse_placing, arguments.place)))
    except ValueError as error:
        raise UsageError(str(error)) from None
    return cost_of(plan, partition, measured(plan))
