"""The compiled engine: found, checked, and handed its jobs."""

from __future__ import annotations

import ctypes
import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.autograd.graph import increment_version

from torchinit.errors import RunError
from torchinit.noise.distributions import PACKED, Draw
from torchinit.noise.engines.tasks import COMMON, FillTask, ValueSums, is_plain, is_stretch, ravel, strides

ABI = "torchinit-stream-1/abi-7"
LIBRARY = Path(__file__).parents[1] / "csrc" / "_kernel.so"
"""Where ``build.py`` puts it."""

AXES = 6
"""The most axes that a job has, after neighbouring ones were merged."""

_DTYPES = {dtype: number for number, dtype in enumerate(COMMON)}

_JOB = struct.Struct(f"<QQQ16sii{PACKED.size}s{AXES}Q{AXES}Q{AXES}q")
# A contiguous box that is one stretch of its tensor: one axis, the others left empty.
_REST = 8 * (AXES - 1)
_STRETCH = struct.Struct(f"<QQQ16sii{PACKED.size}sQ{_REST}xq{_REST}xq{_REST}x")

_PLACE = struct.Struct("<QQq")
_SUMS = struct.Struct("<5d")

_FEW = 4

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

    def fill(self, tasks: Sequence[FillTask], threads: int) -> None:
        """Draw the tasks, which ``takes`` has to hold for; raises RunError for memory that is read-only."""
        tasks = [task for task in tasks if task.out.numel()]
        outs = [task.out for task in tasks]
        jobs = b"".join([_pack(task) for task in tasks])
        self._run(jobs, len(tasks), outs, threads, check=_may_be_read_only(outs))

    def fill_whole(self, groups: Sequence[tuple[bytes, Draw, Sequence[str], Sequence[Tensor]]], threads: int) -> None:
        """The same for whole tensors that are simple, in groups of one draw and dtype: the head of their keys, names.

        To make keys and jobs here, one by one, takes as long as to draw five hundred numbers for each.
        """
        jobs = ctypes.create_string_buffer(_JOB.size * sum(len(outs) for *_, outs in groups))
        made = 0
        for head, draw, names, outs in groups:
            like = _STRETCH.pack(0, 0, 0, b"", _DTYPES[outs[0].dtype], 1, draw.packed, 0, 1, 1)
            text = b"\xff".join([name.encode("utf-8", "surrogatepass") for name in names]) + b"\xff"
            count, into = len(outs), ctypes.byref(jobs, made * _JOB.size)
            numbers = struct.pack(f"<{2 * count}Q", *[out.data_ptr() for out in outs], *[out.numel() for out in outs])
            made += self.library.torchinit_jobs(head, len(head), text, numbers, count, like, into)
        every = [out for *_, outs in groups for out in outs]
        self._run(jobs, made, every, threads, check=_may_be_read_only(every))

    def fill_one(self, out: Tensor, key: bytes, draw: Draw, threads: int) -> None:
        """The same for one such tensor: of a small one more than half of the time is what is done beside the draw."""
        if count := out.numel():
            job = _STRETCH.pack(out.data_ptr(), 0, count, key, _DTYPES[out.dtype], 1, draw.packed, count, 1, 1)
            check = not out.untyped_storage().resizable()
            if not self.library.torchinit_fill(job, 1, threads, self.instruction_set, check):
                raise _unwritable(out)
            increment_version(out)

    def _run(self, jobs: Any, count: int, outs: Sequence[Tensor], threads: int, *, check: bool) -> None:
        done = self.library.torchinit_fill(jobs, count, threads, self.instruction_set, check)
        if done < count:
            raise _unwritable([out for out in outs if out.numel()][done])
        increment_version(outs)

    def sums(self, tensors: Sequence[Tensor], threads: int) -> list[ValueSums]:
        """The sums of each of some simple tensors that are not empty; of the first ones, if memory is short."""
        places = [_PLACE.pack(values.data_ptr(), values.numel(), _DTYPES[values.dtype]) for values in tensors]
        sums = ctypes.create_string_buffer(_SUMS.size * len(places))
        done = self.library.torchinit_sums(b"".join(places), len(places), threads, self.instruction_set, sums)
        return [*map(ValueSums._make, _SUMS.iter_unpack(sums.raw[: _SUMS.size * done]))]

    def largest(self, values: Tensor, threads: int) -> int:
        """The bits of the largest magnitude among floating-point numbers that lie behind each other on the host.

        Those of a NaN are larger than infinity's.
        """
        place = (values.data_ptr(), values.dtype.itemsize, values.numel())
        return int(self.library.torchinit_largest(*place, threads, self.instruction_set))

    def copy(self, out: Tensor, values: Tensor, threads: int) -> None:
        """Copy between tensors of one dtype and size that each lie in one stretch on the host, apart from the other.

        The target is not in the caches afterwards. It must be memory that can be written.
        """
        self.library.torchinit_copy(out.data_ptr(), values.data_ptr(), out.nbytes, threads, self.instruction_set)
        increment_version(out)


