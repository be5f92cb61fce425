"""Check: whether a device holds the bits of the stream, and how fast they come: ``python -m torchinit.noise.check``.

Every distribution is drawn in every dtype, as a whole and in parts, in two ways: with torch's operations on the device
itself, and on the host with copies; both, and the one that torchinit takes, are compared, bit for bit, with what the
host's engine (the compiled kernel, where there is one) draws. Then they are timed beside ``torch.nn.init``.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from torchinit._text import dtype_name
from torchinit.noise.base import Distribution
from torchinit.noise.distributions import resolve
from torchinit.noise.engines import dispatch, torch_engine
from torchinit.noise.engines.tasks import COMMON, FillTask
from torchinit.noise.keyed import STREAM, derive

DESCRIPTION = "Compare what a device draws with the host's bits, and time it beside torch.nn.init."

DRAWS: tuple[tuple[Distribution, tuple[float, ...]], ...] = (
    ("uniform", (-0.1, 0.1)),
    ("normal", (0.5, 0.02)),
    ("truncated", (0.0, 1.0, -2.0, 2.0)),
    ("truncated", (0.0, 1.0, -0.0001, 0.0002)),
    ("truncated", (0.0, 1.0, 5.0, math.inf)),
    ("truncated", (0.1, 0.5, -0.3, math.inf)),
    ("bernoulli", (0.25,)),
    ("integer", (-3.0, 10.0)),
    ("sign", ()),
)
"""Every kind of arithmetic, and bounds that bite."""

PLACES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "whole": ((517, 263), (0, 0), (517, 263)),
    "rows": ((517, 263), (101, 0), (33, 263)),
    "columns": ((517, 263), (0, 100), (517, 41)),
    "far": ((1 << 33, 1000), ((1 << 32) + 5, 0), (64, 1000)),  # indices beyond 32 bits
    "scalar": ((), (), ()),
}
"""Shape of the tensor, where the part begins, and its size."""

PATHS: dict[str, Callable[[FillTask], None]] = {
    "torchinit": lambda task: dispatch.fill([task]),
    "torch operations": torch_engine.fill,
    "host and copy": dispatch.fill_by_copy,
}
"""The ways to draw; the first is the one that torchinit takes on the device, one of the others on all but the CPU."""

THEIRS: dict[Distribution, Callable[[Tensor], object]] = {
    "normal": lambda out: nn.init.normal_(out, 0.5, 0.02),
    "uniform": lambda out: nn.init.uniform_(out, -0.1, 0.1),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One draw on the device beside the host's: how many of its elements have other bits, or why it cannot be done."""

    path: str
    draw: str
    elements: int
    differing: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Timing:
    """Nanoseconds an element for each path, the best of several calls."""

    draw: str
    elements: int
    nanoseconds: dict[str, float]


def compare(device: torch.device) -> Iterator[Comparison]:
    """Draw everything in every way, and also into a destination whose elements do not lie in their order."""
    for (distribution, params), dtype, (place, (shape, start, size)) in product(DRAWS, COMMON, PLACES.items()):
        expected = torch.empty(size, dtype=dtype, device="cpu")
        task = FillTask(expected, shape, start, derive(0, place), resolve(distribution, params, dtype))
        dispatch.fill([task])
        for path, turned in product(PATHS, (False, True)[: len(size)]):
            what = f"{distribution}{params} {dtype_name(dtype)}, {place}{', transposed' * turned}"
            error = ""
            try:
                out = torch.empty(size[::-1] if turned else size, dtype=dtype, device=device)
                out = out.t() if turned else out
                PATHS[path](task._replace(out=out))
                differing = _differing(out.cpu(), expected)
            except (RuntimeError, TypeError) as reason:  # a dtype or an operation that the device does not have
                differing, error = expected.numel(), " ".join(str(reason).split())[:200]
            yield Comparison(path, what, expected.numel(), differing, error)


def _differing(here: Tensor, expected: Tensor) -> int:
    """How many elements have other bits: as bytes, so that 0 is not -0 and NaN is NaN."""
    first, second = (side.reshape(-1, 1).view(torch.uint8) for side in (here, expected))
    return int((first != second).any(1).sum())


