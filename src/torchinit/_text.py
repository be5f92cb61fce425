"""Tables: rows of text in columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from torchinit.errors import plain

if TYPE_CHECKING:
    import torch

_LONGEST: Final = 2000


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows under their heads, each column as wide as its longest cell.

    >>> print(columns(["name", "std"], [["layers.0.weight", "0.02"]]))
    name             std
    layers.0.weight  0.02
    """
    every = [head, *(tuple(map(one_line, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in every
    )


def shape_text(shape: Sequence[int]) -> str:
    """A shape as it is spoken.

    >>> shape_text((64, 3, 7, 7)), shape_text(())
    ('64x3x7x7', 'scalar')
    """
    return "x".join(map(str, shape)) or "scalar"


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype as people say it.

    >>> import torch
    >>> dtype_name(torch.float32)
    'float32'
    """
    return str(dtype).removeprefix("torch.")


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few of many names.

    >>> some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(one_line, names[:most])) + more


def percentage(part: int, whole: int) -> str:
    """How many percent one number is of another: 100 only where nothing is left out, and 0.0 of nothing.

    >>> percentage(2, 3), percentage(99_999, 100_000), percentage(5, 5)
    ('66.6', '99.9', '100')
    """
    return "100" if part == whole > 0 else f"{1000 * part // whole / 10 if whole else 0:.1f}"


def by_reason(verb: str, pairs: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each reason, with the first few of the names that it holds for.

    >>> by_reason("skipped", [("a", "is full"), ("b", "is wet"), ("c", "is full")])
    ['skipped a, c: is full', 'skipped b: is wet']
    """
    found: dict[str, list[str]] = {}
    for name, why in pairs:
        found.setdefault(why, []).append(name)
    return [f"{verb} {some(names)}: {why}" for why, names in found.items()]


def one_line(text: str) -> str:
    r"""A text in one line, nothing in it unseen, no longer than any honest name.

    >>> one_line("two\nlines\x1b")
    'two\\nlines\\u001b'
    """
    shown = text if text.isprintable() else plain(text).replace("\n", "\\n").replace("\t", "\\t")
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."


def shorten_paths(rows: Iterable[Sequence[str]], paths: Collection[str]) -> list[Sequence[str]]:
    """The rows with each path called by its end, as much of it as tells it apart from the others.

    >>> shorten_paths([("w", "w of /a/b/net.pth")], ["/a/b/net.pth"])
    [['w', 'w of net.pth']]
    """
    names = {path: _end(path, {*paths}) for path in sorted({*paths}, key=len, reverse=True) if "/" in path}
    if not names:
        return [*rows]

    def short(cell: str) -> str:
        for path, end in names.items():
            cell = cell.replace(path, end)
        return cell

    return [[*map(short, row)] for row in rows]


def _end(path: str, others: Collection[str]) -> str:
    parts = path.split("/")
    ends = ("/".join(parts[at:]) for at in range(len(parts) - 1, 0, -1))
    alone = (end for end in ends if end and sum(other.endswith(f"/{end}") or other == end for other in others) == 1)
    return next(alone, path)
