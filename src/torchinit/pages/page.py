"""Page: one HTML file that says what is so with a start, holds all it shows, and asks nobody for more."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch

from torchinit._files import expanded, replacing
from torchinit._folding import RowGroup
from torchinit._tables import Table, Tabular
from torchinit._text import one_line, plain
from torchinit._version import __version__
from torchinit.errors import MissingExtraError
from torchinit.pages import drawing
from torchinit.pages.drawing import cut
from torchinit.pages.figures import Distribution, Figure

_HERE: Final = Path(__file__).parent
_MARKS: Final = {"good": "✓", "warning": "!", "error": "✗"}
_MOST_DISTRIBUTIONS: Final = 24
_LONGEST_NAME: Final = 60
_LONGEST_TEXT: Final = 200
_LEFT_OUT: Final = 4
"""The ``spare`` of columns that a page does without."""
_LONGEST_SEARCH: Final = 20_000
_NUMBER: Final = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?: [MB]\b)?")


@dataclass(frozen=True)
class Panel:
    """Figures under one heading, and the table of the numbers that they show.

    >>> panel = Panel("By depth", (), ("layer", "signal"), (("0", "1"), ("2", "0.5")))
    >>> Page("a net", "It is fine.", panels=(panel,)).html().count("<tr>")
    3
    """

    title: str
    figures: tuple[Figure, ...]
    heads: tuple[str, ...] = ()
    numbers: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Section:
    """A table under its heading; with ``about``, a sentence. It can be sorted, and filtered where it is long.

    >>> import torchinit
    >>> from torch import nn
    >>> section = Section.of("The plan", torchinit.plan(nn.Linear(4, 4), [{"type": "Zeros", "name": "**"}]))
    >>> Page("a net", "It is fine.", sections=(section,)).html().count("<tr data-words=")
    2
    """

    title: str
    table: Table
    about: str = ""

    @classmethod
    def of(cls, title: str, shown: Tabular, about: str = "") -> Section:
        """The section of what shows itself as a table."""
        return cls(title, shown._table(), about)


def _environment() -> tuple[tuple[str, str], ...]:
    """What a start is computed by: the versions of torchinit, torch and Python, and the machine."""
    machine = f"{platform.system()} {platform.machine()}"
    versions = __version__, torch.__version__, platform.python_version()
    return tuple(zip(("torchinit", "torch", "Python", "machine"), (*versions, machine), strict=True))


@dataclass(frozen=True)
class Page:
    """What a page says, as plain data: the verdict first, then the evidence, then the details.

    ``facts`` are a few numbers, each with its meaning; ``conditions`` what a reader needs to see the same again.

    >>> page = Page("a net", "3 tensors are as planned.", facts=(("3", "tensors <b>"),))
    >>> "tensors &lt;b&gt;" in page.html(), "<script" in page.html(fragment=True)
    (True, False)
    """

    subject: str
    verdict: str
    severity: Literal["good", "warning", "error"] = "good"
    lead: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    panels: tuple[Panel, ...] = ()
    distributions: tuple[Distribution, ...] = ()
    sections: tuple[Section, ...] = ()
    conditions: tuple[tuple[str, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = field(default_factory=_environment)

    def html(self, *, fragment: bool = False) -> str:
        """The page as HTML; a ``fragment`` is for a notebook: without scripts and without the long tables."""
        made = jinja().Environment(
            autoescape=True, undefined=jinja().StrictUndefined, trim_blocks=True, lstrip_blocks=True,
            finalize=lambda value: plain(value) if type(value) is str else value,
        )  # fmt: skip
        template = made.from_string((_HERE / "page.html.jinja").read_text("utf-8"))
        text: str = template.render(
            page=self, whole=not fragment, mark=_MARKS[self.severity], style=_style(), grid=grid, draw=drawing.draw,
            cut=cut, script=(_HERE / "page.js").read_text("utf-8"), drawn=list(self._drawn()),
        )  # fmt: skip
        return text

    def _drawn(self) -> Iterator[tuple[Distribution, str]]:
        """The distributions with their drawings, the first of many."""
        few = self.distributions[:_MOST_DISTRIBUTIONS]
        ranges = drawing.common_range(few)
        for each in few:
            yield each, drawing.draw_distribution(each, *ranges[each.title])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to a file, whole or not at all. Raises OSError where that cannot be."""
        text = self.html()
        with replacing(expanded(path)) as file:
            file.write(text.encode("utf-8"))

    def save_svg(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write each figure as an SVG file of its own into a folder, which is made; return the files."""
        place, files = expanded(folder), []
        place.mkdir(parents=True, exist_ok=True)
        for number, panel in enumerate(self.panels):
            for figure in panel.figures:
                files.append(place / f"{figure.name}{f'-{number + 1}' if number else ''}.svg")
                files[-1].write_text(drawing.drawn_to_file(figure), "utf-8")
        for number, (each, svg) in enumerate(self._drawn()):
            files.append(
                place / f"values-{number + 1}-{re.sub(r'[^A-Za-z0-9]+', '-', each.title).strip('-')[:100]}.svg"
            )
            text = drawing.standalone(svg, *drawing.SMALL, cut(each.title, 20), each.caption)
            files[-1].write_text(text, "utf-8")
        return files


def jinja() -> Any:
    """The template engine. Raises MissingExtraError where it is not installed."""
    try:
        import jinja2
    except ImportError:
        raise MissingExtraError("an HTML page", "report") from None
    return jinja2


def _style() -> str:
    colours = f".ti-page{{{drawing.COLOURS}}}\n@media (prefers-color-scheme:dark){{.ti-page{{{drawing.DARK}}}}}\n"
    printed = f"@media print{{.ti-page{{{drawing.COLOURS};--page:#fff}}}}\n"
    return colours + printed + drawing.style() + "\n" + (_HERE / "page.css").read_text("utf-8")


# --- tables ----------------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A cell: its text, what it is sorted by where that is a number, the whole text where it is cut."""

    text: str
    key: float | None = None
    whole: str = ""


class Grid(NamedTuple):
    """A table for a page: heads, each with whether its column holds numbers; of each row its words, cells, notes."""

    heads: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[str, tuple[Cell, ...], tuple[str, ...]], ...]
    name: int


