"""Frame: what makes a function a command, the arguments that several take, and how all show what they found.

Imported without torch: it comes with a model.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from torchinit._tables import WIDTH, Table, Tabular
from torchinit._text import plain
from torchinit.errors import ConfigError, TorchinitError

if TYPE_CHECKING:
    from torchinit.rules.rule import Recipe


class UsageError(TorchinitError):
    """A command that cannot be carried out as it was written; the exit code is 2."""


class ModelError(UsageError):
    """A MODEL that cannot be found or built."""


@contextmanager
def usage_errors(option: str = "") -> Iterator[None]:
    """Take a ValueError for a mistake of the command line, in this option."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{option}: {error}" if option else str(error)) from None


def told(error: BaseException) -> str:
    """The text of an error, and the notes that it and the errors behind it were given, a line each."""
    behind: BaseException | None = error
    lines = [str(error)]
    while behind is not None:
        lines += [note for note in getattr(behind, "__notes__", ()) if note not in lines]
        behind = behind.__cause__ or behind.__context__
    return plain("\n  ".join(filter(None, lines)))


# --- commands --------------------------------------------------------------------------------------------------------

Run: TypeAlias = Callable[[Namespace], "bool | None"]
Option: TypeAlias = Callable[[Any], object]
"""What describes an argument to a parser, or to a group of its arguments."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command: what it does, returning whether there are findings, what it takes, and the exit code of an error."""

    run: Run
    takes: Sequence[Option]
    on_error: int


REGISTERED: Final[dict[str, Command]] = {}
"""The commands by name, of the files that were imported."""


def command(usage: str, *takes: Option | str, on_error: int = 1) -> Callable[[Run], Run]:
    """Make a function a command: it takes parsed arguments, prints, and returns whether there are findings.

    ``usage`` begins with its name. Its arguments follow, there and in ``takes``, in the order of its help: those that
    several commands share by their names.
    """
    name, *first = usage.split()
    options = [each for taken in (*first, *takes) for each in _options(taken)]

    def register(run: Run) -> Run:
        REGISTERED[name] = Command(run, options, on_error)
        return run

    return register


def option(*names: str, **described: Any) -> Option:
    """An argument, as ``add_argument`` describes it."""
    return lambda parser: parser.add_argument(*names, **described)


def repeated(*names: str, **described: Any) -> Option:
    """An option whose values are a list."""
    return option(*names, action="append", default=[], **described)


def one_of(*options: Option, required: bool = False) -> Option:
    """Options of which no two go together."""

    def add(parser: argparse.ArgumentParser) -> None:
        group = parser.add_mutually_exclusive_group(required=required)
        for each in options:
            each(group)

    return add


_MODEL = {"metavar": "MODEL", "help": "package.module:factory, file.py:factory or transformers:config.json"}
_ARG = repeated("--arg", metavar="KEY=VALUE", help="an argument of the factory; JSON or text")
_RECIPE = "a file, or the name of a scheme; without one a transformers: model starts as its own code says"
_SET = repeated("--set", metavar="KEY=VALUE", help="an argument of the recipe, such as variant=jax; JSON or text")
_DEVICE = "where the model is built; cpu for code that needs it"
_ONLY = "leave all other sites alone (repeatable); missing: what transformers has not marked as loaded"
_STRICT = "a rule in vain is an error (default), and a key of a checkpoint that nobody takes, too"
JSON = option("--json", action="store_true", help="print JSON instead of a table")
_SARIF = option("--sarif", action="store_true", help="print SARIF 2.1.0, for code review")

