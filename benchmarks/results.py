"""Results: what a benchmark found, as a table that is printed as it grows, and kept where that is asked for.

Kept are the figures in benchmarks/results.json and the tables in docs/explanation/performance.md, section by section,
so that each file can measure its own anew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import torch

from torchinit.noise.engines.dispatch import chosen_kernel

FIGURES = Path(__file__).parent / "results.json"
PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "performance.md"

Section: TypeAlias = Callable[[bool], tuple[object, list[str]]]
"""Measures, in short where that is asked for, and returns figures as plain data and the lines of their tables."""


def machine() -> str:
    """The machine that the figures are measured on, and what else it has to do."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    kernel = chosen_kernel()
    return (
        f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"torch {torch.__version__}; kernel {kernel.name if kernel else 'none'}"
    )


def table(columns: str, rows: Iterable[str]) -> list[str]:
    """A Markdown table, printed as it grows; cells are parted by ``|``."""
    rule = "|".join("---" for _ in columns.split("|"))
    return [_printed(f"|{row}|") for row in chain([f" {columns} ", rule], (f" {row} " for row in rows))]


def _printed(line: str) -> str:
    print(line, flush=True)
    return line


def measure(sections: Mapping[str, Section], description: str | None) -> None:
    """Measure sections as the command line asks: in short with ``--quick``, and kept with ``--write``."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, small models, few repeats")
    parser.add_argument("--write", action="store_true", help="keep the figures in the repository")
    chosen = parser.parse_args()
    for name, section in sections.items():
        where = machine() + ("; a quick run" if chosen.quick else "")
        print(f"\n{name}: {where}\n", flush=True)
        figures, lines = section(chosen.quick)
        if chosen.write:
            _keep(name, where, figures, lines)


def _keep(name: str, where: str, figures: object, lines: list[str]) -> None:
    kept: dict[str, Any] = json.loads(FIGURES.read_text("utf-8"))
    kept[name] = {"machine": where, "figures": figures}
    FIGURES.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")
    begin, end = f"<!-- measured, {name}: begin -->", f"<!-- measured, {name}: end -->"
    before, rest = PAGE.read_text("utf-8").split(begin)
    between = "\n".join([begin, "", f"Machine: {where}.", "", *lines, "", end])
    PAGE.write_text(before + between + rest.split(end)[1], "utf-8")
