"""`torchinit check-ckpt`: what of a model a file of weights holds, and whether it can be loaded; nothing is."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from torchinit import CheckpointError, Name, Plan, Pretrained, Rule, open_checkpoint, sites
from torchinit.checkpoints import Loaded
from torchinit.cli import options
from torchinit.cli.errors import UsageError
from torchinit.initializers import LoadReport
from torchinit.model import Shard
from torchinit.plans import make_plan

if TYPE_CHECKING:
    from torchinit.cli.options import Commands


def add(commands: Commands) -> None:
    """Describes the command to the parser."""
    parser = commands.add_parser("check-ckpt", help="compare a file of weights with a model; nothing is loaded")
    parser.add_argument("file", metavar="FILE", nargs="?", help="a path, a URL or another source of weights")
    options.add_model(parser, "--model")
    parser.add_argument(
        "--recipe", metavar="RECIPE", help="compare the checkpoints of a recipe's rules, in place of FILE"
    )
    options.add_part(parser)
    parser.add_argument("--prefix", help="take the keys that begin with this, without it")
    parser.add_argument(
        "--rename", nargs=2, action="append", default=[], metavar=("PATTERN", "NEW"), help="as re.sub; may be repeated"
    )
    parser.add_argument(
        "--expect-missing", action="append", default=[], metavar="GLOB", help="what the file need not have"
    )
    parser.add_argument("--skip-shapes", action="store_true", help="what differs in shape is left out, no finding")
    parser.add_argument("--sha256", help="the hash that the file must have")
    parser.add_argument("--header-only", action="store_true", help="do not read the values, which may be NaN")
    parser.add_argument("--device", choices=("meta", "cpu"), default="meta", help="where the model is built")
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the accounts; 1 if a plan with them would fail, or its run."""
    if arguments.model is None:
        raise UsageError("what is missing shows on a model: give --model")
    if (arguments.file is None) == (arguments.recipe is None):
        raise UsageError("give either a FILE or a --recipe that loads from one")
    plan = _plan(arguments)
    faults = {} if arguments.header_only else dict(_faults(plan))
    if arguments.json:
        data = [
            {**account.to_dict(), "problems": [*_wrong(account), *_held(account, faults)]} for account in plan.loads
        ]
        print(json.dumps(data if arguments.recipe else data[0], indent=2))
    else:
        print("\n".join([*map(_shown, plan.loads), *faults.values(), *plan.problems]))
    return 1 if faults or plan.problems or any(map(_wrong, plan.loads)) else 0


def _plan(arguments: argparse.Namespace) -> Plan:
    rules = options.recipe_of(arguments.recipe) if arguments.recipe else (Rule(Name("**"), _rule(arguments)),)
    plan = make_plan(sites(options.model_of(arguments, arguments.device)), rules)
    if not plan.loads:
        raise UsageError(f"{arguments.recipe}: no rule of it loads from a checkpoint")
    return plan


def _rule(arguments: argparse.Namespace) -> Pretrained:
    open_checkpoint(arguments.file, part=arguments.part)  # a file that is not there is a mistake of usage
    try:
        return Pretrained(
            arguments.file,
            arguments.prefix,
            rename=tuple((old, new) for old, new in arguments.rename),
            expect_missing=tuple(arguments.expect_missing),
            on_shape="skip" if arguments.skip_shapes else "error",
            part=arguments.part,
            sha256=arguments.sha256,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def _wrong(account: LoadReport) -> tuple[str, ...]:
    return (*account.problems, *account.lapses)


def _held(account: LoadReport, faults: Mapping[str, str]) -> list[str]:
    return [faults[name] for name in (*account.loaded, *dict(account.adapted)) if name in faults]


def _faults(plan: Plan) -> Iterator[tuple[str, str]]:
    """What the values of sites would be refused for when they are loaded."""
    for site, fill in ((step.site, step.fill) for step in plan.steps):
        if isinstance(fill, Loaded):
            try:
                fill.prepare(Shard.whole(site.name, torch.empty(site.shape, dtype=site.dtype, device="meta")))
            except (CheckpointError, ValueError) as error:
                yield site.name, f"{site.name}: {error}"


def _shown(account: LoadReport) -> str:
    """The account, and what to write to be rid of what is wrong with it."""
    way, remedies = account.guess, list[tuple[str, str]]()
    if way is not None and way.options:
        remedies.append((way.options, way.arguments))
    elif globs := _globs(account):
        flags = shlex.join(word for glob in globs for word in ("--expect-missing", glob))
        remedies.append((flags, f"expect_missing={globs}"))
    if any(site.reason == "shape" for site in account.mismatched):
        remedies.append(("--skip-shapes", "on_shape='skip'"))
    return "\n  ".join([account.table(), *(f"try {here}, in a rule {there}" for here, there in remedies)])


def _globs(account: LoadReport) -> list[str]:
    """Globs of what is missing, where the file lacks whole parts of the model and has others."""
    found = {name.partition(".")[0] for name in (*account.loaded, *dict(account.adapted))}
    parts = dict.fromkeys(name.partition(".")[0] for name in account.missing)
    return [f"{part}.**" for part in parts] if found and not found & {*parts} and len(parts) < 6 else []
