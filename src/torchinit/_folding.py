"""Folding: rows of like layers as one, in the model's order, with ranges of what differs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from torchinit._text import fold_numbers, one_line, plain

Cell: TypeAlias = str | int | float | None

_NUMBER: Final = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.])")
_DECIMAL: Final = re.compile(_NUMBER.pattern.replace(r"\d+(?:\.\d+)?(?:", r"\d+(?=[.e])(?:\.\d+)?(?:"))
_INDEX: Final = re.compile(r"(?<![\w.])\d+(?=\.[A-Za-z_])|(?<=[\w*]\.)\d+(?=\.[A-Za-z_])|(?<=[A-Za-z_]\.)\d+(?![\w.])")
_MARK: Final = re.compile("[\0\1]")
_FILLS: Final = (
    (re.compile(r"^Constant\((?:val=)?([^(),]+)\)(?=$|,)"), r"\1"),
    (re.compile(r"^Normal\(std=([^,()]+)\)(?=$|,)"), r"N(0, \1)"),
    (re.compile(r"^Normal\(mean=([^,()]+), std=([^,()]+)\)(?=$|,)"), r"N(\1, \2)"),
    (re.compile(r"^Normal\(\)(?=$|,)"), "N(0, 1)"),
    (re.compile(r"^Uniform\(a=([^,()]+), b=([^,()]+)\)(?=$|,)"), r"U(\1, \2)"),
)


class Column(NamedTuple):
    """A column: its head, how the cells of like rows become one, and how much it is missed where room is short.

    ``"same"``: rows with other texts are not alike. ``"range"``: texts that differ only in numbers are alike, and so
    are any numbers: the least and the most are shown. ``"sum"``: numbers are added up. A column is left out for
    want of room from the highest ``spare`` on, never at 0; with ``once`` it is left out, too, if all its cells are the
    same. Numbers in texts have four digits unless they are ``exact``.
    """

    head: str
    fold: Literal["same", "range", "sum"] = "same"
    spare: int = 0
    once: bool = False
    right: bool = False
    exact: bool = False


class Row(NamedTuple):
    """One row, of the site ``name``: a cell for each column, and what else is to be said, in lines of their own."""

    name: str
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()


# --- numbers ---------------------------------------------------------------------------------------------------------


def large(number: int) -> str:
    """A count of elements, to four digits where it is long.

    >>> large(33_856), large(124_439_808), large(405_853_388_800)
    ('33,856', '124.4 M', '405.9 B')
    """
    for size, unit in ((10**9, "B"), (10**6, "M")):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:,}"


def starts_as(fill: str) -> str:
    """The text of a fill as tables show it: a number, N(mean, std), U(a, b), or as it is.

    >>> starts_as("Normal(std=0.02)"), starts_as("Constant(0)"), starts_as("Orthogonal()")
    ('N(0, 0.02)', '0', 'Orthogonal()')
    """
    # Reports have the text alone, also those of years ago, so the text is what plans and reports have in common.
    for pattern, short in _FILLS:
        text, matches = pattern.subn(short, fill)
        if matches:
            return text
    return fill


@lru_cache(maxsize=4096)
def _template(text: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """A text with a mark for each number, the numbers, and those that are of a layer in a name."""
    text = text if text.isprintable() else plain(text)  # the marks are letters that no text has then
    indices = tuple(_INDEX.findall(text))
    text = _INDEX.sub("\1", text)
    return _NUMBER.sub("\0", text), tuple(_NUMBER.findall(text)), indices


def to_digits(text: str, digits: int = 4) -> str:
    """The text with its decimal numbers to so many digits."""
    return _DECIMAL.sub(lambda found: f"{float(found[0]):.{digits}g}", text)


def rounded_apart(text: str, other: str) -> tuple[str, str]:
    """Two texts with their numbers to as many digits as tell them apart, 4, 6 or 9; the same text if none do.

    >>> rounded_apart("N(0.0, 0.02)", "N(0.0, 0.0200001)")
    ('N(0, 0.02)', 'N(0, 0.0200001)')
    """
    pairs = [(to_digits(text, digits), to_digits(other, digits)) for digits in (4, 6, 9)]
    return next((pair for pair in pairs if pair[0] != pair[1]), pairs[-1])


def _range(numbers: Iterable[str], *, exact: bool = False) -> str:
    """The least and the most of some numbers; one number if they look the same."""
    distinct = sorted({*numbers}, key=float)
    ends = distinct[0], distinct[-1]
    return "…".join(dict.fromkeys(ends if exact else map(to_digits, ends)))


# --- folding ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class RowGroup:
    """Rows that are alike, as one line of a table: ``path`` is their name in parts, ``copies`` the layers of each."""

    names: list[str]
    cells: tuple[str | int, ...]
    notes: tuple[str, ...]
    path: tuple[str, ...] = ()
    copies: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """The name that stands for all: ``h.*.attn.weight``."""
        return ".".join(self.path)

    @property
    def title(self) -> str:
        """The same with the number of them."""
        return f"{self.label} ×{len(self.names)}" if len(self.names) > 1 else self.label


def fold(
    rows: Iterable[Row], columns: Sequence[Column], *, among: Iterable[str] = (), full: bool = False
) -> list[RowGroup]:
    """The groups of like rows, by the first of each, in one pass; ``full``: each row for itself.

    ``among`` are all names that there are: a star stands for all layers, where the numbers of some are told.
    """
    if full:
        singles = [_merged([row], columns) for row in rows]
        return [replace(group, path=(group.names[0],), copies=(1,)) for group in singles]
    alike: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        texts = (_key(cell, column) for cell, column in zip(row.cells, columns, strict=True))
        notes = tuple(_template(note)[0] for note in row.notes) if row.notes else ()
        alike.setdefault((fold_numbers(row.name), *texts, *notes), []).append(row)
    present = _numbers_by_place(among)
    return [_with_path(_merged(members, columns), present) for members in alike.values()]


def _key(cell: Cell, column: Column) -> object:
    if column.fold == "same":
        return cell
    return _template(cell)[0] if isinstance(cell, str) else None


def _merged(rows: Sequence[Row], columns: Sequence[Column]) -> RowGroup:
    cells = (_one([row.cells[at] for row in rows], column) for at, column in enumerate(columns))
    notes = (_joined([row.notes[at] for row in rows]) for at in range(len(rows[0].notes)))
    return RowGroup([row.name for row in rows], tuple(cells), tuple(notes))


def _one(cells: Sequence[Any], column: Column) -> str | int:
    """The cell of like rows."""
    if isinstance(cells[0], str):
        return _joined(cells, exact=column.exact) if column.fold == "range" else one_line(cells[0])
    numbers = [cell for cell in cells if cell is not None]
    if column.fold == "sum":
        return int(sum(numbers))
    return _range(map(str, map(float, numbers))) if numbers else "-"


def _joined(texts: Sequence[str], *, exact: bool = False) -> str:
    """Texts that differ in their numbers as one, with ranges; the numbers to four digits unless ``exact``."""
    first, *others = dict.fromkeys(texts)
    if not others:
        return one_line(first if exact else to_digits(first))
    templates, numbers, indices = zip(*map(_template, (first, *others)), strict=True)
    ranges = iter([_range(column, exact=exact) for column in zip(*numbers, strict=True)])
    layers = iter([column[0] if len({*column}) == 1 else "*" for column in zip(*indices, strict=True)])
    return one_line(_MARK.sub(lambda mark: next(ranges if mark[0] == "\0" else layers), templates[0]))


def _numbers_by_place(names: Iterable[str]) -> dict[str, set[str]]:
    """The numbers of layers that there are, by the folded name up to them."""
    present: dict[str, set[str]] = {}
    for name in names:
        folded = fold_numbers(name)
        if "*" in folded:
            parts = folded.split(".")
            for at, (number, part) in enumerate(zip(name.split("."), parts, strict=True)):
                if part == "*":
                    present.setdefault(".".join(parts[:at]), set()).add(number)
    return present


def _with_path(group: RowGroup, present: Mapping[str, set[str]]) -> RowGroup:
    """The group with its name in parts: the number of one layer, a star for all there are, 2-11 for some."""
    # Blocks of several kinds in one list are common (the first of a stage, attention every fourth layer). A star would
    # say too much of them, and their numbers one by one too much to read.
    parts = fold_numbers(group.names[0]).split(".")
    split = [name.split(".") for name in group.names] if "*" in parts else []
    path, copies = [], []
    for at, part in enumerate(parts):
        numbers = {name[at] for name in split} if part == "*" else {part}
        (text, *more) = numbers
        if more:
            text = "*" if numbers == present.get(".".join(parts[:at])) else _runs(map(int, numbers))
        path.append(text)
        copies.append(len(numbers))
    return replace(group, path=tuple(path), copies=tuple(copies))


def _runs(numbers: Iterable[int]) -> str:
    """Numbers of layers in few letters.

    >>> _runs([0, 1, 2, 4]), _runs(range(0, 12, 2))
    ('0-2,4', '0,2…10')
    """
    runs: list[list[int]] = []
    for number in sorted({*numbers}):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    texts = ["-".join(map(str, run)) for run in runs]
    return ",".join(texts) if len(texts) <= 3 else f"{texts[0]},{texts[1]}…{texts[-1]}"


def fold_names(names: Iterable[str], among: Iterable[str] = ()) -> list[str]:
    """The names, those of like layers as one with their number.

    >>> fold_names(["stem.bias", "h.0.bias", "h.1.bias"])
    ['stem.bias', 'h.0-1.bias ×2']
    """
    return [group.title for group in fold((Row(name, ()) for name in names), (), among=among)]
