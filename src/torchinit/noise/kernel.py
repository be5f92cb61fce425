"""Kernel: the compiled engine: found, checked, and handed its jobs."""

from __future__ import annotations

import ctypes
import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from torchinit.errors import RunError
from torchinit.noise.boxes import Task, is_stretch, ravel, strides
from torchinit.noise.draws import Draw

ABI = "torchinit-stream-1/abi-1"
LIBRARY = Path(__file__).with_name("_kernel.so")
"""Where ``build.py`` puts it."""

AXES = 6
"""The most axes that a job has, after neighbouring ones were merged."""

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

# Of other subclasses nobody knows where they keep their values.
_PLAIN = (Tensor, torch.nn.Parameter)

_DRAW = struct.Struct("<iIII7fi")
_JOB = struct.Struct(f"<QQQ16sii{_DRAW.size}s{AXES}Q{AXES}Q{AXES}q")
# A contiguous box that is one stretch of its tensor: one axis, the others left empty.
_REST = 8 * (AXES - 1)
_STRETCH = struct.Struct(f"<QQQ16sii{_DRAW.size}sQ{_REST}xq{_REST}xq{_REST}x")

_log = logging.getLogger("torchinit")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A loaded kernel, and the instruction set that it is to use."""

    library: ctypes.CDLL
    instruction_set: int

    @property
    def name(self) -> str:
        """The name of the instruction set: plain, sse4, avx2 or avx512."""
        name: bytes = self.library.torchinit_set_name(self.instruction_set)
        return name.decode()

    def instruction_sets(self) -> dict[str, Kernel]:
        """This kernel with each instruction set that the machine has."""
        numbers = [n for n in range(16) if self.library.torchinit_can_run(n)]
        kernels = [Kernel(self.library, n) for n in numbers]
        return {kernel.name: kernel for kernel in kernels}

    def fill(self, tasks: Sequence[Task], threads: int) -> None:
        """Draws the tasks, which ``takes`` has to hold for; raises RunError for memory that is read-only."""
        tasks = [task for task in tasks if task.out.numel()]
        jobs = pack(tasks)
        done = self.library.torchinit_fill(jobs, len(tasks), threads, self.instruction_set)
        if done < len(tasks):
            raise RunError(f"a tensor of shape {list(tasks[done].out.shape)} lies in memory that cannot be written")
        torch.autograd.graph.increment_version([task.out for task in tasks])


def takes(out: Tensor) -> bool:
    """Whether the kernel can write this tensor: plain memory of a dtype that it knows.

    A lazily negated view means other bits than it holds.
    """
    return type(out) in _PLAIN and out.dtype in DTYPES and out.is_cpu and out.dim() < AXES and not out.is_neg()


@lru_cache(maxsize=1)
def load(path: Path = LIBRARY) -> Kernel | None:
    """The kernel with the best instruction set here; None, and one line in the log, where there is none."""
    try:
        library = ctypes.CDLL(str(path))
        found = _declare(library)
    except (OSError, AttributeError) as error:
        _log.info("no compiled kernel (%s): the same values are drawn more slowly", error)
        return None
    if found != (ABI, _JOB.size):
        _log.warning("the compiled kernel is of another version, %s, not %s: not used", found[0], ABI)
        return None
    return list(Kernel(library, 0).instruction_sets().values())[-1]


def _declare(library: ctypes.CDLL) -> tuple[str, int]:
    library.torchinit_abi.restype = ctypes.c_char_p
    library.torchinit_set_name.restype = ctypes.c_char_p
    library.torchinit_job_size.restype = ctypes.c_uint
    library.torchinit_fill.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_int]
    library.torchinit_fill.restype = ctypes.c_uint64
    return library.torchinit_abi().decode(), library.torchinit_job_size()


def pack(tasks: Sequence[Task]) -> bytes:
    """The jobs as the kernel reads them."""
    # By identity: most tasks share a few draws, and hashing one costs as much as packing it.
    draws = {id(task.draw): task.draw for task in tasks}
    packed = {key: _pack_draw(draw) for key, draw in draws.items()}
    return b"".join([_pack(task, packed[id(task.draw)]) for task in tasks])


@lru_cache(maxsize=4096)
def _pack_draw(d: Draw) -> bytes:
    numbers = (d.scale, d.shift, d.low, d.high, d.first, d.step, d.depth)
    return _DRAW.pack(d.kind, d.width, d.start, d.bounded, *numbers, 0)


def _pack(task: Task, draw: bytes) -> bytes:
    out, shape = task.out, task.shape
    box, whole = out.shape, out.shape == shape
    dtype = DTYPES[out.dtype]
    first = 0 if whole else ravel(task.start, shape)
    count = out.numel()
    head = (out.data_ptr(), first, count, task.key, dtype)
    if out.is_contiguous() and (whole or is_stretch(tuple(box), shape)):
        return _STRETCH.pack(*head, 1, draw, count, 1, 1)
    axes = merge(tuple(box), strides(shape), out.stride())
    padding = (0,) * (AXES - len(axes))
    sizes, steps, leaps = zip(*axes, strict=True)
    return _JOB.pack(*head, len(axes), draw, *sizes, *padding, *steps, *padding, *leaps, *padding)


def merge(box: tuple[int, ...], steps: tuple[int, ...], leaps: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """The axes of a box, innermost first, each as (size, stride in the whole, stride in memory).

    Axes that are walked through as one are made one. The first has stride 1 in the whole.

    >>> merge((4, 2, 3), (24, 3, 1), (6, 3, 1)), merge((5, 1), (7, 1), (1, 1))
    ([(6, 1, 1), (4, 24, 6)], [(1, 1, 1), (5, 7, 1)])
    """
    merged: list[tuple[int, int, int]] = []
    for size, step, leap in zip(reversed(box), reversed(steps), reversed(leaps), strict=True):
        if size == 1:
            continue
        inner = merged[-1] if merged else (1, 0, 0)
        if merged and (step, leap) == (inner[0] * inner[1], inner[0] * inner[2]):
            merged[-1] = (inner[0] * size, inner[1], inner[2])
        else:
            merged.append((size, step, leap))
    return merged if merged and merged[0][1] == 1 else [(1, 1, 1), *merged]
