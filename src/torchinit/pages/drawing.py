"""Drawing: figures as SVG that needs no font, no script and no file of its own, in light and in dark."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape as escaped
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeAlias

from torchinit._text import one_line, plain
from torchinit.pages.figures import Distribution, Figure, Series, digits

Point: TypeAlias = tuple[float, float]
Box: TypeAlias = tuple[float, float, float, float]

WIDTH, HEIGHT = 480, 246
"""The size of a figure, in pixels where it is shown as it is."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 470.0, 14.0, 204.0
_LETTER: Final = 6.6
_MOST_DOTS: Final = 60
_DOT: Final = 2.8
_FEW: Final = 2
"""The most lines that have their names among them; more have them in a margin."""
_MARGIN: Final = 200

# Two colours have a meaning, teal for this start and rose for the other one, which is dashed as well. They differ in
# lightness, too, so they hold for the colour-blind, and have a contrast of 4.5 on their page, as the dim text has.
COLOURS: Final = (
    "--page:#fcfcfa;--ink:#1c1f23;--dim:#61676e;--edge:#dfe1dd;--field:#ffffff;"
    "--one:#0a716c;--pale:#a5d3ce;--band:#e6efec;--two:#c6304f;--warn:#8a5a00"
)
DARK: Final = (
    "--page:#141617;--ink:#eceae4;--dim:#9ba1a7;--edge:#2f3335;--field:#1a1d1f;"
    "--one:#4dc6bb;--pale:#285f5b;--band:#1c2b2a;--two:#f2808f;--warn:#e0b050"
)


def style() -> str:
    """The style of figures, to which the colours come."""
    return (Path(__file__).parent / "figure.css").read_text("utf-8").rstrip()


