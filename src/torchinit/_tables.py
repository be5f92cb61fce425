"""Tables: folded rows fitted to a width, as text, with rich's colours, or as HTML; every table of a model is one."""

from __future__ import annotations

import html
import re
import textwrap
import unicodedata
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from torchinit._folding import Column, RowGroup, large
from torchinit._text import one_line, plain

Style: TypeAlias = Literal["", "bold", "dim", "green", "yellow", "red"]
Line: TypeAlias = tuple[str, Style]

WIDTH: Final = 100  # the most columns of text that goes to no terminal
_MOST_OF_A_PAGE: Final = 400  # lines of a table in a notebook; a page with more of them is slow, and nobody reads it
_NARROW: Final = 8  # the fewest columns that a column is shrunk to
_NARROW_TEXT: Final = 14  # the same of all but the names as long as these are whole: the room of N(0, 0.004082)
_LONGEST_NAME: Final = 56  # columns that a name has before others are left out for it: most names are shorter


class Entry(NamedTuple):
    """A line of a table: a group, or the heading of the groups below it."""

    name: str
    times: str
    cells: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    depth: int = 0
    groups: int = 0


@dataclass(slots=True)
class _Node:
    """A part of the names: the groups that end here, and the parts that go on."""

    part: str = ""
    times: int = 1
    groups: list[RowGroup] = field(default_factory=list)
    children: dict[str, _Node] = field(default_factory=dict)
    rows: int = 0
    is_heading: bool = False

    def add(self, group: RowGroup) -> None:
        node = self
        node.rows += 1
        for part, copies in zip(group.path, group.copies, strict=True):
            node = node.children.setdefault(part, _Node(part, node.times * copies))
            node.rows += 1
        node.groups.append(group)

    def choose_headings(self) -> bool:
        """Mark repeated blocks of some lines, and what holds them beside others; return whether any is marked."""
        below = [child.choose_headings() for child in self.children.values()]
        is_block = not self.part.isidentifier() and self.rows >= 3
        self.is_heading = not self.groups and (is_block or (any(below) and len(self.children) > 1))
        return self.is_heading or any(below)

    def entries(self, depth: int) -> Iterator[Entry]:
        """The lines of what is below, what belongs to the module itself before its parts."""
        rows: dict[tuple[object, ...], list[tuple[str, RowGroup]]] = {}
        for name, node in self._below():
            if node.is_heading:
                yield from _drained(rows, depth, self.times)
                yield Entry(name, str(node.times) if node.times != self.times else "", depth=depth)
                yield from node.entries(depth + 1)
            for group in node.groups:  # norms and biases of one layer often say the same: ln_1.weight, ln_2.weight
                like = (re.sub(r"\d+", "0", name), len(group.names), group.cells, group.notes)
                alone = group.notes or name.count(".") > 1
                rows.setdefault((like, id(group) if alone else 0), []).append((name, group))
        yield from _drained(rows, depth, self.times)

    def _below(self, prefix: str = "") -> Iterator[tuple[str, _Node]]:
        """The headings and ends that come next, with their names from here on."""
        for child in sorted(self.children.values(), key=lambda each: bool(each.children)):
            name = prefix + child.part
            if child.is_heading or child.groups:
                yield name, child
            if not child.is_heading:
                yield from child._below(f"{name}.")


def _drained(rows: dict[Any, list[tuple[str, RowGroup]]], depth: int, times: int) -> Iterator[Entry]:
    for pairs in rows.values():
        names, groups = zip(*pairs, strict=True)
        name = ", ".join(names) if len(names) < 3 else f"{names[0]} … {names[-1]} ({len(names)})"
        yield _entry(name, groups, depth, times)
    rows.clear()


def _entry(name: str, groups: Sequence[RowGroup], depth: int = 0, times: int = 1) -> Entry:
    """The line of one group, or of several that say the same."""
    first = groups[0]
    number = str(len(first.names)) if len(first.names) != times else ""
    cells = (large(cell * len(groups)) if isinstance(cell, int) else cell for cell in first.cells)
    return Entry(name, number, tuple(cells), first.notes, depth, len(groups))