def _unwritable(out: Tensor) -> RunError:
    return RunError(f"a tensor of shape {list(out.shape)} lies in memory that cannot be written")


def _may_be_read_only(outs: Sequence[Tensor]) -> bool:
    """Whether the system has to be asked; it costs less than to look at many tensors."""
    return len(outs) > _FEW or not all(out.untyped_storage().resizable() for out in outs)  # as what torch allocates is


def takes(out: Tensor) -> bool:
    """Whether the kernel can write this tensor."""
    return is_plain(out) and out.dim() < AXES


@lru_cache(maxsize=1)
def load(path: Path = LIBRARY) -> Kernel | None:
    """The kernel with the best instruction set here; None, and one line in the log, where there is none."""
    try:
        library = ctypes.CDLL(str(path))
        library.torchinit_abi.restype = ctypes.c_char_p
        version, size = library.torchinit_abi().decode(), library.torchinit_job_size()
        if (version, size) != (ABI, _JOB.size):
            _log.warning("the compiled kernel is of another version, %s, not %s: not used", version, ABI)
            return None
        _declare(library)
    except (OSError, AttributeError) as error:
        _log.info("no compiled kernel (%s): the same values are drawn more slowly", error)
        return None
    return list(Kernel(library, 0).instruction_sets().values())[-1]


def _declare(library: ctypes.CDLL) -> None:
    number, count, place = ctypes.c_int, ctypes.c_uint64, ctypes.c_void_p
    library.torchinit_set_name.restype = ctypes.c_char_p
    # Of torchinit_fill nothing is declared: it takes what ctypes makes of bytes and ints by itself, in less time.
    for name, result, arguments in (
        ("jobs", count, [ctypes.c_char_p, count, ctypes.c_char_p, ctypes.c_char_p, count, ctypes.c_char_p, place]),
        ("sums", count, [ctypes.c_char_p, count, number, number, ctypes.c_char_p]),
        ("largest", count, [place, number, count, number, number]),
        ("copy", None, [place, place, count, number, number]),
    ):
        function = getattr(library, f"torchinit_{name}")
        function.restype = result
        function.argtypes = arguments


def _pack(task: FillTask) -> bytes:
    """The job as the kernel reads it.

    A job walks through at most six axes, each with its stride in the whole (where the words are) and in memory (where
    they go). Most boxes need one: what lies behind each other in both is a stretch, and the kernel's fast loop.
    """
    out, shape, start, key, draw = task
    box, count = tuple(out.shape), out.numel()
    head = (out.data_ptr(), ravel(start, shape), count, key, _DTYPES[out.dtype])
    if out.is_contiguous() and is_stretch(box, shape):
        return _STRETCH.pack(*head, 1, draw.packed, count, 1, 1)
    axes = merge(box, strides(shape), out.stride())
    padding = (0,) * (AXES - len(axes))
    sizes, steps, leaps = zip(*axes, strict=True)
    return _JOB.pack(*head, len(axes), draw.packed, *sizes, *padding, *steps, *padding, *leaps, *padding)


def merge(box: tuple[int, ...], steps: tuple[int, ...], leaps: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """The axes of a box, innermost first, each as (size, stride in the whole, stride in memory).

    Axes that are walked through as one are made one. The first has stride 1 in the whole.
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
