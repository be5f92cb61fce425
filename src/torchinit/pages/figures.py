"""Figures: numbers by depth, and how values are distributed, as plain data that is drawn elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torchinit._text import count


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a figure: a value at each place, NaN where there is none.

    ``predicted`` are the values that were expected there, None where nobody knows. What is beside the point of the
    figure, or against it, is ``dashed``, in the second colour.

    >>> Series("this start", (1.0, float("nan"), 0.5)).known
    [0, 2]
    """

    label: str
    values: tuple[float, ...]
    predicted: tuple[float | None, ...] = ()
    dashed: bool = False

    @property
    def known(self) -> list[int]:
        """The places that have a value."""
        return [at for at, value in enumerate(self.values) if not math.isnan(value)]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measure by depth, or by size, on a logarithmic scale: a line for each of a few starts, or of many layers.

    ``places`` are the names of what lies along the axis, ``unit`` says what they are; they are evenly spaced, unless
    ``sizes`` say where, on a logarithmic scale, too. ``band`` is where healthy values end. A value of zero or infinity
    has a line of its own at the edge.

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
    sizes: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        places = count(len(self.places), "place")
        for each in self.series:
            if len(each.values) != len(self.places) or len(each.predicted) not in (0, len(self.places)):
                raise ValueError(f"{self.name}: {each.label!r} takes a value for each of {places}")
        if self.sizes and (len(self.sizes) != len(self.places) or min(self.sizes) <= 0):
            raise ValueError(f"{self.name}: sizes= takes a positive number for each of {places}")

    @property
    def ratio(self) -> float:
        """The last value of the first line in parts of its first; NaN where there is none."""
        known = [self.series[0].values[at] for at in self.series[0].known]
        return known[-1] / known[0] if len(known) > 1 and 0 < known[0] < math.inf else math.nan

    @property
    def alternative(self) -> str:
        """The figure in words, for those who do not see it."""
        return " ".join(self._sentences())

    def _sentences(self) -> Iterator[str]:
        for each in self.series:
            if each.known:
                ends = [f"{digits(each.values[at])} at {self.places[at]}" for at in (each.known[0], each.known[-1])]
                yield f"{self.title}: {each.label} goes from {' to '.join(ends)}."
        if self.band:
            yield f"Healthy is {digits(self.band[0])} to {digits(self.band[1])}."

    @property
    def sparkline(self) -> str:
        """The first line in one line of text: heights by the logarithm, its ends."""
        values = [self.series[0].values[at] for at in self.series[0].known]
        ends = " to ".join(digits(value) for value in (values[0], values[-1])) if values else "-"
        return f"{self.title:<22}{sparkline(values)}  {ends}"

    @property
    def is_empty(self) -> bool:
        """Whether no line has two values to connect."""
        return all(len(each.known) < 2 for each in self.series)


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


def sparkline(values: Sequence[float], most: int = 32) -> str:
    """The values by the height of their logarithm; zero and what is not finite by a sign, of many every so many.

    >>> sparkline([1.0, 0.1, 0.01, 0.0, math.inf]), sparkline([0.2, 0.2])
    ('█▅▁0∞', '██')
    """
    step = -(-len(values) // most) or 1
    shown = [*values[:-1:step], values[-1]] if values else []
    logs = [math.log10(value) for value in shown if 0 < value < math.inf]
    high = max(logs, default=0.0)
    low = min([*logs, high - 0.3])
    heights = ((math.log10(value) - low) / (high - low) if 0 < value < math.inf else None for value in shown)
    pairs = zip(shown, heights, strict=True)
    return "".join(digits(value) if share is None else "▁▂▃▄▅▆▇█"[round(share * 7)] for value, share in pairs)


def bars(values: Sequence[float], width: int) -> list[str]:
    """Each number with a bar, whose length is its logarithm between the smallest and the largest, a decade at least.

    >>> bars([1.0, 0.1], 8), bars([0.0, math.nan], 8)
    (['1.0e+00  ████████', '1.0e-01  █████▊'], ['0        ', '-        '])
    """
    logs = [math.log10(value) for value in values if 0 < value < math.inf]
    high = max(logs, default=0.0)
    low = min([*logs, high - 3]) - 0.5
    return [f"{_rounded(value):<9}{_bar(value, low, high, width)}" for value in values]


def _rounded(value: float) -> str:
    return "-" if math.isnan(value) else "0" if value == 0 else f"{value:.1e}" if math.isfinite(value) else "inf"


def _bar(value: float, low: float, high: float, width: int) -> str:
    if math.isnan(value) or value <= 0:
        return ""
    share = 1.0 if math.isinf(value) else (math.log10(value) - low) / (high - low)
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


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
