"""plan: show what a recipe will write where; nothing is written."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from torchinit._files import replacing
from torchinit.api import draft
from torchinit.cli import options
from torchinit.cli.errors import UsageError
from torchinit.distributed.cost import cost_of, measured
from torchinit.distributed.partition import parse_mesh, parse_override


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    options.add_model(parser)
    options.add_recipe(parser)
    options.add_all(parser)
    options.add_json(parser)
    text = "also write the plan to a JSON file, which `torchinit apply MODEL FILE` carries out"
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=text)
    parser.add_argument("--force", action="store_true", help="overwrite the output if it exists")
    text = "where the model is built; cpu for code that needs it"
    parser.add_argument("--device", choices=("meta", "cpu"), default="meta", help=text)
    mesh = parser.add_argument_group("on a mesh of ranks", "what each rank holds and how long it takes, by arithmetic")
    mesh.add_argument("--mesh", metavar="512x8", help="the sizes of its dimensions")
    mesh.add_argument("--parallel", metavar="WAYS", default="", help="what each dimension does: replicate,fsdp,tp,ep")
    text = "cut these sites otherwise than usual"
    mesh.add_argument("--place", action="append", default=[], metavar="WAY:NAME=AXIS", help=text)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan, what is wrong with it included; raise PlanError if anything is, and write no file."""
    if arguments.output and arguments.output.exists() and not arguments.force:
        raise UsageError(f"{str(arguments.output)!r} exists already; --force overwrites it")
    rules = options.recipe_of(arguments.recipe, arguments.set) if arguments.recipe else None
    model = options.model_of(arguments, arguments.device)
    only = options.only_of(arguments)
    plan = options.own_start(arguments, model) if rules is None else draft(model, rules, only=only)
    if arguments.mesh:
        try:
            partition = parse_mesh(arguments.mesh, arguments.parallel)
            partition = replace(partition, overrides=tuple(map(parse_override, arguments.place)))
        except ValueError as error:
            raise UsageError(str(error)) from None
        cost = cost_of(plan, partition, measured(plan))
        print(json.dumps(cost.to_dict(), indent=2) if arguments.json else f"{cost.table()}\n{plan.summary()}")
    elif arguments.json:
        print(plan.to_json())
    else:
        options.show_table(arguments, plan, f"{type(model).__name__} with {arguments.recipe or 'its own start'}")
    plan.check(complete=arguments.complete or only is not None, strict=arguments.strict)
    if arguments.output:
        with replacing(arguments.output) as file:
            file.write(plan.to_json().encode())
    return 0
