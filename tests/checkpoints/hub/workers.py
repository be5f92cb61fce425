"""Workers: processes that fetch, started from one that has imported everything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import TypeAlias

from tests.processes import context

Answers: TypeAlias = "Queue[tuple[str, str]]"


def answers() -> Answers:
    """A queue for what came of it."""
    return context().Queue()


def start(url: str, told: Answers, environment: Mapping[str, str]) -> BaseProcess:
    """A process that fetches a URL and puts into the queue what came of it."""
    process = context().Process(target=_work, args=(url, told, dict(environment)), daemon=True)
    process.start()
    return process


def _work(url: str, told: Answers, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    from torchinit.checkpoints import Limits, fetch

    try:
        told.put(("path", str(fetch(url, limits=Limits(attempts=3, pause=0.01, private=("localhost",))))))
    except Exception as error:  # noqa: BLE001  # told to the test
        told.put((type(error).__name__, str(error)))