def moments(device: torch.device, elements: int = 1 << 20) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of N(0, 1) as the device itself sums them, for each path."""
    out = torch.empty(elements, device=device)
    task = FillTask(out, (elements,), (0,), derive(1, "moments"), resolve("normal", (0.0, 1.0), out.dtype))
    measured = {}
    for path, fill in PATHS.items():
        fill(task)
        measured[path] = (float(out.mean()), float(out.std()))
    return measured


def timings(device: torch.device, most: int) -> Iterator[Timing]:
    """Every path and ``torch.nn.init``, for small to large tensors."""
    sizes = [size for size in (1 << 10, 1 << 16, 1 << 20, 1 << 24, 1 << 28) if size <= most]
    for size, distribution, dtype in product(sizes, THEIRS, (torch.float32, torch.bfloat16)):
        out = torch.empty(size, dtype=dtype, device=device)
        draw = resolve(distribution, dict(DRAWS)[distribution], dtype)
        task = FillTask(out, (size,), (0,), derive(0, "timings"), draw)
        calls: dict[str, Callable[[], object]] = {path: partial(fill, task) for path, fill in PATHS.items()}
        calls["torch.nn.init"] = partial(THEIRS[distribution], out)
        times = {path: 1e9 * _best(call, device, 3 if size > 1 << 20 else 9) / size for path, call in calls.items()}
        yield Timing(f"{distribution} {dtype_name(dtype)}", size, times)


def _best(call: Callable[[], object], device: torch.device, calls: int) -> float:
    def seconds() -> float:
        begin = time.perf_counter()
        call()
        if device.type != "cpu":
            torch.get_device_module(device).synchronize(device)
        return time.perf_counter() - begin

    seconds()  # the first call compiles, allocates and wakes up
    return min(seconds() for _ in range(calls))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found; return 0 where all that torchinit draws on the device has the stream's bits, else 1."""
    parser = argparse.ArgumentParser(prog="python -m torchinit.noise.check", description=DESCRIPTION)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, xpu ... (default: the accelerator of this machine)")
    parser.add_argument("--most", type=int, default=1 << 24, help="elements of the largest tensor that is timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file, to be kept")
    options = parser.parse_args(arguments)
    try:
        device = torch.device(options.device or torch.accelerator.current_accelerator() or "cpu")
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without the device
        parser.error(f"--device {options.device}: {str(error).splitlines()[0]}")
    where, compared, sums = _where(device), list(compare(device)), moments(device)
    timed = list(timings(device, options.most))
    sys.stdout.write("\n".join([where, *_compared_lines(compared, sums), *_timed_lines(timed), ""]))
    if options.json:
        tables = {"compared": list(map(asdict, compared)), "moments": sums, "timed": list(map(asdict, timed))}
        options.json.write_text(json.dumps({"where": where, **tables}, indent=1) + "\n", "utf-8")
    return int(any(row.differing for row in compared if row.path == "torchinit"))


def _where(device: torch.device) -> str:
    compiled = dispatch.chosen_kernel()
    name = platform.machine()
    if device.type != "cpu":
        name = getattr(torch.get_device_module(device), "get_device_name", str)(device)
    return f"{device} ({name}), torch {torch.__version__}, {STREAM}, kernel: {compiled.name if compiled else 'none'}"


def _compared_lines(compared: list[Comparison], sums: dict[str, tuple[float, float]]) -> Iterator[str]:
    for path, (mean, std) in sums.items():
        rows = [row for row in compared if row.path == path]
        wrong = [row for row in rows if row.differing]
        equal = f"{len(rows) - len(wrong)} of {len(rows)} draws have the bits of the host's engine"
        yield f"{path}: {equal}; N(0, 1) has mean {mean:.5f} and std {std:.5f}"
        yield from (f"  {r.draw}: {r.error or f'{r.differing} of {r.elements} elements differ'}" for r in wrong[:5])
        if len(wrong) > 5:
            yield f"  and {len(wrong) - 5} more"


def _timed_lines(timed: list[Timing]) -> Iterator[str]:
    for at, row in enumerate(timed):
        if at == 0:
            yield f"{'ns an element':<28}" + "".join(f"{path:>18}" for path in row.nanoseconds)
        times = "".join(f"{time:>18.3f}" for time in row.nanoseconds.values())
        yield f"{f'{row.draw} {row.elements:,}':<28}{times}"


if __name__ == "__main__":
    sys.exit(main())
