"""Benchmarks of the core: ``python -m benchmarks [--quick] [--write]``, or each file alone by its name."""

from __future__ import annotations

from benchmarks import bookkeeping, checkpoints, draws, models
from benchmarks.results import measure

SECTIONS = {
    "draws": draws.section,
    "bookkeeping": bookkeeping.section,
    "models": models.section,
    "loads": checkpoints.section,
}

if __name__ == "__main__":
    measure(SECTIONS, __doc__)
