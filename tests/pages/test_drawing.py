"""Drawing: where lines and labels are, what screens cannot show, colours that can be told apart."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchinit.pages import Distribution, Figure, Series
from torchinit.pages.drawing import COLOURS, DARK, HEIGHT, WIDTH, draw, draw_distribution, drawn_to_file
from torchinit.pages.figures import digits, sparkline

VALUES = st.floats(0, math.inf) | st.just(math.nan)
LINES = st.integers(1, 30).flatmap(
    lambda length: st.lists(st.lists(VALUES, min_size=length, max_size=length).map(tuple), min_size=1, max_size=30)
)


def figure(*lines: tuple[float, ...], **options: object) -> Figure:
    places = tuple(f"h.{at}" for at in range(len(lines[0])))
    series = [Series(f"line {at}", values, dashed=at == 1) for at, values in enumerate(lines)]
    return Figure("signal", "Signal", places, tuple(series), **options)  # type: ignore[arg-type]


def circles(svg: str) -> list[tuple[float, float]]:
    found = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)
    return [(float(x), float(y)) for x, y in found]


@given(LINES, st.none() | st.tuples(st.floats(0, 1), st.floats(1, math.inf)))
def test_any_numbers_are_drawn_inside_of_the_picture(
    lines: list[tuple[float, ...]], band: tuple[float, float] | None
) -> None:
    text = draw(figure(*lines, band=band))
    root = ElementTree.fromstring(text)
    wide, tall = map(float, root.attrib["viewBox"].split()[2:])
    assert (wide, tall) == (WIDTH + 200 * (len(lines) > 2), HEIGHT)
    assert "nan" not in re.sub(r"<title>.*?</title>|aria-label=\"[^\"]*\"", "", text)
    numbers = [float(each) for each in re.findall(r' (?:c?[xy]|width|height)="(-?[\d.]+)"', text)]
    assert all(0 <= number <= wide for number in numbers)
    ElementTree.fromstring(drawn_to_file(figure(*lines, band=band)))


def test_a_decade_is_as_high_everywhere_and_places_are_evenly_apart() -> None:
    points = circles(draw(figure((100.0, 10.0, 1.0, 0.1))))
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(points)]
    assert all(step == pytest.approx(steps[0], abs=0.11) for step in steps)
    assert steps[0][1] > 10


def test_sizes_are_on_a_logarithmic_scale() -> None:
    xs = [x for x, _ in circles(draw(figure((1.0, 1.0, 1.0), sizes=(64.0, 128.0, 1024.0))))]
    assert (xs[2] - xs[1]) / (xs[1] - xs[0]) == pytest.approx(3, rel=0.01)


def test_zero_and_infinity_have_lines_of_their_own() -> None:
    svg = draw(figure((math.inf, 1.0, 1e-3, 0.0, math.nan)))
    heights = [y for _, y in circles(svg)]
    assert heights == sorted(heights)
    assert len({*heights}) == 4
    assert ">∞<" in svg
    assert ">0<" in svg
    assert ">0<" not in draw(figure((1.0, 0.5))).partition("block")[0].replace('middle" x="48.0" y="222">0<', "")


def test_the_prediction_is_a_line_of_its_own_where_it_is_known() -> None:
    line = Series("this start", (1.0, 1.0, 1.0), (None, 2.0, 2.0))
    one = Figure("signal", "Signal", ("0", "1", "2"), (line,))
    assert draw(one).count('class="predicted"') == 1
    assert "predicted" not in draw(figure((1.0, 1.0, 1.0)))


def test_two_starts_are_told_by_dash_colour_and_a_name_each_that_cover_nothing() -> None:
    svg = draw(figure((1.0, 0.9, 0.8), (1.1, 1.0, 0.9)))
    assert '<g class="two">' in svg
    heights = names_of(svg)
    assert heights.keys() == {"line 0", "line 1"}
    assert abs(heights["line 0"] - heights["line 1"]) >= 12
    for y in heights.values():  # letters reach from 9 above to 2 below; a dot has a radius of 2.8
        assert not [dot for x, dot in circles(svg) if x > 420 and y - 9 - 2.8 < dot < y + 2 + 2.8]


def names_of(svg: str) -> dict[str, float]:
    return {name: float(y) for y, name in re.findall(r'class="name end" x="[\d.]+" y="([\d.]+)">(.*?)<', svg)}


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_lines_that_end_near_each_other_the_upper_one_has_the_upper_name(first: int) -> None:
    rising, flat = tuple(10.0**at for at in range(-30, -2)), (0.01,) * 28
    lines = (rising, flat) if first == 0 else (flat, rising)
    names = names_of(draw(figure(*lines)))
    assert names[f"line {1 - first}"] < names[f"line {first}"]


def test_no_line_of_the_grid_goes_through_the_name_of_the_band() -> None:
    svg = draw(figure((1.0, 0.9), band=(1e-3, 1e3)))
    assert svg.index('class="grid"') < svg.index(">healthy<") < svg.index('class="line"')


def test_the_name_of_a_line_that_ends_early_is_at_its_end() -> None:
    svg = draw(figure((1.0, 2.0, math.nan, math.nan, math.nan, math.nan)))
    (x,) = re.findall(r'class="name end" x="([\d.]+)"', svg)
    assert circles(svg)[-1][0] < float(x) < 0.5 * WIDTH


def test_many_lines_have_their_names_apart_in_the_margin_and_bad_ones_first() -> None:
    lines = [(1.0, 1.0 + at / 100) for at in range(40)]
    svg = draw(figure(*lines))
    labels = re.findall(r'<text class="name" x="[\d.]+" y="([\d.]+)">(.*?)</text>', svg)
    heights = [float(y) for y, _ in labels]
    assert all(b - a >= 12.9 for a, b in pairwise(heights))
    assert 0 < heights[0] < heights[-1] <= HEIGHT
    assert "line 1" in [name for _, name in labels]  # the dashed one


@pytest.mark.parametrize(
    ("series", "options"),
    [
        (Series("a", (1.0,)), {}),
        (Series("a", (1.0, 2.0), (1.0,)), {}),
        (Series("a", (1.0, 2.0)), {"sizes": (1.0, 0.0)}),
    ],
)
def test_what_does_not_fit_is_told(series: Series, options: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match=r"signal: .* takes? a (value|positive number) for each of 2 places"):
        Figure("signal", "Signal", ("0", "1"), (series,), **options)  # type: ignore[arg-type]


def test_a_histogram_has_the_area_of_its_density() -> None:
    each = Distribution("w", "", -2.0, 2.0, (1, 2, 4, 1))
    svg = draw_distribution(each, -2.0, 2.0)
    path = re.search(r'class="bars" d="([^"]*)"', svg)
    assert path is not None
    tops = [float(y) for y in re.findall(r"V([\d.]+)H", path[1])]
    heights = [68 - top for top in tops]
    assert [height / heights[2] for height in heights] == pytest.approx([0.25, 0.5, 1, 0.25], abs=0.01)
    assert sum(each.densities) * 1.0 == pytest.approx(1)


@pytest.mark.parametrize("colours", [COLOURS, DARK])
def test_colours_can_be_read_on_their_page(colours: str) -> None:
    def light(name: str) -> float:
        found = re.search(rf"--{name}:#(\w{{6}})", colours)
        assert found is not None
        parts = [int(found[1][at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        low, high = sorted((light(one), light(other)))
        return (high + 0.05) / (low + 0.05)

    for text in ("ink", "dim", "one", "two", "warn"):
        assert contrast(text, "page") >= 4.5  # the least of WCAG 2.1 for text
    assert contrast("one", "band") >= 4.5


def test_numbers_have_the_digits_that_mean_something() -> None:
    assert [digits(each) for each in (0.0, 1.0, 0.00123456, 1234.5, 1e-30, math.inf, -math.inf, math.nan)] == [
        "0", "1", "0.00123", "1,234", "1e-30", "∞", "-∞", "-",
    ]  # fmt: skip


@given(st.lists(VALUES, max_size=200))
def test_a_sparkline_is_a_word(values: list[float]) -> None:
    text = sparkline(values)
    assert len(text) <= 33
    assert set(text) <= set("▁▂▃▄▅▆▇█0∞-")
    assert bool(text) == bool(values)