_SHARED: Final[Mapping[str, tuple[Option, ...]]] = {
    "MODEL": (option("model", **_MODEL), _ARG),
    "--model": (option("--model", **_MODEL), _ARG),
    "--into": (option("--into", dest="model", **_MODEL), _ARG),
    "RECIPE": (
        option("recipe", metavar="RECIPE", nargs="?", help=_RECIPE),
        _SET,
        option("--only", action="append", metavar="GLOB", help=_ONLY),
        option("--complete", action="store_true", help="a parameter that no rule covers is an error"),
        one_of(
            option("--strict", action="store_true", default="model", help=_STRICT),
            option("--lenient", action="store_false", dest="strict", help="a rule in vain is only mentioned"),
        ),
    ),
    "--set": (_SET,),
    "--device": (option("--device", choices=("meta", "cpu"), default="meta", help=_DEVICE),),
    "--part": (option("--part", help="where in a nested checkpoint the weights are, if not where they usually are"),),
    "--prefix": (option("--prefix", help="take the keys that begin with this, without it"),),
    "--rename": (repeated("--rename", nargs=2, metavar=("PATTERN", "NEW"), help="as re.sub; repeatable"),),
    "--output": (option("-o", "--output", type=Path, required=True, metavar="FILE", help="the .safetensors to write"),),
    "--force": (option("--force", action="store_true", help="overwrite the output if it exists"),),
    "--all": (option("--all", action="store_true", help="a line for each row, not one for all that are alike"),),
    "--json": (JSON,),
    "--json|--sarif": (one_of(JSON, _SARIF),),
}


def _options(taken: Option | str) -> list[Option]:
    """The options that some commands share, by their names, or one of a command's own."""
    return [each for name in taken.split() for each in _SHARED[name]] if isinstance(taken, str) else [taken]


# --- what is shown ---------------------------------------------------------------------------------------------------


def show(arguments: Namespace, shown: Any, data: object = None, title: str = "") -> None:
    """Print a text, or the table of an object below a title; as JSON, if that is asked for, the data or the object."""
    if arguments.json:
        text = shown.to_json() if data is None else json.dumps(data, indent=2, ensure_ascii=False)
        print(plain(text))
    elif isinstance(shown, (Tabular, Table)):
        _show_table(shown, title, full=getattr(arguments, "all", False))
    else:
        print(plain(shown if isinstance(shown, str) else shown.table()))


def _show_table(shown: Tabular | Table, title: str, *, full: bool) -> None:
    """Print a table as wide as the terminal and with its colours; plain where there is none."""
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


def print_sarif(arguments: Namespace, findings: Any, checks: Mapping[str, Any]) -> None:
    """Print findings as SARIF; one without a line points to the model's file, else to the recipe's."""
    path = arguments.model.rpartition(":")[0]
    files = [path, arguments.model.removeprefix("transformers:"), arguments.recipe or ""]
    artifact = next((text for text in files if text and Path(text).is_file()), "")
    print(findings.to_sarif(checks=checks, artifact=artifact))


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


# --- what arguments stand for ----------------------------------------------------------------------------------------


def parse_arguments(texts: Sequence[str], name: str = "--arg") -> dict[str, Any]:
    """Keyword arguments from ``key=value``; a value that is not JSON is text.

    >>> parse_arguments(["depth=2", "bias=false", "act=gelu"])
    {'depth': 2, 'bias': False, 'act': 'gelu'}
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (equals and key.isidentifier()):
            raise UsageError(f"{name} takes key=value, but got {text!r}")
        if key in arguments:
            raise UsageError(f"{name} {key} is given twice")
        try:
            arguments[key] = json.loads(value)
        except (ValueError, RecursionError):
            arguments[key] = value
    return arguments


def recipe_of(text: str, settings: Sequence[str] = ()) -> Recipe:
    """The recipe that the command line names; one that is not there is a mistake of usage, not of the recipe."""
    from torchinit.recipes import load_recipe, schemes

    try:
        return load_recipe(text, parse_arguments(settings, "--set"))
    except ConfigError as error:
        if text in schemes() or Path(text).is_file():
            raise
        raise UsageError(str(error)) from error


def given_recipe(arguments: Namespace) -> Recipe | None:
    """The recipe of a command that can do without one; UsageError for arguments of none."""
    if arguments.set and not arguments.recipe:
        raise UsageError("--set is for a recipe: give one")
    return recipe_of(arguments.recipe, arguments.set) if arguments.recipe else None


def check_page(path: str | None) -> None:
    """Raise for a page that could not be written at the end: without jinja2, or into no folder."""
    from torchinit.pages.page import jinja

    if path is not None:
        jinja()
        if not Path(path).expanduser().parent.is_dir():
            raise UsageError(f"--html: there is no folder {str(Path(path).parent)!r}")


def check_free(path: Path, *, force: bool) -> None:
    """Refuse to overwrite a file."""
    if path.exists() and not force:
        raise UsageError(f"{str(path)!r} exists already; --force overwrites it")
