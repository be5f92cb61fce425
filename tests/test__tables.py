"""Tables: what a model's table says at any width, in a terminal, in a notebook, of hostile names and of none."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from io import BytesIO, StringIO, TextIOWrapper

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

import torchinit
from tests.test__folding import COLUMNS, NAMES, rows
from torchinit import Leaf, Normal, Report, Rule, Zeros
from torchinit._folding import Row, fold
from torchinit._tables import Table, Tabular
from torchinit.linting import Finding, Findings
from torchinit.plans import Diff, Plan

RULES = (Rule(Leaf("weight"), Normal(std=0.02), label="weights"), Rule(Leaf("bias"), Zeros(), label="biases"))
HOSTILE = ["[red]x[/red]", "<script>alert(1)</script>", "a\nb\x1b[31m", "x" * 300, "层.权重", "\u202eevil", "&amp;"]


def blocks(number: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(number)))


def every(model: nn.Module) -> Iterator[Tabular]:
    """All that shows itself as a table, of one model."""
    plan = torchinit.plan(model, RULES)
    yield plan
    yield torchinit.initialize(model, RULES, seed=0)
    yield torchinit.fingerprint(model)
    yield plan.diff(torchinit.plan(model, RULES[:1]))
    yield torchinit.lint(model)
    with torchinit.trace(model) as trace:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
    yield trace


class Shape(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@given(NAMES, st.integers(40, 140))
def test_no_line_is_wider_than_it_may_be(names: list[str], width: int) -> None:
    groups = fold(rows(names), COLUMNS, among=names)
    for tree in (False, True):
        table = Table("tensor", COLUMNS, groups, "a title " * 9, ("a word and another " * 9,), tree=tree)
        assert max(map(len, table.text(width).splitlines())) <= width


@given(NAMES)
def test_a_tree_has_every_group_once(names: list[str]) -> None:
    groups = fold(rows(names), COLUMNS, among=names)
    entries = Table("tensor", COLUMNS, groups, tree=True).entries
    assert sum(entry.groups for entry in entries) == len(groups)


def test_a_tree_heads_repeated_blocks_and_what_holds_them() -> None:
    names = ["net.embed.w", *(f"net.h.{at}.{part}.w" for at in range(12) for part in ("a1", "a2", "b")), "net.h.3.c"]
    names += ["net.norm.w", "head.w"]
    columns = COLUMNS[:1]
    shapes = {"b": "9"}
    found = fold([Row(name, (shapes.get(name.split(".")[-2], "1"),)) for name in names], columns, among=names)
    lines = Table("tensor", columns, found, tree=True).text().splitlines()
    assert lines == [
        "tensor             ×  shape",
        "net",
        "  embed.w             1",
        "  h",
        "    *             12",
        "      a1.w, a2.w      1",
        "      b.w             9",
        "    3.c               1",
        "  norm.w              1",
        "head.w                1",
    ]


def test_a_short_repr_of_everything() -> None:
    for model in (blocks(3), blocks(300), named(HOSTILE), nn.Flatten()):
        for shown in every(model):
            text = repr(shown)
            assert text.startswith(f"<{type(shown).__name__}")
            assert len(text) < 2000
            assert all(line.isprintable() for line in text.splitlines())


def named(names: list[str]) -> nn.Module:
    model = nn.Module()
    for name in names:
        model._modules[name] = nn.Linear(2, 2)
    return model


@pytest.mark.slow("20,000 tensors are written, traced and linted")
def test_20_000_tensors() -> None:
    model = blocks(10_000)
    for shown in every(model):
        assert len(repr(shown)) < 2000
    assert len(str(torchinit.plan(model, RULES)).splitlines()) == 7


@pytest.mark.parametrize("width", [40, 80, 100])
def test_hostile_names(width: int) -> None:
    for shown in every(named(HOSTILE)):
        lines = shown.table(width=width).splitlines()
        assert all(line.isprintable() for line in lines)
        assert max(map(len, lines)) <= width
        assert isinstance(shown, (Findings, Diff)) or "<script>" in shown.table(full=True)


def test_a_page_is_whole_and_escapes_names() -> None:
    for shown in every(named(HOSTILE)):
        page = Shape(shown._repr_html_())
        assert page.open == []
        assert "script" not in page.tags
        assert not isinstance(shown, Plan) or "<script>alert(1)</script>.weight" in page.text
        assert set(page.tags) <= {"div", "style", "p", "b", "table", "thead", "tbody", "tr", "th", "td"}


def test_a_page_is_bounded() -> None:
    model = nn.Module()
    for at in range(1000):
        model.add_module("x" + "abcdefghij"[at % 10] * (at // 10 + 1), nn.Linear(2, 2))
    page = torchinit.fingerprint(model)._repr_html_()
    assert "… and 1600 more lines" in page


def test_a_model_without_parameters() -> None:
    plan, report, *_ = every(nn.Flatten())
    assert str(plan).startswith("0 sites to write: 0 kinds, 0 elements\nunused: ")
    assert str(report).startswith("0 sites written: 0 kinds, 0 elements, 0.0 MiB, 0.00 s, Keyed(seed=0)\nunused: ")
    for shown in (Plan(), Report(), Findings(), Diff()):
        assert Shape(shown._repr_html_()).text
        assert str(shown)


def test_rich_fits_a_table_to_its_console_and_colours_it() -> None:
    plan = torchinit.plan(blocks(4), RULES)
    diff = plan.diff(torchinit.plan(blocks(4), [Rule(Leaf("weight"), Normal(std=0.5))]))
    for colours, width in ((None, 60), ("standard", 90)):
        out = StringIO()
        console = Console(file=out, width=width, force_terminal=True, color_system=colours)  # type: ignore[arg-type]
        console.print(diff)
        console.print(torchinit.plan(named(HOSTILE), RULES))
        text = out.getvalue()
        assert "[red]x[/red].weight" in text, "no markup of rich is obeyed"
        assert ("\x1b[33m~" in text) == ("\x1b[31m-" in text) == (colours is not None)
        assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in text.splitlines()) <= width


def test_findings_of_like_layers_are_one_line() -> None:
    found = Findings(tuple(Finding("TI103", "error", f"h.{at}.w", f"{at} of 64 values are NaN") for at in range(12)))
    assert "h.0-11.w  12  0…11 of 64 values are NaN" in str(found)


def test_an_output_with_few_letters_gets_what_it_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    from argparse import Namespace

    from torchinit.cli.frame import show

    written = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(written, encoding="ascii"))
    show(Namespace(all=False, json=False), torchinit.plan(blocks(4), RULES))
    sys.stdout.flush()
    assert b"tensor    ?  shape" in written.getvalue()


def test_a_terminal_is_filled(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from argparse import Namespace

    from torchinit.cli.frame import show

    plan = torchinit.plan(blocks(4), RULES)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    for width, colour in ((40, True), (130, False)):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.delenv("NO_COLOR", raising=False)
        if not colour:
            monkeypatch.setenv("NO_COLOR", "1")
        show(Namespace(all=False, json=False), plan, title="a title")
        out = capsys.readouterr().out
        assert out.replace("\x1b[1m", "").startswith("a title")
        assert ("elements  rule" in out) == (width == 130)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("COLUMNS", "40")
    show(Namespace(all=False, json=False), plan)
    assert capsys.readouterr().out == plan.table(width=40) + "\n"


def test_one_long_name_does_not_hide_the_other_columns() -> None:
    plan = torchinit.plan(named(["a", "n" * 300]), {"type": "Normal", "std": 0.02, "name": "**"})
    heads = str(plan).splitlines()[2].split()
    assert {"tensor", "shape", "rule"} <= {*heads}


def test_a_diff_for_machines() -> None:
    data = json.loads(Diff.between({"a": 1, "b": 2, "c": 0}, {"b": 3, "c": 0}).to_json())
    assert [(each["name"], each["verb"], each["before"], each["after"]) for each in data["changes"]] == [
        ("a", "removed", "1", ""),
        ("b", "changed", "2", "3"),
    ]
    assert data["same"] == ["c"]
