"""Sparklines: a row of numbers as a word of eight heights, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

_HEIGHTS: Final = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], most: int = 48) -> str:
    """The values by the height of their logarithm; zero and what is not finite by a sign, many by every so many.

    >>> sparkline([1.0, 0.1, 0.01, 0.0, math.inf]), sparkline([0.2, 0.21])
    ('█▄▁0∞', '▇█')
    """
    step = -(-len(values) // most) or 1
    shown = [*values[:-1:step], values[-1]] if values else []
    logs = [math.log10(value) for value in shown if 0 < value < math.inf]
    high = max(logs, default=0.0)
    low = min([*logs, high - 0.3])
    return "".join(_letter(value, low, high) for value in shown)


def _letter(value: float, low: float, high: float) -> str:
    if not 0 < value < math.inf:
        return "∞" if value > 0 else "0" if value <= 0 else "·"
    return _HEIGHTS[round((math.log10(value) - low) / (high - low) * 7)]
