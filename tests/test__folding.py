"""Folding: like rows as one line, none lost, none taken for what it is not."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.counting import calls
from torchinit._folding import Column, Row, fold, fold_names, large, rounded_apart, starts_as
from torchinit._text import plain

COLUMNS = (Column("shape"), Column("starts as", "range"), Column("std", "range"), Column("elements", "sum"))
PARTS = st.sampled_from(["h", "w", "0", "1", "2", "7", "11"])
NAMES = st.lists(st.lists(PARTS, min_size=1, max_size=4).map(".".join), unique=True)


def rows(names: list[str], *, layers: int = 5) -> list[Row]:
    return [Row(name, (f"{len(name) % 2}x2", f"N(0, {at % layers / 8})", at / 8, at)) for at, name in enumerate(names)]


@given(NAMES)
def test_every_row_is_in_one_group_and_groups_are_by_their_first(names: list[str]) -> None:
    groups = fold(rows(names), COLUMNS, among=names)
    assert sorted(name for group in groups for name in group.names) == sorted(names)
    firsts = [names.index(group.names[0]) for group in groups]
    assert firsts == sorted(firsts)
    assert sum(int(group.cells[3]) for group in groups) == sum(range(len(names)))


@given(NAMES)
def test_a_label_says_which_layers_are_meant(names: list[str]) -> None:
    """A star and a number mean what they say; of one star, all rows of these names are in groups with this label."""
    for group in fold(rows(names), COLUMNS, among=names):
        for name in group.names:
            for part, text in zip(name.split("."), group.path, strict=True):
                assert text == "*" or part in _numbers(text)
        if group.path.count("*") == 1 and not any(set(text) & set(",-…") for text in group.path):
            at = group.path.index("*")
            pattern = re.compile(
                r"\.".join(r"\d+" if text == "*" else text for text in group.path[: at + 1]) + r"(\.|$)"
            )
            present = {name.split(".")[at] for name in names if pattern.match(name)}
            assert {name.split(".")[at] for name in group.names} == present


def _numbers(text: str) -> set[str]:
    if "…" in text:
        return {str(number) for number in range(100)}
    spans = [part.split("-") for part in text.split(",")]
    return {text} | {str(n) for span in spans if span[0].isdigit() for n in range(int(span[0]), int(span[-1]) + 1)}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_a_range_holds_every_number(values: list[float]) -> None:
    (group,) = fold(
        [Row(f"h.{at}.w", (f"U({value!r}, 1)",)) for at, value in enumerate(values)], (Column("", "range"),)
    )
    shown = re.fullmatch(r"U\((.*), 1\)", str(group.cells[0]))
    assert shown
    low, *more = (float(text) for text in shown[1].split("…"))
    high = more[0] if more else low
    slack = 1e-3 * max(map(abs, values))
    assert low - slack <= min(values) <= max(values) <= high + slack
    assert low == pytest.approx(min(values), rel=1e-3)
    assert high == pytest.approx(max(values), rel=1e-3)


def test_what_differs_in_more_than_numbers_is_apart() -> None:
    texts = ["N(0, 0.02)", "N(0, 0.04)", "U(0, 0.02)", "h.3.w of a.pth", "h.4.w of a.pth"]
    groups = fold([Row(f"h.{at}.w", (text,)) for at, text in enumerate(texts)], (Column("", "range"),))
    assert [(group.label, *group.cells) for group in groups] == [
        ("h.0-1.w", "N(0, 0.02…0.04)"),
        ("h.2.w", "U(0, 0.02)"),
        ("h.3-4.w", "h.*.w of a.pth"),
    ]
    apart = fold([Row(f"h.{at}.w", (f"{at}x2",)) for at in range(2)], (Column("shape"),))
    assert [group.label for group in apart] == ["h.0.w", "h.1.w"]


def test_a_star_is_for_all_layers_there_are() -> None:
    names = [f"h.{at}.w" for at in range(12)]
    assert fold_names(names[:5] + names[6:]) == ["h.0-4,6-11.w ×11"]
    assert fold_names(names, among=[*names, "h.12.w"]) == ["h.0-11.w ×12"]
    assert fold_names(names, among=names) == ["h.*.w ×12"]
    assert fold_names(names[::2], among=names) == ["h.0,2…10.w ×6"]
    assert fold_names([f"a.{i}.b.{j}" for i in range(2) for j in range(3)]) == ["a.0-1.b.0-2 ×6"]


def test_notes_fold_too() -> None:
    (group,) = fold([Row(f"h.{at}.w", (), (f"also g.{at}.w", f"gain {at}.5")) for at in range(3)], ())
    assert group.notes == ("also g.*.w", "gain 0.5…2.5")
    with_note, without = fold([Row("h.0.w", (), ("frozen",)), Row("h.1.w", ())], ())
    assert (with_note.notes, without.notes) == (("frozen",), ())


@given(st.lists(st.text(max_size=9), max_size=5))
def test_any_text_is_a_cell(texts: list[str]) -> None:
    columns = (Column("", "range"), Column(""))
    groups = fold([Row(f"h.{at}.{text}", (text, "x"), (text,)) for at, text in enumerate(texts)], columns)
    assert sum(len(group.names) for group in groups) == len(texts)
    cells = [cell for group in groups for cell in (*map(str, group.cells), *group.notes)]
    assert all(cell == plain(cell) and "\n" not in cell for cell in cells)


def test_the_numbers_of_people() -> None:
    assert [large(n) for n in (0, 999_999, 1_000_000, 999_950_000, 10**12)] == [
        "0",
        "999,999",
        "1 M",
        "1000 M",
        "1000 B",
    ]
    fills = {
        "Constant(val=1.0)": "1.0", "Constant(0)": "0", "Normal()": "N(0, 1)", "Normal(mean=1, std=2)": "N(1, 2)",
        "Uniform(a=-1, b=1)": "U(-1, 1)", "Scaled(Normal(), 2)": "Scaled(Normal(), 2)",
        "Normal(std=(1, 2))": "Normal(std=(1, 2))", "Normal(std=2), row 0 zero": "N(0, 2), row 0 zero",
    }  # fmt: skip
    assert {fill: starts_as(fill) for fill in fills} == fills


def test_differences_have_the_digits_they_need() -> None:
    assert rounded_apart("std 0.02", "std 0.03") == ("std 0.02", "std 0.03")
    assert rounded_apart("0.02", "0.02000000001") == ("0.02", "0.02")
    assert rounded_apart("[64, 8]", "[64, 9]") == ("[64, 8]", "[64, 9]")


def test_the_work_grows_as_the_rows_do() -> None:
    def cost(size: int) -> int:
        names = [f"h.{at}.w" for at in range(size)]
        return calls(lambda: fold(rows(names), COLUMNS, among=names))

    assert cost(2000) < 11 * cost(200)
