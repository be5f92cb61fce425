"""The pictures of README and docs show what is printed today; `./dev pictures` makes them anew."""

from __future__ import annotations

import re
import warnings

import pytest

from tests.test_pictures import PICTURES, ROOT


def words(text: str) -> list[str]:
    """The text by its words: without columns, and without how long it took."""
    return re.sub(r"\b\d+(\.\d+)?(e-\d+)? s\b", "... s", text).split()


@pytest.mark.parametrize("name", PICTURES.PICTURES)
def test_a_picture_is_up_to_date(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the lines of a trace are told from there
    make, _ = PICTURES.PICTURES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers
        printed = make()
    shown = PICTURES.shown((PICTURES.FOLDER / f"{name}.svg").read_text("utf-8"))
    assert words(shown) == words(printed), f"./dev pictures {name} makes docs/pictures/{name}.svg anew"


@pytest.mark.parametrize("name", PICTURES.FIGURES)
def test_a_figure_is_up_to_date(name: str) -> None:
    def told(svg: str) -> list[str]:
        return re.findall(r">([^<>]*[a-z]{3}[^<>]*)<", re.sub(r"<style>.*?</style>|[\d.]+", "", svg, flags=re.DOTALL))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = PICTURES.FIGURES[name]()
    kept = (PICTURES.FOLDER / f"{name}.svg").read_text("utf-8")
    assert told(kept) == told(drawn), f"./dev pictures {name} makes docs/pictures/{name}.svg anew"
