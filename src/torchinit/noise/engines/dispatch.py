"""The choice of the engine that fills a task: the compiled kernel, NumPy, or torch operations, all of the same bits."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import groupby

import torch

from torchinit.noise.engines import kernel, torch_engine
from torchinit.noise.engines.tasks import FillTask
from torchinit.noise.settings import drawing_threads

VARIABLE = "TORCHINIT_ENGINE"
"""An environment variable that rules engines out, to compare them: ``torch``, ``numpy``, or the kernel's
instruction set ``plain``, ``sse4``, ``avx2`` or ``avx512``. ``torch`` draws for other devices there, too. Read once."""

PROVEN: frozenset[str] = frozenset()
"""The types of device on which the torch engine was seen to give the kernel's bits, by torchinit.noise.check."""

CHUNK = 1 << 22
"""How many elements for another device are held on the host at a time."""


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
    if not draws_on(out.device):
        fill_by_copy(task)
    elif out.device.type == "cpu" and type(out) is torch.Tensor:
        host_engine()(task)
    else:
        torch_engine.fill(task)


def draws_on(device: torch.device) -> bool:
    """Whether values for a device are computed there: only where they are known, or asked, to come from torch alone."""
    return device.type == "cpu" or device.type in PROVEN or os.environ.get(VARIABLE) == "torch"


def fill_by_copy(task: FillTask) -> None:
    """Draw on the host, chunk by chunk, and copy: the bits are certain then, whatever device they are for."""
    for box in chunks(tuple(task.out.shape), CHUNK):
        part = task.out[tuple(slice(first, first + size) for first, size in box)]
        host = torch.empty(part.shape, dtype=part.dtype, device="cpu")
        start = tuple(first + offset for (first, _), offset in zip(box, task.start, strict=True))
        fill([FillTask(host, task.shape, start, task.key, task.draw)])
        part.copy_(host)


def chunks(shape: tuple[int, ...], most: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Cut a box into boxes of at most so many elements: the first and the size along each axis.

    >>> list(chunks((3, 2), 4))
    [((0, 2), (0, 2)), ((2, 1), (0, 2))]
    >>> list(chunks((2, 5), 4))
    [((0, 1), (0, 4)), ((0, 1), (4, 1)), ((1, 1), (0, 4)), ((1, 1), (4, 1))]
    """
    if not shape:
        yield ()
        return
    behind = math.prod(shape[1:])
    step = max(1, most // max(1, behind))
    for first in range(0, shape[0], step):
        size = min(step, shape[0] - first)
        for rest in chunks(shape[1:], most // size):
            yield (first, size), *rest


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
    has_numpy = importlib.util.find_spec("numpy") is not None
    return torch_engine.fill_by_numpy if has_numpy and os.environ.get(VARIABLE) != "torch" else torch_engine.fill
