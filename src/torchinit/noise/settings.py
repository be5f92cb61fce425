"""Settings that no value may depend on: torch's modes of this thread, defaults of the process, threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from threading import Lock, RLock, Thread
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, overrides
from torch.utils import _python_dispatch as dispatch

_SMALLEST: Final = 5e-324
_ALONE: Final = RLock()


@contextmanager
def plain_thread() -> Iterator[None]:
    """Let torch work in this thread as in a new one, and be as it was afterwards.

    Without other people's modes, and so without a default device; without autocast and inference mode; with subnormal
    numbers. Modes of torchinit's own stay: they only look.

    >>> with torch.device("meta"), plain_thread():
    ...     torch.zeros(2)
    tensor([0., 0.])
    """
    with ExitStack() as settings:
        if torch._C._len_torch_dispatch_stack():
            ours = [mode for mode in dispatch._get_current_dispatch_mode_stack() if _is_ours(mode)]
            settings.enter_context(dispatch._disable_current_modes())
            for mode in ours:
                dispatch._push_mode(mode)
                settings.callback(dispatch._pop_mode)
        stack = [overrides._pop_mode() for _ in range(torch._C._len_torch_function_stack())]
        for mode in stack:
            settings.callback(overrides._push_mode, mode)
        for mode in filter(_is_ours, reversed(stack)):
            overrides._push_mode(mode)
            settings.callback(overrides._pop_mode)
        accelerator = torch.accelerator.current_accelerator()
        for device in {"cpu", accelerator.type if accelerator else "cpu"}:
            if torch.is_autocast_enabled(device):
                settings.enter_context(torch.autocast(device, enabled=False))
        if torch.is_inference_mode_enabled():
            settings.enter_context(torch.inference_mode(mode=False))
        if _SMALLEST * 1.0 == 0.0:
            torch.set_flush_denormal(False)
            settings.callback(torch.set_flush_denormal, True)
            settings.enter_context(one_thread())  # torch's workers keep for good what was set when they began
        yield


def _is_ours(mode: object) -> bool:
    return type(mode).__module__.startswith("torchinit.")


@contextmanager
def plain_process(dtype: torch.dtype) -> Iterator[None]:
    """Let other people's code compute by torch's own settings; where ``dtype`` is float64, in that by default.

    Default dtype and precision of products belong to the process, as torch's generators do. So one thread at a time is
    inside; what others compute meanwhile has these settings, too, where the user has changed them.
    """
    with _ALONE, ExitStack() as settings:
        users, wanted = torch.get_default_dtype(), torch.float64 if dtype.to_real() == torch.float64 else torch.float32
        if users != wanted:
            torch.set_default_dtype(wanted)
            settings.callback(torch.set_default_dtype, users)
        backends: tuple[Any, ...] = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul  # type: ignore[attr-defined]
        for backend in backends:
            if (precision := backend.fp32_precision) not in ("none", "ieee"):
                backend.fp32_precision = "ieee"
                settings.callback(setattr, backend, "fp32_precision", precision)
        yield


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