def grid(table: Table) -> Grid:
    """The rows of a table, a line for each group of like things, in the order of the model.

    What a narrow terminal leaves out is left out here: names have the room.
    """
    columns, entries, kept = table.chosen(replace(table, tree=False).entries)
    kept = [at for at in kept if columns[at].spare < _LEFT_OUT]
    numeric = {at: at != table.before and all(_is_number(entry.cells[at]) for entry in entries) for at in kept}
    rows = []
    for group, entry in zip(table.groups, entries, strict=True):
        cells = []
        for at in kept:
            text, most = entry.cells[at].strip(), _LONGEST_NAME if at == table.before else _LONGEST_TEXT
            key = _key(text) if numeric[at] else None
            cells.append(Cell(cut(text, most), key, text if len(text) > most else ""))
        rows.append((_words(group), tuple(cells), group.notes))
    name = kept.index(table.before) if table.before in kept else -1
    return Grid(tuple((columns[at].head, numeric[at]) for at in kept), tuple(rows), name)


def _words(group: RowGroup) -> str:
    """What a filter looks in: all names that the line stands for, and its texts."""
    return " ".join(map(one_line, (*group.names, *map(str, group.cells), *group.notes)))[:_LONGEST_SEARCH].lower()


def _is_number(text: str) -> bool:
    return text.strip() in {"", "-", "scalar"} or all(map(_NUMBER.fullmatch, re.split("[…x×]", text)))


def _key(text: str) -> float | None:
    """What a number, a range or a shape is sorted by: the number, the least, the number of elements."""
    found = _NUMBER.findall(text)
    key = None if not found else 1.0
    for part in found if re.search("[x×]", text) else found[:1]:
        digits, _, unit = part.replace(",", "").partition(" ")
        key = (key or 1.0) * float(digits) * {"": 1, "M": 1e6, "B": 1e9}[unit]
    return 1.0 if text == "scalar" else key
