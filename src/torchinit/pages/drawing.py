"""Drawing: figures as SVG that needs no font, no script and no file of its own, in light and in dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final, TypeAlias

from torchinit.pages.figures import Distribution, Figure, Series

Point: TypeAlias = tuple[float, float]
Box: TypeAlias = tuple[float, float, float, float]

WIDTH, HEIGHT = 480, 246
"""The size of a figure, in pixels where it is shown as it is."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 470.0, 14.0, 204.0
_LETTER: Final = 6.6
_MOST_DOTS: Final = 60

# Two colours have a meaning, teal for this start and rose for the other one, which is dashed as well. They differ in
# lightness, too, so they hold for the colour-blind, and have a contrast of 4.5 on their page, as the dim text has.
COLOURS: Final = """--page:#fcfcfa;--ink:#1c1f23;--dim:#61676e;--edge:#dfe1dd;--band:#e6efec;--one:#0b7a75;--pale:#a5d3ce;--two:#c6304f;--field:#ffffff;--warn:#8a5a00"""
DARK: Final = """--page:#141617;--ink:#eceae4;--dim:#9ba1a7;--edge:#2f3335;--band:#1c2b2a;--one:#4dc6bb;--pale:#285f5b;--two:#f2808f;--field:#1a1d1f;--warn:#e0b050"""
STYLE: Final = """\
.ti-figure text{font:11.5px system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;fill:var(--dim)}
.ti-figure .end{text-anchor:end}.ti-figure .middle{text-anchor:middle}
.ti-figure .name{font-weight:600;paint-order:stroke;stroke:var(--page);stroke-width:3px}
.ti-figure .healthy{fill:var(--one)}
.ti-figure .grid{stroke:var(--edge);fill:none}.ti-figure .edge{stroke:var(--dim);stroke-dasharray:1 3}
.ti-figure .band{fill:var(--band)}
.ti-figure .predicted{fill:none;stroke:var(--pale);stroke-width:9;stroke-linejoin:round;stroke-linecap:round}
.ti-figure .line{fill:none;stroke-width:2;stroke-linejoin:round}
.ti-figure .one .line{stroke:var(--one)}.ti-figure .two .line{stroke:var(--two);stroke-dasharray:5 4}
.ti-figure .one circle,.ti-figure .one .name{fill:var(--one)}.ti-figure .two circle,.ti-figure .two .name{fill:var(--two)}
.ti-figure .bars{fill:var(--pale)}.ti-figure .curve{fill:none;stroke:var(--ink);stroke-width:1.4}
.ti-figure .beside{fill:none;stroke:var(--two);stroke-width:1.2;stroke-dasharray:3 2}"""


def standalone(svg: str, size: tuple[int, int], title: str = "", caption: str = "") -> str:
    """The drawing as a file of its own: with its colours, on a page of its own, below its title."""
    width, height = size
    above = 48 if title else 8
    texts = [f'<text x="8" y="20" class="title">{escape(title)}</text>'] if title else []
    texts += [f'<text x="8" y="38">{escape(caption)}</text>'] if caption else []
    inner = svg.replace("<svg ", f'<svg y="{above}" width="{width}" height="{height}" ', 1)
    view = f'viewBox="0 0 {width} {height + above}" width="{width}" height="{height + above}"'
    page = f'<rect width="{width}" height="{height + above}" fill="var(--page)"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="ti-figure" {view}>'
    return "\n".join([head, f"<style>{file_style()}</style>", page, *texts, inner, "</svg>", ""])


