"""Draws: nanoseconds an element for each distribution, dtype, size, slice and thread count."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.timing import Spread, side_by_side
from torchinit.core.shards import Shard
from torchinit.noise import Distribution, Job, Keyed
from torchinit.noise.boxes import Task
from torchinit.noise.draws import resolve
from torchinit.noise.engines import chosen_kernel
from torchinit.noise.keyed import derive

NOISE = Keyed(0)


@dataclass(frozen=True, slots=True)
class Row:
    """Two calls beside each other; ``units`` are the elements or tensors that one call handles."""

    what: str
    ours: Spread
    theirs: Spread
    against: str
    units: int

    @property
    def ratio(self) -> float:
        return self.theirs.median / self.ours.median

    @property
    def best_ratio(self) -> float:
        return self.theirs.best / self.ours.best


DRAWN: dict[str, tuple[Distribution, tuple[float, ...], Callable[[Tensor], object]]] = {
    "uniform": ("uniform", (-0.1, 0.1), lambda t: nn.init.uniform_(t, -0.1, 0.1)),
    "normal": ("normal", (0.0, 0.02), lambda t: nn.init.normal_(t, 0.0, 0.02)),
    "truncated ±2σ": ("truncated", (0.0, 1.0, -2.0, 2.0), nn.init.trunc_normal_),
    "truncated ±3σ": ("truncated", (0.0, 1.0, -3.0, 3.0), partial(nn.init.trunc_normal_, a=-3.0, b=3.0)),
    "truncated ±2, std 0.02": ("truncated", (0.0, 0.02, -2.0, 2.0), partial(nn.init.trunc_normal_, std=0.02)),
}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch with so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compare(
    what: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    against: str,
    units: int,
    *,
    times: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> Row:
    """Measures two calls in turn, each made often enough for the clock to tell."""
    found = side_by_side({"ours": ours, "theirs": theirs}, times=times, clock=clock)
    return Row(what, found["ours"], found["theirs"], against, units)


def distributions(sizes: list[int]) -> Iterator[Row]:
    """Each distribution beside torch's: all sizes in float32, one in other dtypes."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for size in sizes if dtype == torch.float32 else [1 << 20]:
            out = torch.zeros(size, dtype=dtype)
            shard = Shard.whole("weight", out)
            for name, (distribution, params, theirs) in DRAWN.items():
                # Torch's truncation takes many seconds for the largest size, and nothing new is learned.
                if distribution == "truncated" and size > 1 << 24:
                    continue
                what = f"{name}, {str(dtype).removeprefix('torch.')}, {size:,}"
                ours = partial(NOISE.fill, shard, distribution, params)
                yield compare(what, ours, partial(theirs, out), "torch.nn.init", size, times=max(1, (1 << 18) // size))


def limits(size: int) -> Iterator[Row]:
    """The normal beside what bounds it, writing the memory, and beside NumPy's fastest generator."""
    out = torch.zeros(size)
    shard = Shard.whole("weight", out)
    normal = partial(NOISE.fill, shard, "normal", (0.0, 0.02))
    yield compare(f"normal, float32, {size:,}", normal, partial(out.fill_, 1.0), "fill_", size)
    generator, array = np.random.Generator(np.random.SFC64(0)), out.numpy()
    numpys = partial(generator.standard_normal, out=array, dtype=np.float32)
    yield compare(f"normal, float32, {size:,}", normal, numpys, "NumPy SFC64", size)


def instruction_sets(size: int) -> Iterator[Row]:
    """The kernel with each instruction set that the machine has."""
    best = chosen_kernel()
    out = torch.zeros(size)
    for distribution, params in (("uniform", (-0.1, 0.1)), ("normal", (0.0, 0.02))):
        task = Task(out, (size,), (0,), derive(0, "weight"), resolve(distribution, params, out.dtype))
        theirs = partial(DRAWN[distribution][2], out)
        for name, kernel in best.instruction_sets().items() if best else ():
            ours = partial(kernel.fill, [task], 1)
            yield compare(f"{distribution}, {name}, {size:,}", ours, theirs, "torch.nn.init", size)


def two_threads(size: int) -> Iterator[Row]:
    """Two threads beside one."""
    shard = Shard.whole("weight", torch.zeros(size))

    def with_threads(count: int) -> None:
        with threads(count):
            NOISE.fill(shard, "normal", (0.0, 0.02))

    yield compare(
        f"normal, two threads, {size:,}",
        partial(with_threads, 2),
        partial(with_threads, 1),
        "one thread",
        size,
        clock=time.perf_counter,
    )


def column_shard(rows: int = 4096, columns: int = 4096, wanted: int = 512) -> Iterator[Row]:
    """The same number of elements, as columns of a larger tensor and as a tensor of their own."""
    part = Shard("weight", torch.zeros(rows, wanted), (rows, columns), (0, 1000))
    whole = Shard.whole("weight", torch.zeros(rows, wanted))
    ours, theirs = (partial(NOISE.fill, shard, "normal", (0.0, 0.02)) for shard in (part, whole))
    yield compare(f"{wanted} of {columns} columns, normal", ours, theirs, "a whole tensor", rows * wanted)


def small_tensors(count: int = 1000, size: int = 768) -> Iterator[Row]:
    """Many small tensors in one call, beside a call of torch's for each."""
    outs = [torch.zeros(size) for _ in range(count)]
    jobs = [Job(Shard.whole(f"blocks.{i}.bias", out), "normal", (0.0, 0.02)) for i, out in enumerate(outs)]

    def theirs() -> None:
        for out in outs:
            nn.init.normal_(out, 0.0, 0.02)

    yield compare(
        f"{count} tensors of {size}, one batch", partial(NOISE.fill_many, jobs), theirs, "torch.nn.init", count, times=3
    )


def all_rows(quick: bool) -> Iterator[Row]:
    """Every row; ``quick`` leaves the large sizes out."""
    sizes = [1 << 10, 1 << 16, 1 << 20] if quick else [1 << 10, 1 << 14, 1 << 20, 1 << 24, 1 << 27]
    middle = 1 << 20 if quick else 1 << 22
    with threads(1):
        yield from distributions(sizes)
        yield from limits(sizes[-1])
        yield from instruction_sets(middle)
        yield from column_shard()
        yield from small_tensors()
    yield from two_threads(middle * 4)
