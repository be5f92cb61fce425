"""Threads: one for computations whose bits must not depend on how many there are."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock

import torch

_changing = Lock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch's linear algebra and sums run on one thread in this Python thread, as long as the block lasts.

    LAPACK and BLAS divide the work by the number of threads, and so round differently for each. With one thread the
    bits depend on shapes, library and processor alone. Other Python threads keep their number.

    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    _set_threads(threads=1)
    try:
        yield
    finally:
        _set_threads(threads)


def _set_threads(threads: int) -> None:
    """Set the number for this Python thread only.

    ``torch.set_num_threads`` sets two numbers: the calling thread's own (OpenMP's and MKL's), and one of the process,
    which each Python thread takes over for good when it first comes to torch. Left at 1 for the time of a large fill,
    the latter would slow down every thread that starts meanwhile, and two fills at once would leave it at 1. So a fresh
    thread takes over the process's number first, and gives it back at once; the lock keeps two fills from reading each
    other's. What is left is the moment between two calls: nothing in torch sets the one number without the other.
    """
    with _changing, ThreadPoolExecutor(1) as fresh:
        process = fresh.submit(torch.get_num_threads).result()
        torch.set_num_threads(threads)
        fresh.submit(torch.set_num_threads, process).result()
