"""Page: one HTML file that says what is so with a start, holds all it shows, and asks nobody for more."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch

from torchinit._files import expanded, replacing
from torchinit._folding import Group, large
from torchinit._tables import Table, Tabular
from torchinit._text import one_line, plain
from torchinit._version import __version__
from torchinit.errors import MissingExtraError
from torchinit.pages import drawing
from torchinit.pages.figures import Distribution, Figure

_HERE: Final = Path(__file__).parent
_MARKS: Final = {"good": "✓", "warning": "!", "error": "✗"}
_MOST_DISTRIBUTIONS: Final = 24
_LONGEST_NAME: Final = 60
_LONGEST_SEARCH: Final = 20_000
_NUMBER: Final = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?: [MB]\b)?")


@dataclass(frozen=True)
class Panel:
    """Figures under one heading, and the table of the numbers that they show."""

    title: str
    figures: tuple[Figure, ...]
    heads: tuple[str, ...] = ()
    numbers: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Section:
    """A table under its heading; with ``about``, a sentence. It can be sorted, and filtered where it is long."""

    title: str
    table: Table
    about: str = ""

    @classmethod
    def of(cls, title: str, shown: Tabular, about: str = "") -> Section:
        """The section of what shows itself as a table."""
        return cls(title, shown._table(), about)


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
    environment: tuple[tuple[str, str], ...] = field(default_factory=lambda: environment())

    def html(self, *, fragment: bool = False) -> str:
        """The page as HTML; a ``fragment`` is for a notebook: without scripts and without the long tables."""
        try:
            import jinja2
        except ImportError:
            raise MissingExtraError("an HTML page", "report") from None
        made = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
            finalize=lambda value: plain(value) if type(value) is str else value,
        )  # fmt: skip
        template = made.from_string((_HERE / "page.html.jinja").read_text("utf-8"))
        return template.render(
            page=self, whole=not fragment, mark=_MARKS[self.severity], style=_style(), grid=grid, draw=drawing.draw,
            script=(_HERE / "page.js").read_text("utf-8"), drawn=list(self._drawn()),
        )  # fmt: skip

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
                size = drawing.WIDTH, drawing.HEIGHT
                text = drawing.standalone(drawing.draw(figure), size, figure.title, figure.caption)
                files[-1].write_text(text, "utf-8")
        for each, svg in self._drawn():
            files.append(place / f"values-{re.sub(r'[^A-Za-z0-9]+', '-', each.title).strip('-')[:100]}.svg")
            files[-1].write_text(drawing.standalone(svg, drawing.SMALL, _cut(each.title, 20), each.caption), "utf-8")
        return files


def _style() -> str:
    colours = f".ti-page{{{drawing.COLOURS}}}\n@media (prefers-color-scheme:dark){{.ti-page{{{drawing.DARK}}}}}\n"
    printed = f"@media print{{.ti-page{{{drawing.COLOURS}}}}}\n"
    return colours + printed + drawing.STYLE + "\n" + (_HERE / "page.css").read_text("utf-8")


def environment() -> tuple[tuple[str, str], ...]:
    """What a start is computed by: the versions of torchinit, torch and Python, and the machine.

    >>> [name for name, _ in environment()]
    ['torchinit', 'torch', 'Python', 'machine']
    """
    machine = f"{platform.system()} {platform.machine()}"
    versions = __version__, torch.__version__, platform.python_version()
    return tuple(zip(("torchinit", "torch", "Python", "machine"), (*versions, machine), strict=True))


# --- tables ----------------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A cell: its text, what it is sorted by where that is a number, the whole text where it is cut."""

    text: str
    key: float | None = None
    whole: str = ""
    notes: tuple[str, ...] = ()


class Grid(NamedTuple):
    """The rows of a table for a page: heads, each with whether its column holds numbers; cells, and words to find."""

    heads: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    name: int


def grid(table: Table) -> Grid:
    """The rows of a table, a line for each group of like things, in the order of the model."""
    times = any(len(group.names) > 1 for group in table.groups)
    before = table.before
    heads = [column.head for column in table.columns]
    heads[before:before] = [table.subject, "×"] if times else [table.subject]
    columns = [*zip(*(_cells(group, before, times) for group in table.groups), strict=True)]
    numeric = [head != "rule" and at != before and all(map(_is_number, cells)) for at, (head, cells) in
               enumerate(zip(heads, columns, strict=False))]  # fmt: skip
    kept = [at for at, cells in enumerate(columns) if {cell.text for cell in cells} - {"", "-"}]
    kept = [at for at in kept if not _told_once(table, at - (at > before) * (1 + times), columns[at], at == before)]
    rows = [
        (_words(group), tuple(columns[at][row]._replace(key=_key(columns[at][row].text) if numeric[at] else None)
                              for at in kept))
        for row, group in enumerate(table.groups)
    ]  # fmt: skip
    return Grid(tuple((heads[at], numeric[at]) for at in kept), tuple(rows), kept.index(before) if rows else 0)


def _cells(group: Group, before: int, times: bool) -> tuple[Cell, ...]:
    cells = [Cell(large(cell) if isinstance(cell, int) else _cut(cell, 200), None, cell if isinstance(cell, str) and
                  len(cell) > 200 else "") for cell in group.cells]  # fmt: skip
    label = one_line(group.label)
    name = Cell(_cut(label, _LONGEST_NAME), None, label if len(label) > _LONGEST_NAME else "", group.notes)
    cells[before:before] = [name, Cell(str(len(group.names)))] if times else [name]
    return tuple(cells)


def _told_once(table: Table, column: int, cells: tuple[Cell, ...], is_name: bool) -> bool:
    alike = len({cell.text for cell in cells}) == 1 and len(cells) > 1
    return alike and not is_name and 0 <= column < len(table.columns) and table.columns[column].once


def _words(group: Group) -> str:
    """What a filter looks in: all names that the line stands for, and its texts."""
    return " ".join(map(one_line, (*group.names, *map(str, group.cells), *group.notes)))[:_LONGEST_SEARCH].lower()


def _is_number(cell: Cell) -> bool:
    parts = re.split("[…x×]", cell.text)
    return cell.text in {"", "-", "scalar"} or all(_NUMBER.fullmatch(part) for part in parts)


def _key(text: str) -> float | None:
    """What a number, a range or a shape is sorted by: the number, the least, the number of elements."""
    found = _NUMBER.findall(text)
    key = None if not found else 1.0
    for part in found if re.search("[x×]", text) else found[:1]:
        digits, _, unit = part.replace(",", "").partition(" ")
        key = (key or 1.0) * float(digits) * {"": 1, "M": 1e6, "B": 1e9}[unit]
    return 1.0 if text == "scalar" else key


def _cut(text: Any, most: int) -> str:
    """The text without its middle where it is long."""
    shown = one_line(str(text))
    return shown if len(shown) <= most else f"{shown[: most // 3]}…{shown[most // 3 + 1 - most :]}"