def standalone(svg: str, width: int, height: int, title: str = "", caption: str = "") -> str:
    """The drawing as a file of its own: with its colours, on a page of its own, below its title."""
    dark = f"@media (prefers-color-scheme:dark){{svg{{{DARK}}}}}"
    heading = ".ti-figure .title{font-size:15px;font-weight:600;fill:var(--ink)}"
    rules = f"<style>svg{{color-scheme:light dark;{COLOURS}}}\n{dark}\n{style()}\n{heading}</style>"
    lines = [title, *textwrap.wrap(caption, width // 6)]
    kinds = ["title", *[""] * (len(lines) - 1)]
    texts = (f'<text class="{kind}" x="8" y="{22 + 16 * at}">{escape(line)}</text>'
             for at, (kind, line) in enumerate(zip(kinds, lines, strict=True)))  # fmt: skip
    above = 16 * len(lines) + 14
    inner = svg.replace("<svg ", f'<svg y="{above}" width="{width}" height="{height}" ', 1)
    size = f'width="{width}" height="{height + above}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="ti-figure" viewBox="0 0 {width} {height + above}" {size}>'
    page = f'<rect {size} fill="var(--page)"/>'
    return "\n".join([head, rules, page, *texts, inner, "</svg>", ""])


def drawn_to_file(figure: Figure) -> str:
    """The figure as an SVG file of its own, with its title and caption.

    >>> figure = Figure("signal", "Signal", ("0", "1"), (Series("<b>", (1.0, 0.5)),), caption="by depth")
    >>> drawn_to_file(figure).count("&lt;b&gt;"), "by depth" in drawn_to_file(figure)
    (2, True)
    """
    return standalone(draw(figure), _width(figure), HEIGHT, figure.title, figure.caption)


def _width(figure: Figure) -> int:
    return WIDTH + _MARGIN * (len(figure.series) > _FEW)


# --- a measure by depth ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scale:
    """Decades from ``low`` to ``high`` between ``bottom`` and ``top``; zero and infinity beyond them."""

    low: int
    high: int
    top: float
    bottom: float

    def y(self, value: float) -> float:
        """The height of a value, which is not NaN."""
        return self.height(math.log10(value)) if 0 < value < math.inf else _TOP if value > 0 else _BOTTOM

    def height(self, exponent: float) -> float:
        """The height of a power of ten."""
        share = (exponent - self.low) / (self.high - self.low)
        return self.bottom - (self.bottom - self.top) * min(max(share, 0.0), 1.0)

    @property
    def ticks(self) -> range:
        """The decades that are named, six at most."""
        return range(self.low, self.high + 1, -(-(self.high - self.low) // 5))


def _scale(figure: Figure) -> _Scale:
    every = (value for each in figure.series for value in (*each.values, *each.predicted) if value is not None)
    values = [value for value in every if not math.isnan(value)]
    known = [math.log10(value) for value in values if 0 < value < math.inf] or [0.0]
    ends = [end for end in figure.band or () if 0 < end < math.inf]
    known += [math.log10(end) for end in ends]
    low, high = math.floor(min(known) - 0.15), math.ceil(max(known) + 0.15)
    top = _TOP + 20 if math.inf in values else _TOP
    return _Scale(low, max(high, low + 2), top, _BOTTOM - 22 if min(values, default=1) <= 0 else _BOTTOM)


@dataclass
class _Canvas:
    """Where lines and labels are, so that no label is put on top of either; of lines points in small steps."""

    points: list[Point]
    boxes: list[Box] = field(default_factory=list)

    def is_free(self, box: Box) -> bool:
        left, top, right, bottom = box
        apart = all(right < b[0] or b[2] < left or bottom < b[1] or b[3] < top for b in self.boxes)
        inside = any(left <= x <= right and top - _DOT <= y <= bottom + _DOT for x, y in self.points)
        return apart and not inside and top > 0 and bottom < _BOTTOM

    def place(self, width: float, right: float, y: float, *, below: bool) -> float:
        """The height of a label that ends at the right, as near to a height as is free; above it if none is."""
        tried = [y + sign * step + 4 for step in range(8, 140, 4) for sign in ((1, -1) if below else (-1, 1))]
        free = (at for at in tried if self.is_free((right - width, at - 11, right, at + 4)))
        chosen = next(free, y - 8)
        self.boxes.append((right - width, chosen - 11, right, chosen + 4))
        return chosen


def _along(line: Sequence[Point]) -> Iterator[Point]:
    for (x, y), (x2, y2) in pairwise(line):
        yield from ((x + step / 12 * (x2 - x), y + step / 12 * (y2 - y)) for step in range(13))


def draw(figure: Figure) -> str:
    """The figure as an SVG element; its title and description are for screen readers.

    >>> figure = Figure("signal", "Signal", ("0", "1"), (Series("this start", (1.0, 0.5)),))
    >>> draw(figure)[:60]
    '<svg class="ti-figure" viewBox="0 0 480 246" role="img" aria'
    """
    scale, xs = _scale(figure), _across(figure)
    drawn = [[(xs[at], scale.y(each.values[at])) for at in each.known] for each in figure.series]
    canvas = _Canvas([point for line in drawn for point in _along(line)])
    band, healthy = _band(figure, scale, canvas)
    parts = [band, *_axes(figure, scale, xs), healthy, *_predictions(figure, scale, xs)]
    for each, points in zip(figure.series, drawn, strict=True):
        parts += _line(figure, each, points)
    parts += _within(figure, drawn, canvas) if len(drawn) <= _FEW else _beside(figure, drawn)
    return _svg(_width(figure), HEIGHT, figure.alternative, parts)


def _svg(width: int, height: int, text: str, parts: Iterable[str]) -> str:
    head = f'<svg class="ti-figure" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(text)}">'
    return "".join([head, *parts, "</svg>"])


def _across(figure: Figure) -> list[float]:
    places = [*map(math.log, figure.sizes)] or [*map(float, range(len(figure.places)))]
    low, wide = min(places, default=0.0), max(places, default=0.0) - min(places, default=0.0)
    return [_LEFT + 4 + (_RIGHT - 8 - _LEFT) * (each - low) / (wide or 1.0) for each in places]


def _band(figure: Figure, scale: _Scale, canvas: _Canvas) -> tuple[str, str]:
    """The band of healthy values, below the grid, and its name, above it."""
    if figure.band is None:
        return "", ""
    low, high = figure.band
    top, bottom = scale.y(high) if high < math.inf else scale.top, scale.y(low) if low > 0 else scale.bottom
    size = f'width="{_RIGHT - _LEFT:g}" height="{bottom - top:.1f}"'
    band = f'<rect class="band" x="{_LEFT:g}" y="{top:.1f}" {size}/>'
    corners = [(x, y) for y in (top + 15, bottom - 4) for x in (_LEFT + 56, _RIGHT - 6)]
    for x, y in corners:
        box = x - 48, y - 11, x, y + 4
        if bottom - top > 14 and canvas.is_free(box):
            canvas.boxes.append(box)
            return band, f'<text class="healthy end" x="{x:g}" y="{y:.1f}">healthy</text>'
    return band, ""


def _axes(figure: Figure, scale: _Scale, xs: Sequence[float]) -> Iterator[str]:
    for decade in scale.ticks:
        text = "1" if decade == 0 else "10" if decade == 1 else f'10<tspan dy="-4" font-size="8.5">{decade}</tspan>'
        yield _tick("grid", scale.height(decade), text)
    edges = [("0", _BOTTOM)] * (scale.bottom < _BOTTOM) + [("∞", _TOP)] * (scale.top > _TOP)
    yield from (_tick("edge", y, text) for text, y in edges)
    names, step = figure.places if figure.sizes else _short(figure.places), -(-len(xs) // 12)
    for x, name in [*zip(xs, names, strict=True)][::step]:
        yield f'<text class="middle" x="{x:.1f}" y="{_BOTTOM + 18:g}">{escape(name)}</text>'
    yield f'<text class="middle" x="{(_LEFT + _RIGHT) / 2:g}" y="{_BOTTOM + 36:g}">{escape(figure.unit)}</text>'


def _tick(kind: str, y: float, text: str) -> str:
    line = f'<path class="{kind}" d="M{_LEFT:g} {y:.1f}H{_RIGHT:g}"/>'
    return f'{line}<text class="end" x="{_LEFT - 7:g}" y="{y + 4:.1f}">{text}</text>'


def _short(places: Sequence[str]) -> list[str]:
    """The numbers of blocks where they tell the places apart, else the places counted from 0."""
    numbers = [next((part for part in reversed(place.split(".")) if part.isdigit()), "") for place in places]
    return numbers if all(numbers) and len({*numbers}) == len(numbers) else [str(at) for at in range(len(places))]


def _predictions(figure: Figure, scale: _Scale, xs: Sequence[float]) -> Iterator[str]:
    for each in figure.series[:1]:
        points = [(x, scale.y(value)) for x, value in zip(xs, each.predicted, strict=False) if value is not None]
        if len(points) > 1:
            yield f'<path class="predicted" d="{_path(points)}"/>'


def _line(figure: Figure, series: Series, points: Sequence[Point]) -> Iterator[str]:
    yield f'<g class="{_kind(series)}"><path class="line" d="{_path(points)}"/>' if points else "<g>"
    if len(points) <= _MOST_DOTS:
        for at, (x, y) in zip(series.known, points, strict=True):
            title = f"{escape(figure.places[at])}: {digits(series.values[at])}"
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_DOT}"><title>{title}</title></circle>'
    yield "</g>"


def _kind(series: Series) -> str:
    return "two" if series.dashed else "one"


def _within(figure: Figure, drawn: Sequence[Sequence[Point]], canvas: _Canvas) -> Iterator[str]:
    """The names of a few lines, each near the end of its line: of the upper one above it, of the lower one below."""
    ends = [(points[-1], each) for each, points in zip(figure.series, drawn, strict=True) if points]
    for place, ((end, y), series) in enumerate(sorted(ends, key=lambda one: one[0][1])):
        label = cut(series.label, 44)
        wide = _LETTER * len(label)
        x = min(end + 10 + wide, _RIGHT - 5)
        at = canvas.place(wide, x, y, below=place > 0)
        yield f'<g class="{_kind(series)}"><text class="name end" x="{x:g}" y="{at:.1f}">{escape(label)}</text></g>'


def _beside(figure: Figure, drawn: Sequence[Sequence[Point]]) -> Iterator[str]:
    """The names of many lines in the margin, those of dashed ones if there is no room for all."""
    ends = [(points[-1][1], each) for each, points in zip(figure.series, drawn, strict=True) if points]
    room = int(_BOTTOM) // 13
    chosen = sorted(ends, key=lambda end: not end[1].dashed)[:room]
    left, y = len(chosen), -math.inf
    for end, each in sorted(chosen, key=lambda pair: pair[0]):
        left -= 1
        y = min(max(end + 4, y + 13), _BOTTOM - 13 * left)
        label = f'<text class="name" x="{_RIGHT + 6:g}" y="{y:.1f}">{escape(cut(each.label, 28))}</text>'
        yield f'<g class="{_kind(each)}">{label}</g>'


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def escape(text: str) -> str:
    """The text as it may stand in a page: no markup of its own, nothing unseen."""
    return escaped(plain(text))


def cut(text: str, most: int) -> str:
    """The text in one line, without its middle where it is long."""
    shown = one_line(text)
    return shown if len(shown) <= most else f"{shown[: most // 3]}…{shown[most // 3 + 1 - most :]}"


# --- how values are distributed --------------------------------------------------------------------------------------

SMALL: Final = (152, 84)
"""The size of a small multiple."""


def draw_distribution(each: Distribution, low: float, high: float) -> str:
    """A histogram of values between ``low`` and ``high``, with the planned density over it.

    >>> "bars" in draw_distribution(Distribution("w", "", -1.0, 1.0, (1, 3)), -1.0, 1.0)
    True
    """
    width, height = SMALL
    base, tops = height - 16.0, [*each.densities, *each.curve, *(each.beside.densities if each.beside else ())]
    most = max(tops, default=0.0) or 1.0

    def steps(one: Distribution) -> str:
        """The outline of the counts, from the base and back to it."""
        at, wide = one.low, (one.high - one.low) / len(one.counts)
        texts = [f"M{x(at):.1f} {base:g}"]
        for density in one.densities:
            texts.append(f"V{y(density):.1f}H{x(at := at + wide):.1f}")
        return "".join([*texts, f"V{base:g}"])

    def x(value: float) -> float:
        return width * min(max((value - low) / (high - low), 0.0), 1.0)

    def y(density: float) -> float:
        return base - (base - 4) * density / most

    parts = [f'<path class="bars" d="{steps(each)}z"/>']
    if each.beside is not None:
        parts.append(f'<path class="beside" d="{steps(each.beside)}"/>')
    if each.curve:
        wide = (each.high - each.low) / len(each.curve)
        points = [(x(each.low + wide * (at + 0.5)), y(value)) for at, value in enumerate(each.curve)]
        parts.append(f'<path class="curve" d="{_path(points)}"/>')
    parts.append(f'<path class="grid" d="M0 {base:g}H{width}"/>')
    parts.append(f'<text x="0" y="{height - 3}">{low:.3g}</text>')
    parts.append(f'<text class="end" x="{width}" y="{height - 3}">{high:.3g}</text>')
    return _svg(width, height, f"{each.title}: {each.caption}", parts)


def common_range(distributions: Sequence[Distribution]) -> dict[str, tuple[float, float]]:
    """The range that each is drawn in, by its title: one for all, unless some would be spikes or specks in it.

    >>> common_range([Distribution("a", "", -1.0, 0.5, (1,)), Distribution("b", "", -0.5, 2.0, (1,))])
    {'a': (-2.0, 2.0), 'b': (-2.0, 2.0)}
    """
    ends = {each.title: max(abs(each.low), abs(each.high)) for each in distributions}
    if ends and max(ends.values()) <= 12 * min(ends.values()):
        return dict.fromkeys(ends, (-max(ends.values()), max(ends.values())))
    return {title: (-end, end) for title, end in ends.items()}
