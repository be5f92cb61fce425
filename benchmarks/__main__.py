"""Runs the benchmarks: ``python -m benchmarks [--quick] [--write]``.

``--write`` keeps the figures: benchmarks/results.json, and the tables in docs/explanation/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks import bookkeeping, checkpoints, draws, models
from torchinit.noise.engines.dispatch import chosen_kernel

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "explanation" / "performance.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

T = TypeVar("T")


def machine() -> str:
    """What the figures were measured on."""
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    kernel = chosen_kernel()
    return (
        f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"torch {torch.__version__}; kernel {kernel.name if kernel else 'none'}"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def draw_table(rows: Iterable[draws.Row]) -> list[str]:
    """The draws as a Markdown table, printed as it grows."""
    lines = [
        "| what | ns a unit, median (best) | against | ns a unit, median (best) | ratio | of the best |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours, theirs = (
            f"{spread.median / row.units * 1e9:.2f} ({spread.best / row.units * 1e9:.2f})"
            for spread in (row.ours, row.theirs)
        )
        lines.append(f"| {row.what} | {ours} | {row.against} | {theirs} | {row.ratio:.2f} | {row.best_ratio:.2f} |")
        print(lines[-1], flush=True)
    return lines


def model_table(runs: Iterable[models.Run]) -> list[str]:
    """The model runs as a Markdown table, printed as it grows."""
    lines = [
        "| model | way | seconds, median (best) | quartiles | of all processors | MiB beyond the parameters |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs:
        clock, processor = run.seconds, run.processor
        spent = f"{clock.median:.3f} ({clock.best:.3f}) | {clock.low:.3f} to {clock.high:.3f} | {processor.median:.3f}"
        lines.append(f"| {run.model} | {run.way} | {spent} | {run.beyond:.1f} |")
        print(lines[-1], flush=True)
    return lines


def memory_table(sizes: dict[str, float]) -> list[str]:
    """What a process holds before any model, as a Markdown table."""
    lines = ["| before any model | MiB |", "|---|---|", *(f"| {name} | {size:.0f} |" for name, size in sizes.items())]
    print("\n".join(lines), flush=True)
    return lines


def main() -> None:
    """Runs what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="./dev bench", description="torchinit beside torch.nn.init")
    parser.add_argument("--quick", action="store_true", help="a minute: small sizes, no model")
    parser.add_argument("--write", action="store_true", help="keep the figures in the repository")
    chosen = parser.parse_args()
    print(machine())
    rows = list[draws.Row]()
    tables = draw_table(_kept(chain(draws.all_rows(chosen.quick), bookkeeping.all_rows(chosen.quick)), rows))
    sizes, runs = dict[str, float](), list[models.Run]()
    beyond, loads = dict[str, float](), list[checkpoints.Load]()
    if not chosen.quick:
        with models.server() as (sizes, found):
            tables += ["", *memory_table(sizes), "", *model_table(_kept(found, runs))]
        with tempfile.TemporaryDirectory() as folder:
            tables += ["", *checkpoints.load_table(_kept(checkpoints.loads(Path(folder)), loads))]
            beyond = checkpoints.beyond(Path(folder))
        tables += ["", *checkpoints.memory_table(beyond)]
    if chosen.write:
        figures = {
            "machine": machine(),
            "draws": [asdict(row) for row in rows],
            "memory": sizes,
            "models": [asdict(run) for run in runs],
            "loads": [asdict(load) for load in loads],
            "part of a large file": beyond,
        }
        (HERE / "results.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
        before, rest = PAGE.read_text().split(BEGIN)
        measured = "\n".join([BEGIN, "", f"Machine: {machine()}.", "", *tables, "", END])
        PAGE.write_text(before + measured + rest.split(END)[1])


def _kept(items: Iterable[T], into: list[T]) -> Iterable[T]:
    for item in items:
        into.append(item)
        yield item


if __name__ == "__main__":
    main()
