"""Page: what others named is text, what is referred to is there, nothing is loaded, and it stays small."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.html import check
from torchinit import MissingExtraError
from torchinit._folding import Column, Row, fold
from torchinit._tables import Table
from torchinit.pages import Distribution, Figure, Page, Panel, Section, Series
from torchinit.pages.page import grid

HOSTILE = ["<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "</style></svg>", "&amp;", "{{ 7 * 7 }}",
           "a\nb\x1b[31m", "\u202eevil", "层.权重", "x" * 300]  # fmt: skip
COLUMNS = Column("shape"), Column("std", "range"), Column("elements", "sum"), Column("mean", "range", spare=5)


def table(names: list[str], foot: tuple[str, ...] = ()) -> Table:
    rows = [
        Row(name, (f"{at + 1}x8", f"{0.5 + at:.3g}", 8 * (at + 1), "0.1"), (name,)) for at, name in enumerate(names)
    ]
    return Table("tensor", COLUMNS, fold(rows, COLUMNS, among=names), foot=foot)


def page(text: str, names: list[str]) -> Page:
    """A page that says a text wherever a text may stand."""
    places = (f"{text}.0", f"{text}.1")
    figure = Figure("signal", text, places, (Series(text, (1.0, 0.1)),), text, text, (0.1, math.inf))
    panel = Panel(text, (figure,), (text, text), ((text, "1"), (text, text)))
    shape = Distribution(text, text, -1.0, 1.0, (1, 2), (0.5, 0.5))
    section = Section(text, table(names, (text,)), text)
    return Page(text, text, "error", (text,), (text,), ((text, text),), (panel,), (shape,), (section,), ((text, text),))


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_are_texts(text: str) -> None:
    made = page(text, HOSTILE)
    parsed = check(made.html())
    check(made.html(fragment=True))
    assert [name for name, _ in parsed.elements].count("script") == 1
    assert not parsed.all("img")
    if text.isprintable():
        assert parsed.text.count(text) > 10
    else:
        assert "\x1b" not in made.html()
        assert "\u202e" not in made.html()


@given(st.lists(st.text(), min_size=1, max_size=12, unique=True), st.text())
def test_any_names(names: list[str], text: str) -> None:
    check(page(text, names).html()).text.encode("utf-8")


def test_a_thousand_tensors_are_not_much() -> None:
    names = [
        f"backbone.stage_{at}.a_module_with_a_long_name.attention.{'qkv'[at % 3]}_proj.weight_{at}"
        for at in range(1000)
    ]
    few = [Distribution(name, "planned N(0, 0.02)", -0.1, 0.1, (*range(40),), (*[0.5] * 40,)) for name in names]
    lines = Series("this start", (0.5,) * 1000, (0.4,) * 1000), Series("other", (0.1,) * 1000, dashed=True)
    figures = (Figure(name, name, tuple(names), lines) for name in ("signal", "gradient", "rms", "spread"))
    panel = Panel("By depth", tuple(figures), ("block", "a"), tuple((name, "0.123") for name in names))
    made = Page("s", "v", panels=(panel,), distributions=tuple(few), sections=(Section("plan", table(names)),) * 2)
    text = made.html()
    assert len(text.encode()) < 3_000_000
    assert len(check(text).all("tr")) > 3000
    assert "The first 24 of 1000 kinds." in text
    assert len(made.html(fragment=True).encode()) < 500_000


def test_without_jinja_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"an HTML page needs .*pip install 'torchinit\[report\]'"):
        Page("s", "v").html()


def test_files_are_written_whole_and_figures_can_be_opened(tmp_path: Path) -> None:
    made = page("<b>", ["a", "b"])
    made.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text("utf-8") == made.html()
    with pytest.raises(OSError, match="nowhere"):
        made.save(tmp_path / "nowhere" / "page.html")
    files = made.save_svg(tmp_path / "figures")
    assert [file.name for file in files] == ["signal.svg", "values-1-b.svg"]
    for file in files:
        assert ElementTree.parse(file).getroot().tag.endswith("svg")


def test_a_table_is_sorted_by_numbers_and_searched_by_all_names() -> None:
    names = ["wte.weight", *(f"h.{at}.fc.weight" for at in range(12))]
    rows = [
        Row(name, ("8x8" if "h." in name else "50257x768", "0.5…2" if "h." in name else "-", 8, "0")) for name in names
    ]
    made = grid(Table("tensor", COLUMNS, fold(rows, COLUMNS, among=names)))
    assert made.heads == (("tensor", False), ("×", True), ("shape", True), ("std", True), ("elements", True))
    (first, top, _), (words, row, _) = made.rows
    assert [cell.text for cell in row] == ["h.*.fc.weight", "12", "8x8", "0.5…2", "96"]
    assert [cell.key for cell in row] == [None, 12.0, 64.0, 0.5, 96.0]
    assert [cell.key for cell in top] == [None, None, 50257 * 768, None, 8.0]
    assert "h.7.fc.weight" in words
    assert "h.7" not in first


def test_long_names_are_cut_in_the_middle_and_whole_in_the_title() -> None:
    name = f"a.{'b' * 80}.weight"
    rows = [Row(each, ("8", "1", 8, "0")) for each in (name, "c")]
    listed = replace(table([name, "c"]), groups=fold(rows, COLUMNS))
    made = check(Page("s", "v", sections=(Section("plan", listed),)).html())
    assert name in [head.get("title") for head in made.all("th")]
    assert name not in made.text
    assert ".weight" in made.text


def test_nothing_to_show_is_shown() -> None:
    empty = Table("site", COLUMNS, (), foot=("no findings",))
    parsed = check(Page("s", "v", sections=(Section("Lint", empty),)).html())
    assert "no findings" in parsed.text
    assert not parsed.all("table")


def test_it_has_an_outline_that_can_be_heard() -> None:
    parsed = check(page("word", [f"n{'x' * at}" for at in range(12)]).html())
    assert parsed.all("html")[0]["lang"] == "en"
    assert len(parsed.all("h1")) == 1
    assert len(parsed.all("h2")) >= 4
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in parsed.all("svg"))
    assert all(head["scope"] in {"col", "row"} for head in parsed.all("th"))
    assert all(
        region["aria-label"] and region["tabindex"] == "0"
        for name, region in parsed.elements
        if region.get("role") == "region"
    )
    assert parsed.all("input")[0]["aria-label"] == "Filter the table: word"
