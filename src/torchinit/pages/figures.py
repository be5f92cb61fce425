"""Figures: numbers by depth, and how values are distributed, as plain data that is drawn elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a figure: a value at each place, NaN where there is none.

    ``predicted`` are the values that were expected there, None where nobody knows.
    """

    label: str
    values: tuple[float, ...]
    predicted: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """One measure by depth on a logarithmic scale, of one start or of two: the second is drawn dashed.

    ``places`` are the names of what lies along the axis, ``unit`` says what they are; ``band`` is where healthy values
    end. A value of zero or infinity has a line of its own at the edge.

    >>> figure = Figure("signal", "Signal", ("0", "2"), (Series("this start", (1.0, 0.5)),), "layer")
    >>> figure.ratio, figure.alternative
    (0.5, 'Signal: this start goes from 1 at 0 to 0.5 at 2.')
    """

    name: str
    title: str
    places: tuple[str, ...]
    series: tuple[Series, ...]
    unit: str = "place"
    caption: str = ""
    band: tuple[float, float] | None = None

    @property
    def ratio(self) -> float:
        """The last value of the first line in parts of its first; NaN where there is none."""
        known = [value for value in self.series[0].values if not math.isnan(value)]
        return known[-1] / known[0] if len(known) > 1 and 0 < known[0] < math.inf else math.nan

    @property
    def alternative(self) -> str:
        """The figure in words, for those who do not see it."""
        return " ".join(self._sentences())

    def _sentences(self) -> Iterator[str]:
        for each in self.series:
            known = [(place, value) for place, value in zip(self.places, each.values, strict=False) if value == value]
            if known:
                (first, start), (last, end) = known[0], known[-1]
                text = f"{each.label} goes from {digits(start)} at {first} to {digits(end)} at {last}"
                yield f"{self.title}: {text}."
        if self.band:
            yield f"Healthy is {digits(self.band[0])} to {digits(self.band[1])}."

    @property
    def is_empty(self) -> bool:
        """Whether no line has two values to connect."""
        return all(sum(value == value for value in each.values) < 2 for each in self.series)


@dataclass(frozen=True, slots=True)
class Distribution:
    """How often values occur between ``low`` and ``high``, in ``counts`` of equal width.

    ``curve`` holds points of the density that was planned, at the middle of each count.

    >>> Distribution("w", "planned N(0, 1)", -1.0, 1.0, (1, 3)).densities
    (0.25, 0.75)
    """

    title: str
    caption: str
    low: float
    high: float
    counts: tuple[int, ...]
    curve: tuple[float, ...] = ()
    beside: Distribution | None = None

    @property
    def densities(self) -> tuple[float, ...]:
        """The share of each count by its width."""
        width = (self.high - self.low) / len(self.counts)
        total = sum(self.counts) or 1
        return tuple(number / total / width for number in self.counts)


def digits(value: float, number: int = 3) -> str:
    """The number with the digits that mean something: 0 and 1 as they are, none of what is not a number.

    >>> digits(0.0), digits(0.0199963), digits(2.9e-24), digits(50257.0), digits(math.nan)
    ('0', '0.02', '2.9e-24', '50,257', '-')
    """
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if 10 ** (number - 1) <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:.{number}g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