def file_style() -> str:
    """The style of a drawing in a file of its own."""
    title = ".ti-figure .title{font-size:15px;font-weight:600;fill:var(--ink)}"
    dark = f"@media (prefers-color-scheme:dark){{svg{{{DARK}}}}}"
    return f"svg{{color-scheme:light dark;{COLOURS}}}\n{dark}\n{STYLE}\n{title}"


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
        if value <= 0:
            return _BOTTOM
        share = (math.log10(value) - self.low) / (self.high - self.low) if value < math.inf else math.inf
        return _TOP if share == math.inf else self.bottom - (self.bottom - self.top) * min(max(share, 0.0), 1.0)

    @property
    def ticks(self) -> range:
        """The decades that are named, six at most."""
        return range(self.low, self.high + 1, -(-(self.high - self.low) // 5))


def _scale(figure: Figure) -> _Scale:
    values = [value for each in figure.series for value in (*each.values, *each.predicted) if value is not None]
    known = [math.log10(value) for value in values if 0 < value < math.inf] or [0.0]
    ends = [end for end in figure.band or () if 0 < end < math.inf]
    known += [math.log10(end) for end in ends]
    low, high = math.floor(min(known) - 0.15), math.ceil(max(known) + 0.15)
    top = _TOP + 20 if math.inf in values else _TOP
    return _Scale(low, max(high, low + 2), top, _BOTTOM - 22 if min(values, default=1) <= 0 else _BOTTOM)


@dataclass
class _Canvas:
    """Where lines and labels are, so that no label is put on top of either."""

    lines: list[list[Point]] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)

    def is_free(self, box: Box) -> bool:
        left, top, right, bottom = box
        apart = all(box[2] < b[0] or b[2] < box[0] or box[3] < b[1] or b[3] < box[1] for b in self.boxes)
        return apart and top > 0 and bottom < _BOTTOM and not any(_crosses(line, box) for line in self.lines)

    def place(self, width: float, right: float, y: float) -> Point:
        """The place of a label that ends at the right, as near to a height as is free; above it if none is."""
        near = (y + sign * step for step in range(8, 140, 4) for sign in (-1, 1))
        tried = [(right, each + 4) for each in near] + [(right, y - 8)]
        free = (at for at in tried if self.is_free((at[0] - width, at[1] - 11, at[0], at[1] + 4)))
        x, y = next(free, tried[-1])
        self.boxes.append((x - width, y - 11, x, y + 4))
        return x, y


def _crosses(line: Sequence[Point], box: Box) -> bool:
    """Whether a line comes into a box, looked at in small steps."""
    left, top, right, bottom = box
    for (x, y), (x2, y2) in zip(line, line[1:], strict=False):
        if x2 < left or x > right:
            continue
        for step in range(13):
            share = step / 12
            if left <= x + share * (x2 - x) <= right and top <= y + share * (y2 - y) <= bottom:
                return True
    return False


def draw(figure: Figure) -> str:
    """The figure as an SVG element; its title and description are for screen readers.

    >>> figure = Figure("signal", "Signal", ("0", "1"), (Series("this start", (1.0, 0.5)),))
    >>> draw(figure)[:60]
    '<svg class="ti-figure" viewBox="0 0 480 246" role="img" aria'
    """
    scale, canvas = _scale(figure), _Canvas()
    xs = _across(len(figure.places))
    drawn = [[(x, scale.y(value)) for x, value in zip(xs, each.values, strict=False) if value == value]
             for each in figure.series]  # fmt: skip
    canvas.lines = drawn
    parts = [*_band(figure, scale, canvas), *_axes(figure, scale, xs), *_predictions(figure, scale, xs)]
    for each, kind, points in zip(figure.series, ("one", "two"), drawn, strict=False):
        parts += _line(figure, each, kind, points, canvas)
    return _svg(WIDTH, HEIGHT, figure.alternative, parts)


def _svg(width: int, height: int, text: str, parts: Iterable[str]) -> str:
    head = f'<svg class="ti-figure" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(text)}">'
    return "".join([head, *parts, "</svg>"])


def _across(number: int) -> list[float]:
    room = _RIGHT - 8 - _LEFT
    return [_LEFT + 4 + room * at / max(1, number - 1) for at in range(number)]


def _band(figure: Figure, scale: _Scale, canvas: _Canvas) -> Iterator[str]:
    if figure.band is None:
        return
    low, high = figure.band
    top, bottom = scale.y(high) if high < math.inf else scale.top, scale.y(low) if low > 0 else scale.bottom
    size = f'width="{_RIGHT - _LEFT:g}" height="{bottom - top:.1f}"'
    yield f'<rect class="band" x="{_LEFT:g}" y="{top:.1f}" {size}/>'
    corners = [(x, y) for y in (top + 15, bottom - 7) for x in (_LEFT + 56, _RIGHT - 6)]
    x, y = next((at for at in corners if canvas.is_free((at[0] - 48, at[1] - 11, at[0], at[1] + 4))), corners[0])
    canvas.boxes.append((x - 48, y - 11, x, y + 4))
    yield f'<text class="healthy end" x="{x:g}" y="{y:.1f}">healthy</text>'


def _axes(figure: Figure, scale: _Scale, xs: Sequence[float]) -> Iterator[str]:
    for decade in scale.ticks:
        y = scale.y(10.0**decade) if decade > -308 else scale.bottom
        text = "1" if decade == 0 else "10" if decade == 1 else f'10<tspan dy="-4" font-size="8.5">{decade}</tspan>'
        yield f'<path class="grid" d="M{_LEFT:g} {y:.1f}H{_RIGHT:g}"/><text class="end" x="{_LEFT - 7:g}" y="{y + 4:.1f}">{text}</text>'
    edges = [("0", _BOTTOM)] * (scale.bottom < _BOTTOM) + [("∞", _TOP)] * (scale.top > _TOP)
    for text, y in edges:
        yield f'<path class="edge" d="M{_LEFT:g} {y:g}H{_RIGHT:g}"/><text class="end" x="{_LEFT - 7:g}" y="{y + 4:g}">{text}</text>'
    names, step = _short(figure.places), -(-len(xs) // 12)
    for x, name in [*zip(xs, names, strict=True)][::step]:
        yield f'<text class="middle" x="{x:.1f}" y="{_BOTTOM + 18:g}">{escape(name)}</text>'
    yield f'<text class="middle" x="{(_LEFT + _RIGHT) / 2:g}" y="{_BOTTOM + 36:g}">{escape(figure.unit)}</text>'


def _short(places: Sequence[str]) -> list[str]:
    """The numbers of blocks where they tell the places apart, else the places counted from 0."""
    numbers = [next((part for part in reversed(place.split(".")) if part.isdigit()), "") for place in places]
    return numbers if all(numbers) and len({*numbers}) == len(numbers) else [str(at) for at in range(len(places))]


def _predictions(figure: Figure, scale: _Scale, xs: Sequence[float]) -> Iterator[str]:
    for each in figure.series[:1]:
        points = [(x, scale.y(value)) for x, value in zip(xs, each.predicted, strict=False) if value is not None]
        if len(points) > 1:
            yield f'<path class="predicted" d="{_path(points)}"/>'


def _line(figure: Figure, series: Series, kind: str, points: Sequence[Point], canvas: _Canvas) -> Iterator[str]:
    if not points:
        return
    yield f'<g class="{kind}"><path class="line" d="{_path(points)}"/>'
    if len(points) <= _MOST_DOTS:
        known = [(place, value) for place, value in zip(figure.places, series.values, strict=False) if value == value]
        for (x, y), (place, value) in zip(points, known, strict=True):
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.8"><title>{escape(place)}: {value:.3g}</title></circle>'
    label = _cut(series.label, 44)
    x, y = canvas.place(_LETTER * len(label), _RIGHT - 5, points[-1][1])
    yield f'<text class="name end" x="{x:g}" y="{y:.1f}">{escape(label)}</text></g>'


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 3]}…{text[most // 3 + 1 - most :]}"


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
