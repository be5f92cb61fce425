"""`torchinit apply`: a model built, initialized, written to a file, and the report of it."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from torchinit import Plan, fingerprint
from torchinit.api import draft
from torchinit.cli import options, weights
from torchinit.cli.errors import UsageError
from torchinit.noise import STREAM, Keyed
from torchinit.plans import Step, local_shards
from torchinit.plans import run as carry_out
from torchinit.plans.run import Progress

if TYPE_CHECKING:
    from torchinit.cli.options import Commands

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}
"""What --dtype takes."""


def add(commands: Commands) -> None:
    """Describes the command to the parser."""
    parser = commands.add_parser("apply", help="initialize a model, write it to a file, print the report")
    options.add_model(parser)
    options.add_recipe(parser)
    options.add_json(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .safetensors to write")
    parser.add_argument("--force", action="store_true", help="overwrite the output if it exists")
    parser.add_argument("--seed", type=int, default=0, help="where the values come from (default: 0)")
    parser.add_argument("--dtype", choices=DTYPES, help="convert the model first (default: as its factory makes it)")
    parser.add_argument("--no-stats", action="store_false", dest="stats", help="write without measuring")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Writes the file and prints the report; where the values are not as planned there is no file."""
    weights.check_output(arguments.output, force=arguments.force)
    noise = _noise(arguments.seed)
    rules = options.recipe_of(arguments.recipe)
    model = options.model_of(arguments, "cpu", arguments.seed)
    if arguments.dtype:
        model.to(DTYPES[arguments.dtype])
    plan = draft(model, rules).check(complete=arguments.complete, strict=arguments.strict)
    with _progress(plan) as progress:
        report = carry_out(plan, local_shards(model), noise, stats=arguments.stats, progress=progress)
    report = replace(report, fingerprint=fingerprint(model))
    print(report.to_json() if arguments.json else report.table())
    report.assert_ok()
    origin = {"torchinit.version": options.version(), "torchinit.stream": STREAM, "torchinit.seed": str(noise.seed)}
    weights.write_model(arguments.output, model, origin)
    return 0


def _noise(seed: int) -> Keyed:
    try:
        return Keyed(seed)
    except ValueError as error:
        raise UsageError(f"--seed: {error}") from None


def _progress(plan: Plan) -> AbstractContextManager[Progress | None]:
    """A bar on standard error; nothing where there is no terminal or no rich."""
    if sys.stderr.isatty() and importlib.util.find_spec("rich"):
        return _bar(plan)
    return nullcontext()


@contextmanager
def _bar(plan: Plan) -> Iterator[Progress]:
    """The bar, counted in elements; it is gone when the last of them is written."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("writing", total=sum(step.site.numel for step in plan))

        def advance(step: Step) -> None:
            bar.advance(task, step.site.numel)

        yield advance
