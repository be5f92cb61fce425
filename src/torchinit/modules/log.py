"""The log of an initialization: a line a parameter, in MMEngine's format, and what a reader must know."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import TextIO

import torch
from torch import nn

Line = tuple[str, nn.Parameter, str]
"""The name of a parameter, the parameter, and how it was set."""

_LOGGER = logging.getLogger("torchinit")


def loggers() -> list[logging.Logger]:
    """Torchinit's logger, and mmengine's current one where mmengine is in use."""
    theirs = getattr(sys.modules.get("mmengine.logging"), "MMLogger", None)
    in_use = theirs is not None and len(theirs._instance_dict) > 0
    return [_LOGGER, theirs.get_current_instance()] if in_use and theirs else [_LOGGER]


def log(level: int, text: str, *args: object) -> None:
    """Sends one record to each logger."""
    for logger in loggers():
        logger.log(level, text, *args)


def dump(lines: Iterable[Line]) -> None:
    """Logs how each parameter was set, on the first rank alone.

    The text goes straight into the files of a logger's file handlers, or, where it has none, to the
    logger at INFO, a record a parameter.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    listed = list(lines)
    for logger in loggers():
        files = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
        for handler in files:
            _write(handler, listed)
        for name, parameter, text in listed if not files and logger.isEnabledFor(logging.INFO) else ():
            logger.info("\n%s - %s: \n%s \n ", name, parameter.shape, text)


def _write(handler: logging.FileHandler, lines: Iterable[Line]) -> None:
    handler.acquire()
    try:
        stream = _stream(handler)
        stream.write("Name of parameter - Initialization information\n")
        for name, parameter, text in lines:
            stream.write(f"\n{name} - {parameter.shape}: \n{text} \n")
        stream.flush()
    finally:
        handler.release()


def _stream(handler: logging.FileHandler) -> TextIO:
    # A handler made with delay=True opens its file at the first record, and this is none.
    if handler.stream is None:
        handler.stream = handler._open()
    return handler.stream
