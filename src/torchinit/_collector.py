"""Python's garbage collector, kept out of loops that make many objects which all stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused(paused: bool = True) -> Iterator[bool]:
    """Without the collector of cycles, which is afterwards as it was: for short stretches, as decorator or block.

    It tells whether the collector was on. If it was, ``collector_paused(False)`` switches it on within.

    >>> with collector_paused():
    ...     gc.isenabled()
    False
    >>> gc.isenabled()
    True
    """
    # The collector starts whenever so many objects have been made, and goes over them and, from time to time, over all
    # that the process holds: on a model of 20,000 tensors half of the time went there, for nothing, since sites, steps
    # and records hold no cycles and stay. Other threads go without it for the same milliseconds, and so does what
    # little code of users' own runs in between (a selector, a parametrization): their garbage is then collected later.
    # Reference counts free everything else at once, as ever. Where two threads are here at a time, the first that
    # leaves switches it on for both, which costs time and nothing else.
    was_enabled = gc.isenabled()
    (gc.disable if paused else gc.enable)()
    try:
        yield was_enabled
    finally:
        if was_enabled:
            gc.enable()
        elif not paused:  # never off after a pause that found it off: that may have been another thread's, and be over
            gc.disable()
