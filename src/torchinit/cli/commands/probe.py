"""probe: run a model once forward and back, and judge its start."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchinit._text import did_you_mean
from torchinit.api import initialize
from torchinit.cli import models, options
from torchinit.cli.errors import UsageError
from torchinit.linting import SEVERITIES, lint
from torchinit.probing import PROBE_CHECKS, Probe, coord_check, probe

_DTYPES = ("float16", "bfloat16", "float32", "float64")


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.set_defaults(on_error=2)
    options.add_model(parser)
    option = parser.add_argument
    option("--recipe", metavar="RECIPE", help="a file, or the name of a scheme: measure the start that it gives")
    option("--batch", metavar="BATCH", help="a file of torch.save, or file.py:function; default: made for the model")
    option("--seed", type=int, default=0, help="of the model's own draws, the recipe's and the inputs' (default: 0)")
    option("--optimizer", metavar="NAME", help="a class of torch.optim to try for --steps, such as AdamW")
    option("--lr", type=float, help="its learning rate")
    option("--steps", type=int, default=0, help="how many of its steps (default: 1 with --optimizer, else 0)")
    option("--dtype", choices=_DTYPES, help="the dtype of the training, whose range is looked at")
    for kind in ("width", "depth"):
        text = f"build the model at each {kind}, and see which layers learn alike; NAME is the factory's argument"
        option(f"--{kind}s", metavar="[NAME=]64,128,...", help=f"{text} (default: its first)")
    option("--seeds", type=int, default=3, help="of --widths and --depths, how many (default: 3)")
    option("--limit", type=float, default=60.0, metavar="SECONDS", help="begin nothing new after this (default: 60)")
    option("--html", metavar="FILE", help="write a page that needs no other file: the verdict, the figures, the plan")
    option("--beside", metavar="RECIPE", help="on the page of --html: another start of the model, next to this one")
    option("--fail-on", choices=SEVERITIES, default="error", help="from which severity on the exit code is 1")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument("--sarif", action="store_true", help="print SARIF 2.1.0, for code review")


def run(arguments: argparse.Namespace) -> int:
    """Print the verdict; 1 if a finding is as severe as --fail-on, or worse."""
    recipe = options.recipe_of(arguments.recipe) if arguments.recipe else None
    optimizer = _optimizer(arguments.optimizer) if arguments.optimizer else None
    options.check_page(arguments.html)
    if arguments.beside and not arguments.html:
        raise UsageError("--beside is for the page of --html: give its file")
    if arguments.steps < 0 or not arguments.limit >= 0:
        raise UsageError("--steps and --limit are numbers from 0 on")
    if arguments.widths or arguments.depths:
        return _over_sizes(arguments, recipe, optimizer)
    model = options.model_of(arguments, "cpu", arguments.seed)
    run_once = partial(
        probe, model, _batch(arguments.batch) if arguments.batch else None, seed=arguments.seed,
        steps=arguments.steps, optimizer=optimizer, lr=arguments.lr, limit=arguments.limit,
        dtype=getattr(torch, arguments.dtype) if arguments.dtype else None,
    )  # fmt: skip
    with options.progress_bar("measuring"):
        result = run_once(recipe=recipe)
    if arguments.html:
        _save_page(arguments, model, result, run_once)
    if arguments.sarif:
        print(result.findings.to_sarif(checks=PROBE_CHECKS, artifact=options.artifact_of(arguments)))
    else:
        print(result.to_json() if arguments.json else result.table())
    return 1 if result.findings.at_least(arguments.fail_on) else 0


def _save_page(arguments: argparse.Namespace, model: nn.Module, result: Probe, run_once: Callable[..., Probe]) -> None:
    """Write the page of --html, with the start of --beside, and what lint finds; the model is started for it."""
    beside = run_once(recipe=options.recipe_of(arguments.beside)) if arguments.beside else None
    if arguments.recipe:
        initialize(model, options.recipe_of(arguments.recipe), seed=arguments.seed)
    named = _named(beside, arguments.beside) if beside else None
    _named(result, arguments.recipe).save_html(arguments.html, beside=named, lint=lint(model))


def _named(result: Probe, recipe: str) -> Probe:
    """The result with the recipe by its name, of which a probe sees the rules alone."""
    return replace(result, start=result.start and replace(result.start, recipe=recipe or ""))


def _over_sizes(arguments: argparse.Namespace, recipe: Any, optimizer: Any) -> int:
    """Print the coordinate check; 1 if a layer's change goes with the size."""
    factory = models.find(arguments.model)
    fixed = models.parse_arguments(arguments.arg)
    chosen: dict[str, Any] = {
        kind: _sizes(kind, text) for kind in ("widths", "depths") if (text := getattr(arguments, kind))
    }
    none = ("", None)
    (_, widths), (_, depths) = chosen.get("widths", none), chosen.get("depths", none)
    names = [name for name, _ in chosen.values()]

    def make(size: int) -> Any:
        if advance:
            advance(1)
        return factory(**fixed, **{names[0]: size}) if names[0] else factory(size, **fixed)

    number = arguments.seeds * len(widths or depths)
    try:
        with options.progress_bar("training", number) as advance:
            check = coord_check(
                make, widths=widths, depths=depths, steps=arguments.steps or 5,
                seeds=arguments.seeds, batch=_batch(arguments.batch) if arguments.batch else None, optimizer=optimizer,
                lr=arguments.lr, recipe=recipe, limit=arguments.limit,
            )  # fmt: skip
    except ValueError as error:
        raise UsageError(str(error)) from None
    if arguments.html:
        check.save_html(arguments.html)
    print(check.to_json() if arguments.json else check.table())
    return 0 if check.flat else 1


def _sizes(kind: str, text: str) -> tuple[str, tuple[int, ...]]:
    """The name of a factory's argument, perhaps none, and the sizes that it is given."""
    name, _, numbers = text.rpartition("=")
    try:
        return name, tuple(int(number) for number in numbers.split(","))
    except ValueError:
        raise UsageError(f"--{kind} takes whole numbers, as in 64,128 or n_embd=64,128, but got {text!r}") from None


def _optimizer(name: str) -> Any:
    known = [key for key, value in vars(torch.optim).items() if isinstance(value, type) and key != "Optimizer"]
    if name not in known:
        raise UsageError(f"--optimizer: torch.optim has no {name!r}{did_you_mean(name, known)}")
    return getattr(torch.optim, name)


def _batch(text: str) -> Any:
    """What a file holds, read without running code, or the function that makes a batch."""
    if ":" in text and not Path(text).is_file():
        return models.find(text)
    if not Path(text).is_file():
        raise UsageError(f"--batch: there is no file {text!r}; it is a file of torch.save, or file.py:function")
    try:
        return torch.load(text, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise UsageError(f"--batch: {text} cannot be read: {error}") from None
