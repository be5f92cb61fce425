"""Processes: a function run on several ranks of a gloo group, each a process of its own, and what it returned there."""

from __future__ import annotations

import multiprocessing
import pickle
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

LIMIT = 120
"""Seconds after which a job is given up: only a job that hangs takes so long."""


@lru_cache(maxsize=1)
def context() -> ForkServerContext:
    """One server that has imported torch, so that a process starts in milliseconds, and without threads."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["torch", "torch.distributed.fsdp", "torch.distributed.tensor.parallel", "torchinit"])
    return found


def on_ranks(world: int, work: Callable[..., Any], folder: Path, *arguments: object, timeout: float = 60) -> list[Any]:
    """What ``work(rank, *arguments)`` returned or raised on each rank, in their order.

    An exception is in the list as it was raised. ``work`` has to be a function of a module, and ``folder`` empty.
    """
    started = []
    for rank in range(world):
        ours, theirs = context().Pipe(duplex=False)
        process = context().Process(
            target=_rank, args=(rank, world, work, folder / "store", arguments, timeout, theirs)
        )
        process.start()
        theirs.close()
        started.append((process, ours))
    until = time.monotonic() + LIMIT
    found = [_answer(ours, until) for _, ours in started]
    for process, _ in started:
        process.join(max(0.0, until - time.monotonic()))
        process.kill()
    return found


def _answer(pipe: Connection, until: float) -> Any:
    if not pipe.poll(max(0.0, until - time.monotonic())):
        return TimeoutError("no answer: the job hangs")
    try:
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        return ChildProcessError("the process ended without an answer")


def _rank(
    rank: int, world: int, work: Callable[..., Any], store: Path, arguments: Any, timeout: float, answer: Connection
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=store.as_uri(),
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=timeout),
        )
        found = work(rank, *arguments)
    except Exception as error:  # noqa: BLE001  # whatever it is, the test has to see it
        error.add_note(traceback.format_exc())
        found = error
    answer.send_bytes(pickle.dumps(found))
    if dist.is_initialized():
        dist.destroy_process_group()


def results(found: list[Any]) -> list[Any]:
    """The same, if no rank has raised; else the first of their errors is raised here."""
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return found
