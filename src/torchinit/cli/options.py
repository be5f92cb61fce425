"""Options: what several commands take, and what they make of it. Imported without torch: it comes with a model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from torchinit._text import plain
from torchinit.cli.errors import UsageError
from torchinit.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from torchinit.cli.models import Device
    from torchinit.rules.rule import Recipe


def add_model(parser: argparse.ArgumentParser, flag: str = "model") -> None:
    """The MODEL of a command, as an argument or as an option, and the arguments of its factory."""
    shown = {"metavar": "MODEL", "help": "package.module:factory, file.py:factory or transformers:config.json"}
    parser.add_argument(flag, **shown)  # type: ignore[arg-type]  # the keys are two of its text options
    text = "an argument of the factory; JSON or text"
    parser.add_argument("--arg", action="append", default=[], metavar="KEY=VALUE", help=text)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """The RECIPE of a command, and how severely it is taken."""
    parser.add_argument("recipe", metavar="RECIPE", help="a file, or the name of a scheme")
    parser.add_argument("--complete", action="store_true", help="a parameter that no rule covers is an error")
    strict = parser.add_mutually_exclusive_group()
    text = "a rule in vain is an error (default), and a key of a checkpoint that nobody takes, too"
    strict.add_argument("--strict", action="store_true", default="model", help=text)
    strict.add_argument("--lenient", action="store_false", dest="strict", help="a rule in vain is only mentioned")


def add_part(parser: argparse.ArgumentParser) -> None:
    """Which part of a nested checkpoint is meant."""
    parser.add_argument("--part", help="where in a nested checkpoint the weights are, if not where they usually are")


def add_json(parser: argparse.ArgumentParser) -> None:
    """The choice between a table and JSON."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def show(arguments: argparse.Namespace, data: object, text: object) -> int:
    """Print the data as JSON if that is asked for, else the text; return the exit code of success."""
    print(plain(json.dumps(data, indent=2, ensure_ascii=False) if arguments.json else str(text)))
    return 0


def model_of(arguments: argparse.Namespace, device: Device, seed: int | None = None) -> nn.Module:
    """The model that the command line names."""
    from torchinit.cli import models

    return models.build(arguments.model, models.parse_arguments(arguments.arg), device, seed)


def recipe_of(text: str) -> Recipe:
    """The recipe that the command line names; one that is not there is a mistake of usage, not of the recipe."""
    from torchinit.recipes import load_recipe, schemes

    try:
        return load_recipe(text)
    except ConfigError as error:
        if text in schemes() or Path(text).is_file():
            raise
        raise UsageError(str(error)) from error


def artifact_of(arguments: argparse.Namespace) -> str:
    """The file that a finding without a line points to: the model's, else the recipe's."""
    path = arguments.model.rpartition(":")[0]
    files = [path, arguments.model.removeprefix("transformers:"), arguments.recipe or ""]
    return next((text for text in files if text and Path(text).is_file()), "")
