"""Workers: processes that fetch, started from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any

CONTEXT: Any = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torchinit.checkpoints", "filelock", "http.client", "ssl"])


def start(url: str, answers: Queue[tuple[str, str]], environment: Mapping[str, str]) -> BaseProcess:
    """A process that fetches a URL and puts into the queue what came of it."""
    process: BaseProcess = CONTEXT.Process(target=_work, args=(url, answers, dict(environment)), daemon=True)
    process.start()
    return process


def _work(url: str, answers: Queue[tuple[str, str]], environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    from torchinit.checkpoints import Limits, fetch

    try:
        answers.put(("path", str(fetch(url, limits=Limits(attempts=3, pause=0.01)))))
    except Exception as error:  # noqa: BLE001  # told to the test
        answers.put((type(error).__name__, str(error)))
