"""One thread for computations whose bits must not depend on how many there are.

LAPACK and BLAS divide the work by the number of threads, and so round differently for each. With one thread the bits
depend on shapes, library and processor alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from threading import Lock, Thread
from typing import TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")
_changing = Lock()
_drawing: ContextVar[int] = ContextVar("torchinit_drawing_threads", default=0)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch run on one thread in this Python thread, as long as the block lasts. Others keep their number."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    _set_threads(1)
    token = _drawing.set(threads)
    try:
        yield
    finally:
        _drawing.reset(token)
        _set_threads(threads)


def drawing_threads() -> int:
    """The number of threads for draws, whose bits depend on none: torch's, and that from before within `one_thread`."""
    return _drawing.get() or torch.get_num_threads()


def on_one_thread(work: Callable[[Tensor], _T], matrix: Tensor) -> _T:
    """Apply a function of torch's to a matrix in the host's memory, on one thread; for many calls.

    A Python thread is kept for it that has one thread of torch for good. User code does not belong there: it may depend
    on what its own thread has set, such as the default device. Factorizations in tiles of a fixed size, each on one
    thread and several at a time, were tried: faster on two cores from some 4,000 rows up only, and slower below.
    """
    if torch.get_num_threads() == 1:
        return work(matrix)
    return _workers().submit(work, matrix).result()


@lru_cache(maxsize=1)
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="torchinit", initializer=partial(_set_threads, 1))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_workers.cache_clear)  # the child has the pool, but not its threads


def _set_threads(threads: int) -> None:
    """Set the number for this Python thread only.

    ``torch.set_num_threads`` sets two numbers: the calling thread's own (OpenMP's and MKL's), and one of the process,
    which each Python thread takes over for good when it first comes to torch. Left at 1 for the time of a large fill,
    the latter would slow down every thread that starts meanwhile, and two fills at once would leave it at 1. So a fresh
    thread takes over the process's number first, and gives it back at once; the lock keeps two calls from reading each
    other's. What is left is a moment, some microseconds long, since nothing in torch sets one number without the other;
    factorizations, of which a model may have hundreds, have a thread that is kept, so that it comes once for them all.
    """
    known, done = Lock(), Lock()  # plain locks: an Event or a pool takes several times as long

    def keep() -> None:
        process = torch.get_num_threads()
        known.release()
        with done:
            torch.set_num_threads(process)

    torch.get_num_threads()  # the first call in a thread takes over the process's number, whatever was set before
    fresh = Thread(target=keep)
    with _changing:
        known.acquire()
        with done:
            fresh.start()
            known.acquire()  # until the fresh thread has looked
            torch.set_num_threads(threads)
        fresh.join()