@dataclass(frozen=True, slots=True)
class Table:
    """Groups under the heads of their columns, a title above them and lines below.

    ``subject`` is the head of the names, which stand after the first ``before`` columns; ``tree`` shows the parts of a
    model as headings.

    >>> from torchinit._folding import Row, fold
    >>> columns = Column("shape"), Column("starts as", "range")
    >>> rows = [Row(f"h.{i}.fc.weight", ("8×8", f"N(0, {0.1 + i / 100})")) for i in range(12)]
    >>> print(Table("tensor", columns, fold(rows, columns, among=(row.name for row in rows))).text())
    tensor         ×   shape  starts as
    h.*.fc.weight  12  8×8    N(0, 0.1…0.21)
    """

    subject: str
    columns: tuple[Column, ...]
    groups: Sequence[RowGroup]
    title: str = ""
    foot: tuple[str, ...] = ()
    tree: bool = False
    before: int = 0

    @property
    def entries(self) -> list[Entry]:
        """The lines of the table, in order."""
        if not self.tree:
            return [_entry(group.label, [group]) for group in self.groups]
        root = _Node()
        for group in self.groups:
            root.add(group)
        root.choose_headings()
        return [*root.entries(0)]

    def text(self, width: int | None = WIDTH) -> str:
        """The table as text, not wider than ``width``; None: as wide as it is, with the notes in a column."""
        return "\n".join(line.rstrip() for line, _ in self.lines(width))

    def lines(self, width: int | None = WIDTH) -> Iterator[Line]:
        """The lines of the table, each with its style."""
        if self.title:
            yield from _wrapped(self.title, width, "bold")
        if self.groups:
            space: list[Line] = [("", "")] if self.title else []
            yield from space
            yield from (line for block in self.blocks(width) for line in block)
            yield from space if self.foot else []
        for text in self.foot:
            yield from _wrapped(text, width)

    def blocks(self, width: int | None = WIDTH) -> Iterator[list[Line]]:
        """The lines of the heads, then of each entry."""
        columns, entries, kept = self.chosen(self.entries, full=width is None)
        heads = [column.head for column in columns]
        widths = [max(map(_room, texts)) for texts in zip(heads, *(entry.cells for entry in entries), strict=True)]
        if width is not None:
            _fit(width, kept, widths, columns, self.before)

        def block(cells: Sequence[str], style: Style) -> list[Line]:
            texts = [_cut(cells[at], widths[at]) if at == self.before else cells[at] for at in kept]
            parts = [_lines_of(text, widths[at]) for text, at in zip(texts, kept, strict=True)]
            lines = zip_longest(*parts, fillvalue="")
            padded = (
                [_padded(cell, widths[at], columns[at]) for cell, at in zip(line, kept, strict=True)] for line in lines
            )
            return [("  ".join(line), style) for line in padded]

        yield block(heads, "bold") if any(heads) else []
        for entry in entries:
            indent = " " * (2 * entry.depth + 2)
            notes = () if width is None else entry.notes
            below = [line for note in notes for line in _wrapped(note, width, "dim", indent)]
            yield block(entry.cells, _SIGNS.get(entry.cells[0], "") if entry.groups else "bold") + below

    def chosen(self, entries: Sequence[Entry], *, full: bool = False) -> tuple[list[Column], list[Entry], list[int]]:
        """All columns, the lines with a cell for each, and the columns that tell something, by number."""
        own = [Column(self.subject), Column("×" if self.subject else "", right=True)]
        sign = "" if self.subject else "×"  # said in the head where there is one
        at, notes = self.before, full and any(entry.notes for entry in entries)
        columns = [*self.columns[:at], *own, *self.columns[at:], *([Column("notes")] if notes else [])]
        every = []
        for entry in entries:
            cells = entry.cells or ("",) * len(self.columns)
            name = "  " * entry.depth + one_line(entry.name), entry.times and sign + entry.times
            last = ("; ".join(entry.notes),) if notes else ()
            every.append(entry._replace(cells=(*cells[:at], *name, *cells[at:], *last)))
        texts = [{entry.cells[number] for entry in every} - {""} for number in range(len(columns))]
        empty = [found <= ({"-"} if column.head else set()) for column, found in zip(columns, texts, strict=True)]
        same = [column.once and len(found) == 1 and not full for column, found in zip(columns, texts, strict=True)]
        return columns, every, [number for number in range(len(columns)) if not (empty[number] or same[number])]

    def brief(self, headline: str, most: int = 10) -> str:
        """The text of a ``repr``: a headline and the first lines, together less than 2,000 letters."""
        lines, left = [f"<{headline}>"], 0
        for at, block in enumerate(self.blocks() if self.groups else ()):
            texts = [f"  {line.rstrip()}" for line, _ in block]
            if at > most or sum(map(len, lines + texts)) > 1800:
                left += 1
            else:
                lines += texts
        return "\n".join([*lines, *([f"  … {left} more, print it"] if left else [])])

    def html(self) -> str:
        """The table as HTML for a notebook: no scripts, and legible on a light and on a dark page."""
        every = self.entries
        columns, entries, kept = self.chosen(every[:_MOST_OF_A_PAGE])
        heads = [f"<th{_RIGHT * columns[at].right}>{html.escape(columns[at].head)}</th>" for at in kept]
        lines = [f"<thead><tr>{''.join(heads)}</tr></thead>"] if any(column.head for column in columns) else []
        for entry in entries:
            indent = f' style="padding-left:{1.2 * entry.depth:.3g}em"'
            styles = (indent if at == self.before else _RIGHT * columns[at].right for at in kept)
            texts = (html.escape(entry.cells[at].strip()) for at in kept)
            cells = (f"<td{style}>{text}</td>" for style, text in zip(styles, texts, strict=True))
            lines.append(f"<tr{'' if entry.groups else _PART}>{''.join(cells)}</tr>")
            notes = (html.escape(one_line(note)) for note in entry.notes)
            lines += (f'<tr class="note"><td colspan="{len(kept)}"{indent}>{note}</td></tr>' for note in notes)
        more = len(every) - len(entries)
        foot = [*([f"… and {more} more lines"] if more else []), *self.foot]
        title = f"<p><b>{html.escape(plain(self.title))}</b></p>" if self.title else ""
        below = "".join(f"<p>{html.escape(plain(text))}</p>" for text in foot)
        table = f"{title}<table>{''.join(lines)}</table>{below}"
        return f'<div class="torchinit-table"><style>{_CSS}</style>{table}</div>'

    def __rich_console__(self, console: Any, options: Any) -> Generator[Any]:
        from rich.text import Text

        for line, style in self.lines(options.max_width):
            yield Text(line.rstrip(), style=style, no_wrap=True, overflow="ellipsis")


