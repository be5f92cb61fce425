"""The log of an initialization: a line a parameter, in MMEngine's format, and what a reader must know.

It goes to mmengine's own logger where one is in use, else to the logger ``torchinit.mmengine``. As long as nobody has
configured logging, it is shown on standard output, as MMEngine shows it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from functools import cache
from typing import Any, Final, TextIO

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torchinit._text import did_you_mean

LOGGER: Final = logging.getLogger("torchinit.mmengine")
PACKAGE: Final = logging.getLogger("torchinit")
_FORMAT: Final = logging.Formatter("%(asctime)s - mmengine - %(levelname)s - %(message)s", "%m/%d %H:%M:%S")
_LEVELS: Final = {"off": logging.CRITICAL + 1, "warning": logging.WARNING, "info": logging.INFO}
"""The values of the environment variable TORCHINIT_LOG."""
_PLACES: Final[dict[object, logging.Handler]] = {}
"""Where :func:`show_log` writes: standard output (None), files by their path, streams."""


def show_log(file: str | os.PathLike[str] | TextIO | None = None) -> ExitStack:
    """Show the log of ``init_weights()`` on standard output, or keep it in a file or stream, whatever a program logs.

    How each parameter was set, and what an ``init_cfg`` does in vain, goes there besides where logging sends it, and
    whatever levels say; so does what ``initialize`` warns of, if warnings are not off; a file is appended to. It lasts
    until the result is closed, or left as a context manager; a second call for the same place does nothing. Raises
    OSError for a file that cannot be opened, TypeError for what is none of these.

    >>> import io
    >>> from torchinit import show_log
    >>> from torchinit.mmengine import Sequential
    >>> text = io.StringIO()
    >>> with show_log(text):
    ...     report = Sequential(nn.Linear(2, 2), init_cfg=dict(type="Constant", val=1, layer="Linear")).init_weights()
    >>> text.getvalue().splitlines()[1:3]
    ['0.weight - torch.Size([2, 2]): ', 'ConstantInit: val=1, bias=0 ']
    """
    stack = ExitStack()
    place = os.path.realpath(file) if isinstance(file, (str, os.PathLike)) else file
    if place in _PLACES:
        return stack
    handler: logging.Handler
    if isinstance(place, str):
        handler = logging.FileHandler(place, encoding="utf-8")
    elif place is None:
        handler = _StandardOutput()
    elif hasattr(place, "write"):
        handler = logging.StreamHandler(place)
    else:
        raise TypeError(f"the log goes to a path or a text stream, but got {file!r}")
    handler.setFormatter(_FORMAT)
    _PLACES[place] = handler  # and on no logger, whose levels and other handlers belong to the program
    PACKAGE.addFilter(_relay)
    stack.callback(handler.close)
    stack.callback(_PLACES.pop, place)
    return stack


class _StandardOutput(logging.Handler):
    """Standard output as it is at the time of a record: users and tests redirect it."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stdout.write(f"{self.format(record)}\n")


def _keep(level: int, text: str) -> None:
    """Write to the places of :func:`show_log`."""
    if _PLACES and level >= (logging.INFO if _is_first_rank() else logging.ERROR):
        record = LOGGER.makeRecord(LOGGER.name, level, __file__, 0, text, (), None)
        for handler in _PLACES.values():
            handler.handle(record)


def _relay(record: logging.LogRecord) -> bool:
    """Keep what the rest of the package logs; a filter, since a handler would count as a configuration."""
    _keep(record.levelno, record.getMessage())
    return None not in _PLACES or PACKAGE.hasHandlers()  # else Python's last resort shows it a second time


def relay_to_mmengine(record: logging.LogRecord) -> bool:
    """Log with mmengine's logger what the rest of the package logs; a filter for the package's own."""
    theirs = [logger for logger in _loggers() if logger is not LOGGER]
    for logger in theirs:
        logger.log(record.levelno, record.getMessage())
    return not theirs or PACKAGE.hasHandlers()  # else Python's last resort shows it a second time


def log(level: int, text: str, *args: object) -> None:
    """Log a message: with mmengine's logger, or with torchinit's."""
    text = text % args if args else text
    _keep(level, text)
    for logger in _loggers():
        _emit(logger, level, text)


