"""check: build a model and find what is wrong with its initial values."""

from __future__ import annotations

import argparse
from pathlib import Path

from torchinit.api import sites
from torchinit.cli import options, weights
from torchinit.cli.errors import UsageError
from torchinit.errors import ConfigError
from torchinit.linting import SEVERITIES, ConstructionRecorder, known_checks, lint, select_checks
from torchinit.model.sandbox import poisoned_memory
from torchinit.noise import Keyed
from torchinit.plans.planner import make_plan
from torchinit.plans.run import local_shards
from torchinit.plans.run import run as carry_out


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    options.add_model(parser)
    option = parser.add_argument
    option("recipe", metavar="RECIPE", nargs="?", help="a file, or the name of a scheme: applied, and checked")
    options.add_set(parser)
    option("--as-built", action="store_true", help="do not apply the recipe: compare the model's own init with it")
    option("--weights", type=Path, metavar="FILE", help="a .safetensors file to load last")
    option("--seed", type=int, default=0, help="of the model's own draws and of the recipe's (default: 0)")
    option("--device", choices=("cpu", "meta"), default="cpu", help="meta checks what needs no values")
    for name, verb in (("select", "run only"), ("ignore", "leave out")):
        option(f"--{name}", action="append", default=[], metavar="CHECKS", help=f"{verb} these: TI301,TI4,meta")
    option("--fail-on", choices=SEVERITIES, default="error", help="from which severity on the exit code is 1")
    options.add_all(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument("--sarif", action="store_true", help="print SARIF 2.1.0, for code review")


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; 1 if one of them is as severe as --fail-on, or worse."""
    select, ignore = (_checks(texts) for texts in (arguments.select, arguments.ignore))
    rules = options.recipe_of(arguments.recipe, arguments.set) if arguments.recipe else None
    if arguments.as_built and rules is None:
        raise UsageError("--as-built compares with a recipe: give one")
    loaded = weights.open_file(arguments.weights)[0] if arguments.weights else None
    construction = ConstructionRecorder()
    with poisoned_memory(), construction:
        model = options.model_of(arguments, arguments.device, arguments.seed)
    plan = None if rules is None else make_plan(sites(model), rules)
    apply = plan is not None and not arguments.as_built
    history = construction.of(model)
    trace = None if apply else history  # what a recipe writes later is its own
    report = None
    if plan is not None and apply and not plan.problems and arguments.device == "cpu":
        report = carry_out(plan, local_shards(model), Keyed(arguments.seed))
    if loaded is not None:
        report = None  # it does not know of what is loaded now
        if arguments.device == "cpu":
            weights.load(loaded, model)
    findings = lint(model, recipe=plan, trace=trace, report=report, loaded=loaded, select=select, ignore=ignore)
    if arguments.sarif:
        print(findings.to_sarif(checks=known_checks(), artifact=options.artifact_of(arguments)))
    elif arguments.json:
        print(findings.to_json())
    else:
        options.show_table(arguments, findings)
        if arguments.verbose and findings.skipped:
            print(findings.not_run())
    return 1 if findings.at_least(arguments.fail_on) else 0


def _checks(texts: list[str]) -> list[str]:
    words = [word for text in texts for word in text.split(",") if word]
    try:
        select_checks(words, ())
    except ConfigError as error:
        raise UsageError(str(error)) from None
    return words
