"""Entry: the parser of all commands, and what becomes of their errors and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence

from torchinit.cli.commands import (
    apply,
    cache,
    check,
    check_ckpt,
    convert,
    diff,
    explain,
    fetch,
    fingerprint,
    inspect,
    plan,
)  # fmt: skip
from torchinit.cli.commands import list as listing
from torchinit.cli.errors import UsageError
from torchinit.cli.options import version
from torchinit.errors import MissingExtraError, TorchinitError

EPILOG = """\
MODEL is package.module:factory, path/to/file.py:factory, or transformers:path/to/config.json.
RECIPE is a file (.toml, .json, .yaml) or the name of a scheme that comes with torchinit.
Exit code: 0 all is well, 1 there are findings, 2 the command cannot be carried out as it was written.
"""


_COMMANDS = (
    plan, apply, check, diff, fingerprint, listing, explain, inspect, check_ckpt, convert, fetch, cache,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Carries out one command, `torchinit plan ...`, and returns its exit code.

    Errors are one block of text on standard error; TORCHINIT_DEBUG=1 lets them pass with their traceback.

    >>> main(["explain", "Ones"])
    Ones: Every element is 1.
    ...
    0
    """
    arguments = _parser().parse_args(argv)
    with _logging(arguments.verbose):
        try:
            code: int = arguments.run(arguments)
        except BrokenPipeError:  # the reader of our output had enough of it, as `| head` does
            _discard_output()
            return 0
        except (TorchinitError, OSError) as error:
            if os.environ.get("TORCHINIT_DEBUG"):
                raise
            print(f"torchinit {arguments.command}: {error}", file=sys.stderr)
            return 2 if isinstance(error, (UsageError, MissingExtraError, OSError)) else int(arguments.on_error)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchinit",
        description="Plans, writes, checks, compares and explains the initial weights of PyTorch models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version())
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens, on standard error")
    parser.set_defaults(on_error=1)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return parser


@contextlib.contextmanager
def _logging(verbose: bool) -> Iterator[None]:
    """The library's log on standard error, for as long as the command runs."""
    logger, handler = logging.getLogger("torchinit"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _discard_output() -> None:
    # Python flushes standard output once more as it ends, and would complain there.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
