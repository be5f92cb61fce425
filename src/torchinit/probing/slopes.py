"""Slopes: straight lines through what was measured at several sizes of a model, judged, as text, data and a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, geometric_mean, linear_regression, stdev
from typing import Final, Literal, NamedTuple, TypeAlias

from torchinit._text import abbreviate, count, did_you_mean, format_table
from torchinit.pages import Figure, Page, Panel, Series
from torchinit.pages.drawing import drawn_to_file
from torchinit.serialization.json import finite_data

Size: TypeAlias = Literal["width", "depth"]
SlopeVerdict: TypeAlias = Literal["flat", "grows", "falls", "undecided", "still", "diverges"]

_LIMITS: Final[Mapping[str, tuple[float, float]]] = {"width": (0.10, 0.25), "depth": (0.15, 0.30)}
"""Up to which slope a layer is flat, and from which on it is not, for infinitely many seeds."""

_FORMAT: Final = "torchinit-coordinates-1"
_FINE: Final = frozenset({"flat", "still"})


class Fit(NamedTuple):
    """A slope of log2 values over log2 sizes, its standard error, and the geometric mean of the values at each size."""

    slope: float
    error: float
    values: tuple[float, ...]


def fit(sizes: Sequence[int], values: Sequence[Sequence[float]]) -> Fit:
    """The straight line through values at several sizes, a row for each seed.

    The error is that of the mean of the seeds' slopes; of one seed, the error of its least squares. A value of zero, or
    one that is not finite, leaves no slope.

    >>> fit((1, 2, 4), [(1.0, 2.0, 4.0), (2.0, 4.0, 8.0)]).slope
    1.0
    """
    columns = [*zip(*values, strict=True)]
    if not all(0 < value < math.inf for row in values for value in row):
        return Fit(math.nan, math.nan, tuple(sum(column) / len(column) for column in columns))
    x, rows = [math.log2(size) for size in sizes], [[math.log2(value) for value in row] for row in values]
    lines = [linear_regression(x, row) for row in rows]
    slopes = [line.slope for line in lines]
    # The slopes of seeds are independent, and their spread has all in it that differs from one to the next. The
    # residuals of one line have not: they take a bend for noise, and miss what the sizes of a seed share. They are for
    # one seed, where there is nothing else; and of two sizes none are left, so that the error is said to be 0 where it
    # is not known.
    if len(slopes) > 1:
        error = stdev(slopes) / math.sqrt(len(slopes))
    else:
        (slope, start), spread = lines[0], sum((each - fmean(x)) ** 2 for each in x)
        left = sum((y - start - slope * each) ** 2 for each, y in zip(x, rows[0], strict=True))
        error = math.sqrt(left / (len(x) - 2) / spread) if len(x) > 2 else 0.0
    return Fit(fmean(slopes), error, tuple(map(geometric_mean, columns)))


@dataclass(frozen=True, slots=True)
class CoordinateSlope:
    """How a layer's output goes with the size of the model: ``change`` since the first step, ``start`` before it.

    Both are slopes of logarithms, with their standard errors; ``changes`` are the RMS of the change at each size, and
    ``expected`` is the slope that it should have.

    >>> CoordinateSlope("head", "Linear", "head.lm", "width", 0.31, 0.02, 0.0, 0.01, (0.5, 0.62, 0.77)).verdict
    'grows'
    """

    name: str
    layer: str
    role: str
    size: Size
    change: float
    change_error: float
    start: float
    start_error: float
    changes: tuple[float, ...]
    expected: float = 0.0

    @property
    def verdict(self) -> SlopeVerdict:
        """``flat`` within the noise of the expected slope, ``grows`` or ``falls`` far outside of it, ``still`` at zero.

        Flat is a slope of up to 0.10 + 2 standard errors over widths (0.15 over depths), wrong from 0.25 (0.30) and 4
        standard errors on; what lies between is undecided: take sizes that lie further apart.
        """
        if math.isnan(self.change):
            if not any(self.changes):
                return "still"
            return "undecided" if all(map(math.isfinite, self.changes)) else "diverges"
        # Noise must not condemn a layer: it widens what counts as flat, and twice as much of it is needed to count as
        # wrong. So a slope that is measured badly enough is flat; the table shows its error.
        flat, wrong = _LIMITS[self.size]
        off = self.change - self.expected
        if abs(off) <= flat + 2 * self.change_error:
            return "flat"
        if abs(off) >= max(wrong, 4 * self.change_error):
            return "grows" if off > 0 else "falls"
        return "undecided"

    @property
    def told(self) -> str:
        """The verdict as it is shown: what is as steep as it should be is not called flat."""
        return "as expected" if self.expected and self.verdict == "flat" else self.verdict

    def __str__(self) -> str:
        goal = f", {'of' if self.verdict == 'flat' else 'not'} {self.expected:+.2f}" if self.expected else ""
        slope = _plus_minus(self.change, self.change_error)
        return f"{self.name} ({self.role or self.layer}): its change {self.told}, slope {slope}{goal}"


@dataclass(frozen=True, slots=True)
class CoordCheck:
    """The result of :func:`torchinit.coord_check`: a slope for each layer, in order of execution; ``str`` is a table.

    ``losses`` are those after the last step, by size; ``about`` names the model and the optimizer.

    >>> check = CoordCheck("width", (64, 128), 5, 1, (), (2.3, 2.2), "MLP, Adam")
    >>> print(check.summary())
    no layer's change was measured over width 64 to 128, 5 steps, 1 seed; MLP, Adam
    """

    kind: Size
    sizes: tuple[int, ...]
    steps: int
    seeds: int
    slopes: tuple[CoordinateSlope, ...]
    losses: tuple[float, ...]
    about: str

    def __len__(self) -> int:
        return len(self.slopes)

    def __iter__(self) -> Iterator[CoordinateSlope]:
        return iter(self.slopes)

    def __getitem__(self, name: str) -> CoordinateSlope:
        """The slope of a layer by its name."""
        found = {each.name: each for each in self.slopes}
        if name not in found:
            raise KeyError(f"no layer {name!r} was measured{did_you_mean(name, found)}")
        return found[name]

    @property
    def flat(self) -> bool:
        """Whether no layer grows, falls or diverges."""
        return not any(each.verdict in ("grows", "falls", "diverges") for each in self.slopes)

    def summary(self) -> str:
        """The verdict in one sentence, with the conditions."""
        runs = f"{count(self.steps, 'step')}, {count(self.seeds, 'seed')}; {self.about}"
        where = f"over {self.kind} {self.sizes[0]} to {self.sizes[-1]}, {runs}"
        if not self.slopes:
            return f"no layer's change was measured {where}"
        names: dict[str, list[str]] = {}
        for each in self.slopes:
            names.setdefault(each.verdict, []).append(each.name)
        moving = len(self.slopes) - len(names.get("still", ()))
        others = (f"; {verdict}: {abbreviate(some)}" for verdict, some in names.items() if verdict not in _FINE)
        steep = " or as steep as expected" if any(each.told == "as expected" for each in self.slopes) else ""
        flat = f"{len(names.get('flat', ()))} of {moving} layers are flat{steep}"
        return f"{'✓' if self.flat else '✗'} {flat}{''.join(others)} {where}"

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """A line for each layer: its slopes, the change at each size, the verdict; then the summary."""
        head, rows = self._rows()
        losses = ["loss", "", "", "", *(f"{loss:.4g}" for loss in self.losses), ""]
        return f"{format_table(head, [*rows, losses])}\n{self.summary()}"

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        head = ["layer", "is", "change", "at the start", *(f"{self.kind} {size}" for size in self.sizes), ""]
        return head, [
            [
                each.name, each.role or each.layer, _plus_minus(each.change, each.change_error),
                _plus_minus(each.start, each.start_error), *(f"{value:.2g}" for value in each.changes), each.told,
            ]
            for each in self.slopes
        ]  # fmt: skip

    def to_dict(self) -> dict[str, object]:
        """All numbers as plain data; None for a slope where there is none."""
        data = asdict(self)
        slopes = [{**asdict(each), "verdict": each.verdict} for each in self.slopes]
        return {"format": _FORMAT, "summary": self.summary(), **finite_data({**data, "slopes": slopes})}

    def to_json(self, *, indent: int | None = 2) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def to_svg(self) -> str:
        """A picture: the change of each layer over the size, both axes logarithmic; bad layers are dashed."""
        return drawn_to_file(self.figure())

    def figure(self) -> Figure:
        """The same as plain data."""
        series = (
            Series(f"{each.name} {each.change:+.2f}", each.changes, dashed=each.verdict not in ("flat", "undecided"))
            for each in self.slopes
            if all(0 < value < math.inf for value in each.changes)
        )
        title, sizes = f"What {count(self.steps, 'step')} change of each layer's output (RMS)", map(float, self.sizes)
        places = tuple(map(str, self.sizes))
        return Figure("change", title, places, tuple(series), self.kind, self.summary(), None, tuple(sizes))

    def save_svg(self, path: str | Path) -> None:
        """Write the picture to a file."""
        Path(path).write_text(self.to_svg(), "utf-8")

    def save_html(self, path: str | Path) -> None:
        """Write the picture and the table as one HTML file. Raises MissingExtraError without the extra ``report``."""
        head, rows = self._rows()
        figure = replace(self.figure(), caption="Beside each name its slope; what is not flat is dashed.")
        panel = Panel(f"By {self.kind}", (figure,), tuple(head), tuple(map(tuple, rows)))
        Page(self.about, self.summary()[2:], "good" if self.flat else "error", panels=(panel,)).save(path)


def _plus_minus(slope: float, error: float) -> str:
    return "-" if math.isnan(slope) else f"{slope:+.2f} ± {error:.2f}"
