"""Draws: nanoseconds an element for each distribution, dtype, size, slice and thread count.

``python -m benchmarks.draws`` prints the table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import results
from benchmarks.timing import Spread, side_by_side
from torchinit.initializers.matrices import Orthogonal
from torchinit.initializers.statistics import measure
from torchinit.model.shards import Shard
from torchinit.noise import Distribution, DrawRequest, Keyed
from torchinit.noise.distributions import resolve
from torchinit.noise.engines.dispatch import chosen_kernel
from torchinit.noise.engines.tasks import FillTask
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


def row_section(rows: Iterable[Row]) -> tuple[object, list[str]]:
    """The figures and the table of rows, which are measured as they come."""
    kept: list[dict[str, object]] = []

    def cells() -> Iterator[str]:
        for row in rows:
            kept.append(asdict(row))
            ours, theirs = (
                f"{spread.median / row.units * 1e9:.2f} ({spread.best / row.units * 1e9:.2f})"
                for spread in (row.ours, row.theirs)
            )
            yield f"{row.what} | {ours} | {row.against} | {theirs} | {row.ratio:.2f} | {row.best_ratio:.2f}"

    columns = "what | ns a unit, median (best) | against | ns a unit, median (best) | ratio | of the best"
    return kept, results.table(columns, cells())


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


def limits(sizes: list[int]) -> Iterator[Row]:
    """What bounds a draw, writing the memory, and NumPy's fastest generator."""
    generator = np.random.Generator(np.random.SFC64(0))
    for size in sizes:
        out = torch.zeros(size)
        shard, array = Shard.whole("weight", out), out.numpy()
        for name, numpys in (("uniform", generator.random), ("normal", generator.standard_normal)):
            ours = partial(NOISE.fill, shard, *DRAWN[name][:2])
            what, times = f"{name}, float32, {size:,}", max(1, (1 << 18) // size)
            yield compare(what, ours, partial(out.fill_, 1.0), "fill_", size, times=times)
            theirs = partial(numpys, out=array, dtype=np.float32)
            yield compare(what, ours, theirs, "NumPy SFC64", size, times=times)


def statistics(size: int) -> Iterator[Row]:
    """What a report measures of a tensor, beside the draw."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        out = torch.zeros(size, dtype=dtype)
        draw = partial(NOISE.fill, Shard.whole("weight", out), *DRAWN["uniform"][:2])
        what = f"statistics, {str(dtype).removeprefix('torch.')}, {size:,}"
        yield compare(what, partial(measure, out), draw, "the uniform draw", size)


def instruction_sets(size: int) -> Iterator[Row]:
    """The kernel with each instruction set that the machine has."""
    best = chosen_kernel()
    out = torch.zeros(size)
    for distribution, params in (("uniform", (-0.1, 0.1)), ("normal", (0.0, 0.02))):
        task = FillTask(out, (size,), (0,), derive(0, "weight"), resolve(distribution, params, out.dtype))
        theirs = partial(DRAWN[distribution][2], out)
        for name, kernel in best.instruction_sets().items() if best else ():
            ours = partial(kernel.fill, [task], 1)
            yield compare(f"{distribution}, {name}, {size:,}", ours, theirs, "torch.nn.init", size)


def two_threads(sizes: list[int]) -> Iterator[Row]:
    """Two threads beside one, and beside torch's code with two; timed by the clock."""

    def with_threads(count: int, call: Callable[[], object]) -> None:
        with threads(count):
            call()

    for size in sizes:
        out = torch.zeros(size)
        for name in ("uniform", "normal"):
            ours = partial(NOISE.fill, Shard.whole("weight", out), *DRAWN[name][:2])
            others = {"one thread": (1, ours), "torch.nn.init, two threads": (2, partial(DRAWN[name][2], out))}
            for against, other in others.items():
                calls = partial(with_threads, 2, ours), partial(with_threads, *other)
                what = f"{name}, float32, two threads, {size:,}"
                yield compare(what, *calls, against, size, clock=time.perf_counter, times=max(1, (1 << 22) // size))


class _AllThreads(Keyed):
    """The same draws, but a factorization as torch does it: on all threads."""

    is_stateful = True


def matrices(sizes: list[int]) -> Iterator[Row]:
    """An orthogonal matrix, with two threads there: factorized on one, on both, and by torch in single precision."""
    fill = Orthogonal()
    for size in sizes:
        out = torch.zeros(size, size)
        shard = Shard.whole("weight", out)
        others = {
            "factorized on both": partial(fill.write, shard, _AllThreads(0)),
            "torch.nn.init": partial(nn.init.orthogonal_, out),
        }
        with threads(2):
            for against, other in others.items():
                what, times = f"orthogonal, two threads, {size} x {size}", max(1, (1 << 16) // size**2)
                ours = partial(fill.write, shard, NOISE)
                yield compare(what, ours, other, against, size**2, clock=time.perf_counter, times=times)


def column_shard(rows: int = 4096, columns: int = 4096, wanted: int = 512) -> Iterator[Row]:
    """The same number of elements, as columns of a larger tensor and as a tensor of their own."""
    whole = Shard.whole("weight", torch.zeros(rows, wanted))
    theirs = partial(NOISE.fill, whole, "normal", (0.0, 0.02))
    for first in (1024, 1000):
        part = Shard("weight", torch.zeros(rows, wanted), (rows, columns), (0, first))
        ours = partial(NOISE.fill, part, "normal", (0.0, 0.02))
        what = f"{wanted} of {columns} columns from {first}, normal"
        yield compare(what, ours, theirs, "a whole tensor", rows * wanted, times=2)


def small_tensors(how: str, clock: Callable[[], float], count: int = 1000, size: int = 768) -> Iterator[Row]:
    """Many small tensors in one call, beside a call of torch's for each, which draws on one thread in any case."""
    outs = [torch.zeros(size) for _ in range(count)]
    jobs = [DrawRequest(Shard.whole(f"blocks.{i}.bias", out), "normal", (0.0, 0.02)) for i, out in enumerate(outs)]

    def theirs() -> None:
        for out in outs:
            nn.init.normal_(out, 0.0, 0.02)

    what, ours = f"{count} tensors of {size}, one batch, {how}", partial(NOISE.fill_many, jobs)
    yield compare(what, ours, theirs, "torch.nn.init", count, times=3, clock=clock)


def all_rows(quick: bool) -> Iterator[Row]:
    """Every row; ``quick`` leaves the large sizes out."""
    sizes = [1 << 10, 1 << 16, 1 << 20] if quick else [1 << 10, 1 << 14, 1 << 20, 1 << 24, 1 << 27]
    middle = 1 << 20 if quick else 1 << 22
    with threads(1):
        yield from distributions(sizes)
        yield from limits(sizes[2:])
        yield from instruction_sets(middle)
        yield from column_shard()
        yield from small_tensors("one thread", time.process_time)
        yield from statistics(middle)
    with threads(2):
        yield from small_tensors("two threads", time.perf_counter)
    yield from two_threads(sizes[2:])
    yield from matrices([64, 512] if quick else [64, 512, 2048, 4096])


def section(quick: bool) -> tuple[object, list[str]]:
    """All rows, measured."""
    return row_section(all_rows(quick))


if __name__ == "__main__":
    results.measure({"draws": section}, __doc__)
