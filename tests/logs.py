"""Logs: logging as in a program that has not touched it, which pytest has."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unconfigured() -> Iterator[None]:
    """Without handlers on the loggers that the log goes to; what is set inside is taken back.

    It is for the body of a test, since pytest hangs its handlers on the root anew for each phase.
    """
    loggers = [logging.root, *map(logging.getLogger, ("torchinit", "torchinit.mmengine"))]
    before = [(logger, logger.handlers[:], logger.level, logger.filters[:]) for logger in loggers]
    for logger in loggers:
        logger.handlers[:] = []
    try:
        yield
    finally:
        for logger, handlers, level, filters in before:
            logger.handlers[:], logger.filters[:] = handlers, filters
            logger.setLevel(level)
