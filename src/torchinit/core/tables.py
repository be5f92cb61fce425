"""Tables: rows of text in columns."""

from __future__ import annotations

from collections.abc import Sequence


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows under their heads, each column as wide as its longest cell.

    >>> print(columns(["name", "std"], [["layers.0.weight", "0.02"]]))
    name             std
    layers.0.weight  0.02
    """
    every = [head, *rows]
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


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few of many names.

    >>> some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
