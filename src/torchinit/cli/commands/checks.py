"""Checks: what is wrong with the start of a model, by its values, by a pass forward and back, by how it is built."""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchinit._text import did_you_mean
from torchinit.api import initialize, sites
from torchinit.cli import frame, models
from torchinit.cli.frame import UsageError, command, option, repeated
from torchinit.linting import SEVERITIES, ConstructionRecorder, known_checks, lint, meta_parity, select_checks
from torchinit.model.sandbox import poisoned_memory
from torchinit.noise import Keyed
from torchinit.plans import local_shards, make_plan, run
from torchinit.probing import PROBE_CHECKS, Probe, coord_check, probe

_FAIL_ON = option("--fail-on", choices=SEVERITIES, default="error", help="from which severity on the exit code is 1")

# --- check -----------------------------------------------------------------------------------------------------------

_AS_BUILT = "do not apply the recipe: compare the model's own init with it"


@command(
    "check MODEL",
    option("recipe", metavar="RECIPE", nargs="?", help="a file, or the name of a scheme: applied, and checked"),
    "--set",
    option("--as-built", action="store_true", help=_AS_BUILT),
    option("--weights", type=Path, metavar="FILE", help="a .safetensors file to load last"),
    option("--seed", type=int, default=0, help="of the model's own draws and of the recipe's (default: 0)"),
    option("--device", choices=("cpu", "meta"), default="cpu", help="meta checks what needs no values"),
    repeated("--select", metavar="CHECKS", help="run only these: TI301,TI4,meta"),
    repeated("--ignore", metavar="CHECKS", help="leave out these: TI301,TI4,meta"),
    _FAIL_ON,
    "--all --json|--sarif",
)
def run_check(arguments: Namespace) -> bool:
    """Print the findings; those count that are as severe as --fail-on, or worse."""
    select, ignore = (_codes(texts) for texts in (arguments.select, arguments.ignore))
    rules = frame.given_recipe(arguments)
    if arguments.as_built and rules is None:
        raise UsageError("--as-built compares with a recipe: give one")
    loaded = models.open_file(arguments.weights)[0] if arguments.weights else None
    construction = ConstructionRecorder()
    with poisoned_memory(), construction:
        model = models.model_of(arguments, arguments.device, arguments.seed)
    history, report = construction.of(model), None
    plan = None if rules is None else make_plan(sites(model), rules)
    is_applied = plan is not None and not arguments.as_built
    trace = None if is_applied else history  # what a recipe writes later is its own
    if plan is not None and is_applied and not plan.problems and arguments.device == "cpu":
        report = run(plan, local_shards(model), Keyed(arguments.seed))
    if loaded is not None:
        report = None  # it does not know of what is loaded now
        if arguments.device == "cpu":
            models.load(loaded, model)
    findings = lint(model, recipe=plan, trace=trace, report=report, loaded=loaded, select=select, ignore=ignore)
    if arguments.sarif:
        frame.print_sarif(arguments, findings, known_checks())
    else:
        frame.show(arguments, findings)
        if arguments.verbose and findings.skipped and not arguments.json:
            print(findings.not_run())
    return bool(findings.at_least(arguments.fail_on))


def _codes(texts: list[str]) -> list[str]:
    words = [word for text in texts for word in text.split(",") if word]
    with frame.usage_errors():
        select_checks(words, ())
    return words


# --- parity ----------------------------------------------------------------------------------------------------------

_INIT = "what starts it after to_empty(): a method such as init_weights, or a recipe (default: its own method)"


@command(
    "parity MODEL",
    option("--init", metavar="INIT", help=_INIT),
    "--set",
    option("--seed", type=int, default=0, help="of all draws (default: 0)"),
    "--all --json",
    on_error=2,
)
def run_parity(arguments: Namespace) -> bool:
    """Print the findings; errors among them count."""
    factory = partial(models.model_of, arguments, "cpu")
    settings = frame.parse_arguments(arguments.set, "--set") or None
    findings = meta_parity(factory, init=arguments.init, seed=arguments.seed, arguments=settings)
    frame.show(arguments, findings)
    return bool(findings.errors)


# --- probe -----------------------------------------------------------------------------------------------------------

_DTYPES = ("float16", "bfloat16", "float32", "float64")
_SIZES = (
    "build the model at each {}, and see which layers learn alike; NAME is the factory's argument (default: its first)"
)


