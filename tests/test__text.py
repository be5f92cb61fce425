"""Text: short values, near names, counts, tables and what stands in their cells."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchinit import Normal
from torchinit._text import (
    abbreviate,
    closest,
    count,
    did_you_mean,
    dtype_name,
    format_table,
    short_repr,
    shortened,
    with_article,
)
from torchinit.initializers import Padded


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("Kaimng", ["Kaiming", "Xavier"], "; did you mean 'Kaiming'?"),
        ("kaiming", ["Kaiming", "Xavier"], "; did you mean 'Kaiming'?"),
        ("Conv2D", ["Conv1d", "Conv2d"], "; did you mean 'Conv2d'?"),
        ("Foo", ["Kaiming"], ""),
        ("Foo", [], ""),
    ],
)
def test_did_you_mean(name: str, known: list[str], hint: str) -> None:
    assert did_you_mean(name, known) == hint


def test_count() -> None:
    assert [count(number, "entry", "entries") for number in (0, 1, 2)] == ["0 entries", "1 entry", "2 entries"]


def test_articles() -> None:
    assert [with_article(noun) for noun in ("initializer", "selector")] == ["an initializer", "a selector"]


@dataclass
class Custom:
    """A dataclass of a user's own, which knows nothing of short text."""

    inner: object
    name: str = "x"
    rate: float = 0.5


def test_spelling() -> None:
    assert short_repr(Custom(Normal(), rate=1 / 3)) == "Custom(Normal(), rate=0.333333)"
    assert short_repr(Custom((1, 2.0, "a"), name="it's")) == "Custom((1, 2, 'a'), name=\"it's\")"
    assert short_repr(Custom(Padded(Normal(), 1))) == "Custom(Normal(), row 1 zero)"
    assert short_repr(Custom) == repr(Custom)
    assert short_repr(None) == "None"


def test_columns_and_lists() -> None:
    assert format_table(["a", "b"], []) == "a  b"
    assert format_table(["a", "b"], [["xx", ""], ["", "y"]]).splitlines() == ["a   b", "xx", "    y"]
    assert abbreviate(["a"]) == "a"
    assert abbreviate(["a", "b", "c"], most=1) == "a and 2 more"


def test_rows_call_a_checkpoint_by_as_much_of_its_path_as_tells_it_apart() -> None:
    paths = ["/a/x/net.pth", "/b/x/net.pth", "https://host/net.pth", "/c/other.pth", "o"]
    cells = [f"w of {path}" for path in paths]
    shorten = shortened(paths)
    assert [*map(shorten, cells)] == [
        "w of a/x/net.pth",
        "w of b/x/net.pth",
        "w of host/net.pth",
        "w of other.pth",
        "w of o",
    ]
    assert [*map(shortened([]), cells)] == cells


def test_dtypes_are_called_as_people_call_them() -> None:
    assert [dtype_name(dtype) for dtype in (torch.bfloat16, torch.bool)] == ["bfloat16", "bool"]


_NAMES = st.from_regex(r"\A(layers|head|blk)\.([0-9]{1,3}\.)?(attn|atn|mlp|fc[0-9])(\.weight|\.bias)?\Z")


_WORDS = st.one_of(_NAMES, st.from_regex(r"\A(layers|haed)\.(\*\.|[0-9]\.)?(atn|fc3|mpl)\Z"), st.text(max_size=12))


@given(_WORDS, st.sets(_NAMES, max_size=30))
def test_the_closest_name_is_that_of_difflib(word: str, names: set[str]) -> None:
    expected = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    assert closest(word, names) == (expected[0] if expected else None)


def test_numbers_in_names_do_not_make_a_hint_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[object] = []
    ratio = difflib.SequenceMatcher.ratio

    def counted(self: difflib.SequenceMatcher[str]) -> float:
        compared.append(self)
        return ratio(self)

    monkeypatch.setattr(difflib.SequenceMatcher, "ratio", counted)
    names = [f"layers.{i}.{part}.weight" for i in range(1000) for part in ("attn.q", "attn.k", "mlp.up", "mlp.down")]
    assert did_you_mean("layers.*.atn.q.weight", names) == "; did you mean 'layers.9.attn.q.weight'?"
    assert 0 < len(compared) < 12
