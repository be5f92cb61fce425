"""The choice of the engine that fills a task: the compiled kernel, NumPy, or torch operations, all of the same bits."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import groupby

import torch

from torchinit.noise.engines import kernel, torch_engine
from torchinit.noise.engines.tasks import FillTask
from torchinit.noise.threads import drawing_threads

VARIABLE = "TORCHINIT_ENGINE"
"""An environment variable that rules engines out, to compare them: ``torch``, ``numpy``, or the kernel's
instruction set ``plain``, ``sse4``, ``avx2`` or ``avx512``. Read once."""

_SMALL = 1 << 16
"""Fewer elements than this are drawn on the host for another device: copying costs less than the operations."""


def fill(tasks: Iterable[FillTask]) -> None:
    """Draw the tasks as if one after the other, each where it is fastest."""
    compiled = chosen_kernel()
    for taken, run in groupby(tasks, lambda task: compiled is not None and kernel.takes(task.out)):
        if compiled and taken:
            compiled.fill(list(run), drawing_threads())
        else:
            for task in run:
                _fill_one(task)


@torch.no_grad()
def _fill_one(task: FillTask) -> None:
    out = task.out
    if out.device.type == "cpu":
        host_engine()(task) if type(out) is torch.Tensor else torch_engine.fill(task)
    elif out.numel() < _SMALL:
        host = torch.empty(out.shape, dtype=out.dtype, device="cpu")
        fill([FillTask(host, task.shape, task.start, task.key, task.draw)])
        out.copy_(host)
    else:
        torch_engine.fill(task)


@lru_cache(maxsize=1)
def chosen_kernel() -> kernel.Kernel | None:
    """The kernel, unless it is not there or ruled out."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted in ("torch", "numpy"):
        return None
    loaded = kernel.load()
    return loaded.instruction_sets().get(wanted, loaded) if loaded else None


@lru_cache(maxsize=1)
def host_engine() -> Callable[[FillTask], None]:
    """The engine for host tensors that the kernel does not take: NumPy's where it is installed."""
    if os.environ.get(VARIABLE) == "torch" or importlib.util.find_spec("numpy") is None:
        return torch_engine.fill
    from torchinit.noise.engines import numpy_engine

    return numpy_engine.fill