_SIGNS: Final[dict[str, Style]] = {"+": "green", "~": "yellow", "-": "red"}
_CSS: Final = (
    ".torchinit-table p{margin:.4em 0}"
    ".torchinit-table table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px;margin:.4em 0}"
    ".torchinit-table tr,.torchinit-table td,.torchinit-table th{background:none!important;color:inherit;border:0}"
    ".torchinit-table th,.torchinit-table td{text-align:left;vertical-align:top;padding:1px 1.4em 1px 0}"
    ".torchinit-table thead th{border-bottom:1px solid rgba(128,128,128,.6);font-weight:600}"
    ".torchinit-table tbody td{font-family:ui-monospace,Menlo,Consolas,monospace;white-space:nowrap}"
    ".torchinit-table .part td{font-weight:600}"
    ".torchinit-table .note td{opacity:.75;white-space:normal}"
)


_RIGHT: Final = ' style="text-align:right"'
_PART: Final = ' class="part"'


def _fit(width: int, kept: list[int], widths: list[int], columns: Sequence[Column], name: int) -> None:
    """Make columns narrower, and leave some out, until they fit."""

    def over() -> int:
        return sum(widths[at] for at in kept) + 2 * (len(kept) - 1) - width

    def leave_out(least: int) -> None:
        while over() > 0 and columns[last := max(kept, key=lambda at: columns[at].spare)].spare >= least:
            kept.remove(last)

    def shrink(narrow: int, among: Sequence[int]) -> None:
        while over() > 0 and among and widths[widest := max(among, key=lambda at: widths[at])] > narrow:
            widths[widest] -= 1

    # Names tell the most, and break where they are cut: what can be wrapped gives way before them, but not to one name
    # of hundreds of letters.
    leave_out(2)
    shrink(_LONGEST_NAME, [name])
    shrink(_NARROW_TEXT, [at for at in kept if at != name])
    leave_out(1)
    shrink(_NARROW, kept)
    shrink(3, kept)


def _padded(text: str, width: int, column: Column) -> str:
    space = " " * max(0, width - _room(text))
    return space + text if column.right else text + space


def _room(text: str) -> int:
    """The columns of a terminal that a text takes: Chinese letters take two each."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _cut(name: str, width: int) -> str:
    """A name without its middle, where it is too long: its end says what it is, its beginning where."""
    if _room(name) <= width:
        return name
    end = (width - 1) * 2 // 3
    return f"{name[: width - 1 - end]}…{name[len(name) - end :]}"


def _lines_of(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False) if _room(text) > width else [text]


def _wrapped(text: str, width: int | None, style: Style = "", indent: str = "") -> Iterator[Line]:
    for line in plain(text).split("\n"):
        if width is None or _room(line) + len(indent) <= width:
            yield indent + line, style
            continue
        margin = indent + " " * (len(line) - len(line.lstrip()))
        room, below = max(width, 20), f"{margin}  "
        text = line.lstrip().replace(" ×", "\xa0×")  # a number stays with its name
        wrapped = textwrap.wrap(text, room, initial_indent=margin, subsequent_indent=below, break_on_hyphens=False)
        yield from ((part.replace("\xa0×", " ×"), style) for part in wrapped)


class Tabular:
    """What shows itself as a table: short as a ``repr``, grouped as text and in notebooks, whole if asked to."""

    __slots__ = ()

    def _table(self, *, full: bool = False) -> Table:
        """The table; ``full``: with a line for each row."""
        raise NotImplementedError

    def _headline(self, groups: Sequence[RowGroup]) -> str:
        """The object in one line, for its ``repr``, with the groups of its table."""
        raise NotImplementedError

    def table(self, *, full: bool = False, width: int | None = None) -> str:
        """The object as plain text: like sites in one line, at most ``width`` columns wide (100).

        ``full`` has a line for each, with all that is known of it, as wide as that is.
        """
        return self._table(full=full).text(width if width or full else WIDTH)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        table = self._table()
        return table.brief(self._headline(table.groups))

    def _repr_html_(self) -> str:
        return self._table().html()

    def __rich_console__(self, console: Any, options: Any) -> Generator[Any]:
        return self._table().__rich_console__(console, options)
