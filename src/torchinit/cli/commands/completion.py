"""completion: print the code with which a shell completes commands, options and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from torchinit.errors import MissingExtraError


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that will read it")


def run(arguments: argparse.Namespace) -> int:
    """Print the code; it is made by shtab of the parser, so it knows what this version of torchinit takes."""
    try:
        import shtab
    except ImportError:
        raise MissingExtraError("shell completion", "cli") from None
    parser = arguments.full_parser()
    for action in _actions(parser):
        if action.nargs != 0 and not action.choices:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's own attribute
    print(shtab.complete(parser, arguments.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every argument of a parser, and of those below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