def log_to(logger: Any, level: int, text: str) -> None:
    """Log a message as MMEngine's argument ``logger`` says: with that one, not at all if ``"silent"``, else as ever."""
    if isinstance(logger, logging.Logger):
        logger.log(level, "%s", text)
    elif logger != "silent":
        log(level, "%s", text)


def dump(lines: Iterable[tuple[str, nn.Parameter, str]]) -> None:
    """Log how each parameter, given with its name, was set, on the first rank alone.

    The text goes straight into the files of a logger's file handlers, or, where it has none, to the
    logger at INFO, a record a parameter.
    """
    if not _is_first_rank():
        return
    texts = [
        f"\n{name} - {'no shape yet' if is_lazy(parameter) else parameter.shape}: \n{text} \n"
        for name, parameter, text in lines
    ]
    for text in texts:
        _keep(logging.INFO, f"{text} ")
    for logger in _loggers():
        files = [handler for handler in _handlers(logger) if isinstance(handler, logging.FileHandler)]
        for handler in files:
            _write(handler, texts)
        for text in () if files else texts:
            _emit(logger, logging.INFO, f"{text} ")


def _loggers() -> list[logging.Logger]:
    """Mmengine's logger where one is in use, so that nobody reads a text twice; ours as well if it has handlers."""
    theirs = getattr(sys.modules.get("mmengine.logging"), "MMLogger", None)
    if theirs is None or not theirs._instance_dict:
        return [LOGGER]
    return [theirs.get_current_instance(), *([LOGGER] if _handlers(LOGGER) else ())]


def _handlers(logger: logging.Logger) -> list[logging.Handler]:
    """The handlers that are meant for the log of a logger: its own, and those of the package."""
    named = [*logger.handlers, *(PACKAGE.handlers if logger is LOGGER else ())]
    return [handler for handler in named if not isinstance(handler, logging.NullHandler)]


# Users of MMEngine expect to see the log, other libraries' users to see none. Configured is looked at with each record,
# since it may come later, and so no handler of ours hangs on the logger: that was tried, and others took it for a
# configuration (`logging.basicConfig` then does nothing). What can fail: a program that configures logging between two
# records sees the first on standard output and the second where it wants it.


def _emit(logger: logging.Logger, level: int, text: str) -> None:
    # The text has no arguments left: mmengine drops warnings by the text before those are put in.
    if logger is not LOGGER or _handlers(logging.root) or _handlers(LOGGER):
        logger.log(level, text)
    elif None not in _PLACES and level >= _threshold() and not LOGGER.disabled:
        _show(level, text)


def _show(level: int, text: str) -> None:
    record = LOGGER.makeRecord(LOGGER.name, level, __file__, 0, text, (), None)
    if LOGGER.filter(record):
        handler = _StandardOutput()
        handler.setFormatter(_FORMAT)
        handler.handle(record)


def _threshold() -> int:
    """The level from which on the log is shown, where nobody has configured logging."""
    variable = os.environ.get("TORCHINIT_LOG", "")
    level = _level_of(variable) if variable else LOGGER.level or PACKAGE.level or logging.INFO
    return max(level, logging.root.manager.disable + 1, 0 if _is_first_rank() else logging.ERROR)


@cache
def _level_of(variable: str) -> int:
    """The level that the variable stands for; what stands for none is told of once."""
    name = variable.strip().lower()
    if name not in _LEVELS:
        _show(logging.WARNING, f"TORCHINIT_LOG={variable} is none of {', '.join(_LEVELS)}{did_you_mean(name, _LEVELS)}")
    return _LEVELS.get(name, logging.INFO)


def _is_first_rank() -> bool:
    dist = torch.distributed
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _write(handler: logging.FileHandler, texts: Iterable[str]) -> None:
    handler.acquire()
    try:
        # A handler made with delay=True opens its file at the first record, and this is none.
        stream = handler.stream = handler.stream or handler._open()
        stream.write("Name of parameter - Initialization information\n")
        stream.writelines(texts)
        stream.flush()
    finally:
        handler.release()
