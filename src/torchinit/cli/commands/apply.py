"""apply: initialize a model, write it to a file, print the report."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from torchinit._version import __version__
from torchinit.api import draft, sites
from torchinit.checkpoints.open import origin_of
from torchinit.cli import options, weights
from torchinit.cli.commands.diff import kind_of, read_saved
from torchinit.cli.errors import UsageError
from torchinit.errors import PlanError
from torchinit.initializers.composed import Opaque
from torchinit.noise import STREAM, Keyed
from torchinit.plans.fingerprint import fingerprint
from torchinit.plans.only import prove
from torchinit.plans.origin import Origin
from torchinit.plans.plan import Plan, Skipped
from torchinit.plans.run import Progress, local_shards
from torchinit.plans.run import run as carry_out
from torchinit.rules.catalog import SCHEMA

_SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    options.add_model(parser)
    options.add_recipe(parser)
    options.add_all(parser)
    options.add_json(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .safetensors to write")
    parser.add_argument("--force", action="store_true", help="overwrite the output if it exists")
    parser.add_argument("--seed", type=int, default=0, help="where the values come from (default: 0)")
    text = "convert the model first (default: as its factory makes it)"
    parser.add_argument("--dtype", choices=(*_SHORT, *_SHORT.values()), help=text)
    parser.add_argument("--html", metavar="FILE", help="write the report as a page that needs no other file, too")
    parser.add_argument("--no-stats", action="store_false", dest="stats", help="write without measuring")


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print the report; where the values are not as planned there is no file."""
    weights.check_output(arguments.output, force=arguments.force)
    options.check_page(arguments.html)
    try:
        noise = Keyed(arguments.seed)
    except ValueError as error:
        raise UsageError(f"--seed: {error}") from None
    saved = read_saved(Plan, arguments.recipe) if arguments.recipe and kind_of(arguments.recipe) == "plan" else None
    rules = options.recipe_of(arguments.recipe, arguments.set) if arguments.recipe and not saved else None
    model = options.model_of(arguments, "cpu", arguments.seed)
    if arguments.dtype:
        model.to(getattr(torch, _SHORT.get(arguments.dtype, arguments.dtype)))
    only = options.only_of(arguments)
    if saved and only:
        raise UsageError("--only is for a recipe; a plan says itself what it leaves alone")
    if saved is not None:
        plan = _of_model(saved, model)
    else:
        plan = runnable(options.own_start(arguments, model)) if rules is None else draft(model, rules, only=only)
    plan.check(complete=arguments.complete or only is not None, strict=arguments.strict)
    with options.progress_bar("writing", sum(step.site.numel for step in plan)) as advance:
        progress: Progress | None = (lambda step: advance(step.site.numel)) if advance else None
        work = partial(carry_out, plan, local_shards(model), noise, stats=arguments.stats, progress=progress)
        report = prove(model, plan, work)
    origin = origin_of("own" if not (saved or rules) else "initialize", plan, noise, arguments.recipe)
    report = replace(report, fingerprint=(prints := fingerprint(model)), origin=origin)
    subject = f"{type(model).__name__} with {arguments.recipe or 'its own start'}, seed {noise.seed}"
    if arguments.html:
        report.save_html(arguments.html, subject=subject)
    if arguments.json:
        print(report.to_json())
    else:
        options.show_table(arguments, report, subject)
    report.assert_ok()
    made_of = {
        "torchinit.version": __version__,
        "torchinit.stream": STREAM,
        "torchinit.seed": str(noise.seed),
        "torchinit.fingerprint": prints.persistent.total,
        "torchinit.origin": json.dumps(SCHEMA.encode(replace(origin, files={}), Origin), sort_keys=True),
    }
    weights.write_state(arguments.output, model.state_dict(), made_of)
    return 0


def _of_model(plan: Plan, model: nn.Module) -> Plan:
    """The plan itself; PlanError if its sites are not those of the model, in name and shape."""
    planned, here = ({site.name: site.shape for site in each} for each in (plan.sites, sites(model)))
    problems = [f"the model has no {name}, which the plan has" for name in planned if name not in here]
    problems += [f"the plan has no {name}, which the model has" for name in here if name not in planned]
    shapes = [(name, planned[name], here[name]) for name in planned if name in here and planned[name] != here[name]]
    problems += [f"{name} is planned for shape {before}, but it has {now}" for name, before, now in shapes]
    if problems:
        raise PlanError("the plan is one of another model; nothing was written", problems)
    return plan


def runnable(plan: Plan) -> Plan:
    """A captured plan without the steps that no fill describes: those sites have been made when the model was built."""
    opaque = [step.site for step in plan if isinstance(step.fill, Opaque)]
    made = [Skipped(site, "stays as its own code has made it") for site in opaque]
    steps = tuple(step for step in plan if step.site not in opaque)
    return replace(plan, steps=steps, skipped=(*plan.skipped, *made))
