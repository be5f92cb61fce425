"""The command line, `torchinit`: the parser of all commands, and what becomes of their errors and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from importlib import import_module

from torchinit._text import did_you_mean
from torchinit._version import __version__
from torchinit.cli.commands import COMMANDS
from torchinit.cli.frame import REGISTERED, UsageError, told
from torchinit.errors import MissingExtraError, TorchinitError

__all__ = ["main"]

EPILOG = """\
MODEL is package.module:factory, path/to/file.py:factory, or transformers:path/to/config.json.
RECIPE is a file (.toml, .json, .yaml) or the name of a scheme that comes with torchinit.
Exit code: 0 all is well, 1 there are findings, 2 the command cannot be carried out as it was written.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command, `torchinit plan ...`, and return its exit code; 130 if it is interrupted (Ctrl-C).

    Errors are one block of text on standard error; TORCHINIT_DEBUG=1 lets them pass with their traceback.

    >>> main(["explain", "Ones"])
    Ones: Every element is 1.
    ...
    0
    """
    if argv is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    try:
        return _carry_out(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt as stop:
        if text := told(stop):
            print(text, file=sys.stderr, flush=True)
        if argv is None:  # a program of its own, which has nothing left to do: Python would take torch apart first
            os._exit(130)
        return 130


def _interrupted(*_: object) -> None:
    # The exception lets files that are not whole be removed. Where it falls into a callback, as while torch is
    # imported, Python drops it, so the process ends all the same a second later.
    end = threading.Timer(1.0, os._exit, (130,))
    end.daemon = True
    end.start()
    raise KeyboardInterrupt


def _carry_out(words: Sequence[str]) -> int:
    called = next((word for word in words if not word.startswith("-")), "")
    parser = _parser([called])
    if called and called not in COMMANDS:
        parser.error(f"there is no command {called!r}{did_you_mean(called, COMMANDS)}; torchinit --help names them")
    arguments = parser.parse_args(words)
    if not called:
        parser.print_help()
        return 0
    with _logging(arguments.verbose):
        try:
            return int(bool(REGISTERED[called].run(arguments)))
        except BrokenPipeError:  # the reader of our output had enough of it, as `| head` does
            _discard_output()
            return 0
        except (TorchinitError, OSError) as error:
            if os.environ.get("TORCHINIT_DEBUG"):
                raise
            print(f"torchinit {called}: {told(error)}", file=sys.stderr)
            is_usage = isinstance(error, (UsageError, MissingExtraError, OSError))
            return 2 if is_usage else REGISTERED[called].on_error


def _parser(called: Collection[str]) -> argparse.ArgumentParser:
    """The parser that knows the options of the commands that are called, and the names of the others."""
    parser = argparse.ArgumentParser(
        prog="torchinit",
        description="Plans, writes, checks, compares and explains the initial weights of PyTorch models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens, on standard error")
    parser.set_defaults(full_parser=partial(_parser, COMMANDS))
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (file, text) in sorted(COMMANDS.items()):
        command = commands.add_parser(name, help=text)
        if name in called:
            import_module(f"torchinit.cli.commands.{file}")
            # The parser's own option, in either place: without a default here, which would take back the other.
            hidden = argparse.SUPPRESS
            command.add_argument("-v", "--verbose", action="store_true", default=hidden, help=hidden)
            for add in REGISTERED[name].takes:
                add(command)
    return parser


@contextlib.contextmanager
def _logging(verbose: bool) -> Iterator[None]:
    """The library's log on standard error, for as long as the command runs."""
    # The library leaves logging to its user, and here the command line is that.
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
