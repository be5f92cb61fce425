"""Options: what several commands take, and what they make of it. Imported without torch: it comes with a model."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchinit._tables import WIDTH, Table, Tabular
from torchinit._text import plain
from torchinit.cli.errors import UsageError
from torchinit.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from torchinit.cli.models import Device
    from torchinit.plans.plan import Plan
    from torchinit.rules.rule import Recipe


def add_model(parser: argparse.ArgumentParser, flag: str = "model") -> None:
    """The MODEL of a command, as an argument or as an option, and the arguments of its factory."""
    shown = {"metavar": "MODEL", "help": "package.module:factory, file.py:factory or transformers:config.json"}
    parser.add_argument(flag, **shown)  # type: ignore[arg-type]  # the keys are two of its text options
    text = "an argument of the factory; JSON or text"
    parser.add_argument("--arg", action="append", default=[], metavar="KEY=VALUE", help=text)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """The RECIPE of a command, and how severely it is taken."""
    text = "a file, or the name of a scheme; without one a transformers: model starts as its own code says"
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help=text)
    add_set(parser)
    text = "leave all other sites alone (repeatable); missing: what transformers has not marked as loaded"
    parser.add_argument("--only", action="append", metavar="GLOB", help=text)
    parser.add_argument("--complete", action="store_true", help="a parameter that no rule covers is an error")
    strict = parser.add_mutually_exclusive_group()
    text = "a rule in vain is an error (default), and a key of a checkpoint that nobody takes, too"
    strict.add_argument("--strict", action="store_true", default="model", help=text)
    strict.add_argument("--lenient", action="store_false", dest="strict", help="a rule in vain is only mentioned")


def add_set(parser: argparse.ArgumentParser) -> None:
    """The arguments of a recipe."""
    text = "an argument of the recipe, such as variant=jax; JSON or text"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)


def add_part(parser: argparse.ArgumentParser) -> None:
    """Which part of a nested checkpoint is meant."""
    parser.add_argument("--part", help="where in a nested checkpoint the weights are, if not where they usually are")


def add_json(parser: argparse.ArgumentParser) -> None:
    """The choice between a table and JSON."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def add_all(parser: argparse.ArgumentParser) -> None:
    """The choice between like rows as one and each for itself."""
    parser.add_argument("--all", action="store_true", help="a line for each row, not one for all that are alike")


def show(arguments: argparse.Namespace, data: object, shown: object) -> int:
    """Print the data as JSON if that is asked for, else the text or the table; return the exit code of success."""
    if arguments.json:
        print(plain(json.dumps(data, indent=2, ensure_ascii=False)))
    elif isinstance(shown, (Tabular, Table)):
        show_table(arguments, shown)
    else:
        print(plain(str(shown)))
    return 0


def show_table(arguments: argparse.Namespace, shown: Tabular | Table, title: str = "") -> None:
    """Print a table, below a title: as wide as the terminal and with its colours; plain where there is none."""
    full = getattr(arguments, "all", False)
    table = shown if isinstance(shown, Table) else shown._table(full=full)
    if title:
        table = replace(table, title=f"{title}\n{table.title}")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal or pipe whose letters are too few for × and …
    if not sys.stdout.isatty():
        print(table.text(None if full else WIDTH))
    elif importlib.util.find_spec("rich"):
        from rich.console import Console

        Console().print(table)
    else:
        print(table.text(shutil.get_terminal_size().columns))


@contextmanager
def progress_bar(text: str, total: int | None = None) -> Iterator[Callable[[int], None] | None]:
    """A bar on standard error, gone at the end, and the function that moves it; None where no terminal or no rich is.

    Without a ``total`` it shows that something is going on.
    """
    if not (sys.stderr.isatty() and importlib.util.find_spec("rich")):
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda amount: bar.advance(task, amount)


def model_of(arguments: argparse.Namespace, device: Device, seed: int | None = None) -> nn.Module:
    """The model that the command line names."""
    from torchinit.cli import models

    return models.build(arguments.model, models.parse_arguments(arguments.arg), device, seed)


def recipe_of(text: str, settings: Sequence[str] = ()) -> Recipe:
    """The recipe that the command line names; one that is not there is a mistake of usage, not of the recipe."""
    from torchinit.cli.models import parse_arguments
    from torchinit.recipes import load_recipe, schemes

    try:
        return load_recipe(text, parse_arguments(settings, "--set"))
    except ConfigError as error:
        if text in schemes() or Path(text).is_file():
            raise
        raise UsageError(str(error)) from error


def own_start(arguments: argparse.Namespace, model: nn.Module) -> Plan:
    """The plan of the start that a transformers model gives itself, whose draws then belong to names."""
    from torchinit.tracing.capture import capture

    def code(copied: Any) -> None:
        for module in copied.modules():
            vars(module).pop("_is_hf_initialized", None)  # by which transformers knows that it is done
        copied.initialize_weights()

    if not hasattr(model, "initialize_weights"):
        raise UsageError(
            f"give a RECIPE for {type(model).__name__}: only a transformers: model is asked for its own start"
        )
    if arguments.only or arguments.set:
        raise UsageError("--only and --set are for a recipe: give one")
    return capture(model, code)


def only_of(arguments: argparse.Namespace) -> str | list[str] | None:
    """The sites that a plan may write, as ``only=`` takes them."""
    only: list[str] | None = arguments.only
    return "missing" if only == ["missing"] else only


def check_page(path: str | None) -> None:
    """Raise for a page that could not be written at the end: without jinja2, or into no folder."""
    from torchinit.pages.page import jinja

    if path is not None:
        jinja()
        if not Path(path).expanduser().parent.is_dir():
            raise UsageError(f"--html: there is no folder {str(Path(path).parent)!r}")


def artifact_of(arguments: argparse.Namespace) -> str:
    """The file that a finding without a line points to: the model's, else the recipe's."""
    path = arguments.model.rpartition(":")[0]
    files = [path, arguments.model.removeprefix("transformers:"), arguments.recipe or ""]
    return next((text for text in files if text and Path(text).is_file()), "")
