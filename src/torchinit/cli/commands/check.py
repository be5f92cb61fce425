"""`torchinit check`: a model built, and what is wrong with its initial values."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from torchinit import ConfigError, Plan, Report, lint, sites
from torchinit.cli import options, weights
from torchinit.cli.errors import UsageError
from torchinit.linting import CHECKS, SEVERITIES, ConstructionRecorder, Findings, select_checks
from torchinit.model.sandbox import poisoned_memory
from torchinit.noise import Keyed
from torchinit.plans import local_shards, make_plan
from torchinit.plans import run as carry_out

if TYPE_CHECKING:
    from torch import nn

    from torchinit.cli.options import Commands


def add(commands: Commands) -> None:
    """Describes the command to the parser."""
    parser = commands.add_parser("check", help="build a model and find what is wrong with its initial values")
    options.add_model(parser)
    parser.add_argument(
        "recipe", metavar="RECIPE", nargs="?", help="a file, or the name of a scheme: applied, and checked"
    )
    parser.add_argument(
        "--as-built", action="store_true", help="do not apply the recipe: compare the model's own init with it"
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a .safetensors file to load last")
    parser.add_argument("--seed", type=int, default=0, help="of the model's own draws and of the recipe's (default: 0)")
    parser.add_argument("--device", choices=("cpu", "meta"), default="cpu", help="meta checks what needs no values")
    for name, what in (("select", "run only"), ("ignore", "leave out")):
        parser.add_argument(
            f"--{name}", action="append", default=[], metavar="CHECKS", help=f"{what} these: TI301,TI4,meta"
        )
    parser.add_argument(
        "--fail-on", choices=SEVERITIES, default="error", help="from which severity on the exit code is 1"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument("--sarif", action="store_true", help="print SARIF 2.1.0, for code review")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the findings; 1 if one of them is as severe as --fail-on, or worse."""
    select, ignore = (_checks(texts) for texts in (arguments.select, arguments.ignore))
    rules = options.recipe_of(arguments.recipe) if arguments.recipe else None
    if arguments.as_built and rules is None:
        raise UsageError("--as-built compares with a recipe: give one")
    loaded = weights.File(arguments.weights) if arguments.weights else None
    construction = ConstructionRecorder()
    with poisoned_memory(), construction:
        model = options.model_of(arguments, arguments.device, arguments.seed)
    plan = make_plan(sites(model), rules) if rules is not None else None
    report = _applied(arguments, plan, model)
    if loaded is not None and arguments.device == "cpu":
        weights.load(loaded, model)
    if loaded is not None:  # what was loaded later is not what the report tells of
        report = None
    trace = (
        construction.of(model) if plan is None or arguments.as_built else None
    )  # what a recipe writes later is its own
    findings = lint(model, recipe=plan, trace=trace, report=report, loaded=loaded, select=select, ignore=ignore)
    print(_shown(findings, arguments))
    return 1 if findings.at_least(arguments.fail_on) else 0


def _checks(texts: list[str]) -> list[str]:
    words = [word for text in texts for word in text.split(",") if word]
    try:
        select_checks(words, ())
    except ConfigError as error:
        raise UsageError(str(error)) from None
    return words


def _applied(arguments: argparse.Namespace, plan: Plan | None, model: nn.Module) -> Report | None:
    if plan is None or plan.problems or arguments.as_built or arguments.device == "meta":
        return None
    return carry_out(plan, local_shards(model), Keyed(arguments.seed))


def _shown(findings: Findings, arguments: argparse.Namespace) -> str:
    if arguments.json:
        return findings.to_json()
    if arguments.sarif:
        return findings.to_sarif(checks=CHECKS, artifact=_artifact(arguments))
    return findings.table()


def _artifact(arguments: argparse.Namespace) -> str:
    """The file that a finding without a line points to: the model's, else the recipe's."""
    where = arguments.model.rpartition(":")[0]
    files = [where, arguments.model.removeprefix("transformers:"), arguments.recipe or ""]
    return next((text for text in files if text and Path(text).is_file()), "")
