"""Timing: calls side by side in one run, so that what else the machine does meets all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

REPEATS = 9


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds of one call: the median, the best, and the quartiles of all repeats."""

    median: float
    best: float
    low: float
    high: float


def side_by_side(
    calls: Mapping[str, Callable[[], object]],
    repeats: int = REPEATS,
    times: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, Spread]:
    """Runs all calls in turn, ``repeats`` times, after one round that does not count, and every other time backwards.

    So none has the caches always as the same other one left them. A call is made ``times`` times and its seconds
    divided. The clock is that of the process: what other programs take from the machine does not count, but threads
    have to be timed by another.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    for round_number in range(repeats + 1):
        for name, call in [*calls.items()][:: 1 if round_number % 2 else -1]:
            begun = clock()
            for _ in range(times):
                call()
            if round_number:
                seconds[name].append((clock() - begun) / times)
    gc.enable()
    return {name: spread(values) for name, values in seconds.items()}


def spread(values: list[float]) -> Spread:
    """The spread of measured seconds."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return Spread(statistics.median(values), min(values), low, high)