@command(
    "probe MODEL",
    option("--recipe", metavar="RECIPE", help="a file, or the name of a scheme: measure the start that it gives"),
    "--set",
    option("--batch", metavar="BATCH", help="a file of torch.save, or file.py:function; default: made for the model"),
    option("--seed", type=int, default=0, help="of the model's own draws, the recipe's and the inputs' (default: 0)"),
    option("--optimizer", metavar="NAME", help="a class of torch.optim to try for --steps, such as AdamW"),
    option("--lr", type=float, help="its learning rate"),
    option("--steps", type=int, default=0, help="how many of its steps (default: 1 with --optimizer, else 0)"),
    option("--dtype", choices=_DTYPES, help="the dtype of the training, whose range is looked at"),
    option("--widths", metavar="[NAME=]64,128,...", help=_SIZES.format("width")),
    option("--depths", metavar="[NAME=]64,128,...", help=_SIZES.format("depth")),
    option("--seeds", type=int, default=3, help="of --widths and --depths, how many (default: 3)"),
    option("--limit", type=float, default=60.0, metavar="SECONDS", help="begin nothing new after this (default: 60)"),
    option("--html", metavar="FILE", help="write a page that needs no other file: the verdict, the figures, the plan"),
    option("--beside", metavar="RECIPE", help="on the page of --html: another start of the model, next to this one"),
    repeated("--beside-set", metavar="KEY=VALUE", help="an argument of that recipe"),
    _FAIL_ON,
    "--json|--sarif",
    on_error=2,
)
def run_probe(arguments: Namespace) -> bool:
    """Print the verdict; findings count that are as severe as --fail-on, or worse, or layers that go with the size."""
    recipe = frame.given_recipe(arguments)
    optimizer = _optimizer(arguments.optimizer) if arguments.optimizer else None
    frame.check_page(arguments.html)
    if arguments.beside and not arguments.html:
        raise UsageError("--beside is for the page of --html: give its file")
    if arguments.beside_set and not arguments.beside:
        raise UsageError("--beside-set goes with --beside")
    if arguments.steps < 0 or not arguments.limit >= 0:
        raise UsageError("--steps and --limit are numbers from 0 on")
    sizes = {kind: _sizes(kind, text) for kind in ("widths", "depths") if (text := getattr(arguments, kind))}
    # What both measurements take; the batch is read when the model has been found.
    taken: dict[str, Any] = {"optimizer": optimizer, "lr": arguments.lr, "limit": arguments.limit}
    if sizes:
        return _over_sizes(arguments, sizes, {**taken, "recipe": recipe})
    model = models.model_of(arguments, "cpu", arguments.seed)
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    taken |= {"seed": arguments.seed, "steps": arguments.steps, "dtype": dtype, "batch": _batch(arguments.batch)}
    with frame.progress_bar("measuring"):
        result = probe(model, recipe=recipe, **taken)
    if arguments.html:
        _save_page(arguments, model, result, partial(probe, model, **taken))
    if arguments.sarif:
        frame.print_sarif(arguments, result.findings, PROBE_CHECKS)
    else:
        frame.show(arguments, result)
    return bool(result.findings.at_least(arguments.fail_on))


def _save_page(arguments: Namespace, model: nn.Module, result: Probe, run_once: Callable[..., Probe]) -> None:
    """Write the page of --html, with the start of --beside, and what lint finds; the model is started for it."""
    other = frame.recipe_of(arguments.beside, arguments.beside_set) if arguments.beside else None
    beside = run_once(recipe=other) if other is not None else None
    if (recipe := frame.given_recipe(arguments)) is not None:
        initialize(model, recipe, seed=arguments.seed)
    named = _named(beside, arguments.beside) if beside else None
    _named(result, arguments.recipe).save_html(arguments.html, beside=named, lint=lint(model))


def _named(result: Probe, recipe: str) -> Probe:
    """The result with the recipe by its name, of which a probe sees the rules alone."""
    return replace(result, start=result.start and replace(result.start, recipe=recipe or ""))


def _over_sizes(arguments: Namespace, sizes: dict[str, tuple[str, tuple[int, ...]]], taken: dict[str, Any]) -> bool:
    """Print the coordinate check; a finding: a layer's change goes with the size."""
    factory, fixed = models.find(arguments.model), frame.parse_arguments(arguments.arg)
    name = next(iter(sizes.values()))[0]

    def make(size: int) -> Any:
        if advance:
            advance(1)
        return factory(**fixed, **{name: size}) if name else factory(size, **fixed)

    numbers: dict[str, Any] = {kind: several for kind, (_, several) in sizes.items()}
    total = arguments.seeds * len(next(iter(numbers.values())))
    with frame.usage_errors(), frame.progress_bar("training", total) as advance:
        taken |= {"batch": _batch(arguments.batch), "seeds": arguments.seeds, "steps": arguments.steps or 5}
        check = coord_check(make, **numbers, **taken)
    if arguments.html:
        check.save_html(arguments.html)
    frame.show(arguments, check)
    return not check.flat


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


def _batch(text: str | None) -> Any:
    """What a file holds, read without running code, or the function that makes a batch; None without either."""
    if text is None or (":" in text and not Path(text).is_file()):
        return text and models.find(text)
    if not Path(text).is_file():
        raise UsageError(f"--batch: there is no file {text!r}; it is a file of torch.save, or file.py:function")
    try:
        return torch.load(text, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise UsageError(f"--batch: {text} cannot be read: {error}") from None
