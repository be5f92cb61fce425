"""Text: names, counts, tables and values as messages show them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch


_SAME_DIGIT: Final = str.maketrans("123456789", "000000000")
_NO_DIGIT: Final = str.maketrans("", "", "0123456789")
_LONGEST: Final = 2000
_LOGIN: Final = re.compile(r"(?<=:)//[^/?#\s@]*@")
_SECRET: Final = re.compile(
    r"([?&;](?:(?:key|sig|pwd)|[\w.-]*(?:token|secret|passw|signature|credential|api-?_?key|auth)[\w.-]*)=)[^&;#\s'\"]*[^&;#\s'\":,]",
    re.IGNORECASE,
)
_UNSEEN: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)

# --- words -----------------------------------------------------------------------------------------------------------


def count(number: int, noun: str, plural: str = "") -> str:
    """The number with its noun: ``1 mistake``, ``2 mistakes``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def with_article(noun: str) -> str:
    """The noun with its indefinite article: ``an initializer``."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of an error text that offers the near name; empty if there is none.

    >>> did_you_mean("Kaimng", ["Kaiming", "Xavier"])
    "; did you mean 'Kaiming'?"
    """
    folded = {candidate.casefold(): candidate for candidate in known}
    near = closest(str(name).casefold(), folded)
    return "" if near is None else f"; did you mean {folded[near]!r}?"


def closest(word: str, candidates: Iterable[str]) -> str | None:
    """The one text that ``difflib.get_close_matches`` finds, without a look at each; None if none is near.

    >>> closest("layers.*.atn", [f"layers.{i}.{part}" for i in range(100) for part in ("attn", "mlp")])
    'layers.9.attn'
    """
    # The names of a model are a few texts with other numbers in them, and to compare two texts takes as long as to plan
    # a tensor. So names go by families, which differ in their digits alone. No name shares more letters with the word
    # than its family does, nor more digits than both have, which bounds its ratio: families that cannot win are left
    # out. A word without digits, as most globs are, is as near to one of a family as to any other: the last one in the
    # alphabet wins, as in difflib.
    families: dict[str, list[str]] = {}
    for candidate in candidates:
        families.setdefault(candidate.translate(_SAME_DIGIT), []).append(candidate)
    matcher = difflib.SequenceMatcher(b=word)
    digits = len(word) - len(word.translate(_NO_DIGIT))

    def bound(family: str) -> float:
        letters = family.translate(_NO_DIGIT)
        matcher.set_seq1(letters)
        shared = matcher.quick_ratio() * (len(letters) + len(word)) / 2 + min(digits, len(family) - len(letters))
        return 2 * shared / max(1, len(family) + len(word)) + 1e-9  # for what division rounds off

    best = farthest = (0.6, "")
    for most, family in sorted(((bound(family), family) for family in families), reverse=True):
        if most < best[0]:
            break
        for candidate in families[family] if digits else [max(families[family])]:
            matcher.set_seq1(candidate)
            if matcher.real_quick_ratio() >= best[0] and matcher.quick_ratio() >= best[0]:
                best = max(best, (matcher.ratio(), candidate))
    return best[1] if best > farthest else None


def percentage(part: int, whole: int) -> str:
    """The share of one number in another, in percent: 100 only where nothing is left out, and 0.0 of nothing.

    >>> percentage(2, 3), percentage(99_999, 100_000), percentage(5, 5)
    ('66.6', '99.9', '100')
    """
    return "100" if part == whole > 0 else f"{1000 * part // whole / 10 if whole else 0:.1f}"


def shape_text(shape: Sequence[int]) -> str:
    """A shape in words: ``64x3x7x7``, and ``scalar`` for none."""
    return "x".join(map(str, shape)) or "scalar"


@lru_cache(maxsize=256)
def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype without its module: ``float32``."""
    return str(dtype).removeprefix("torch.")


def full_name(cls: type) -> str:
    """Module and name of a class: ``torch.nn.modules.linear.Linear``."""
    return f"{cls.__module__}.{cls.__qualname__}"


# --- strangers' text -------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    r"""The text with what a terminal would obey, or nobody sees, spelled out; lines and tabs stay.

    >>> print(plain("a\x1b[31mb\u202ec"))
    a\u001b[31mb\u202ec
    """
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    r"""A text in one line, nothing in it unseen, no longer than any honest name.

    >>> one_line("two\nlines\x1b")
    'two\\nlines\\u001b'
    """
    shown = text if text.isprintable() else plain(text).replace("\n", "\\n").replace("\t", "\\t")
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."


def masked(text: str) -> str:
    """The text without the secrets of URLs in it: logins, and parameters whose names suggest a secret.

    >>> masked("https://me:pass@example.org/a.pth?version=2&private_token=1234")
    'https://example.org/a.pth?version=2&private_token=***'
    """
    if "=" not in text and "://" not in text:  # a path, which a load masks for each tensor
        return text
    return _SECRET.sub(r"\1***", _LOGIN.sub("//", text))


# --- many at once ----------------------------------------------------------------------------------------------------


def abbreviate(names: Sequence[str], most: int = 5) -> str:
    """The first few of many names.

    >>> abbreviate(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(one_line, names[:most])) + more


def fold_numbers(name: str) -> str:
    """The name with a star for each part that is a number, so that those of like layers are one.

    >>> fold_numbers("layers.12.conv2.weight")
    'layers.*.conv2.weight'
    """
    return re.sub(r"(?<![^.])[0-9]+(?![^.])", "*", name)


def by_reason(verb: str, pairs: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each reason, with the first few of the names that it holds for.

    >>> by_reason("skipped", [("a", "is full"), ("b", "is wet"), ("c", "is full")])
    ['skipped a, c: is full', 'skipped b: is wet']
    """
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in pairs:
        names_by_reason.setdefault(reason, []).append(name)
    return [f"{verb} {abbreviate(names)}: {reason}" for reason, names in names_by_reason.items()]


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows under their heads, each column as wide as its longest cell.

    >>> print(format_table(["name", "std"], [["layers.0.weight", "0.02"]]))
    name             std
    layers.0.weight  0.02
    """
    table = [head, *(tuple(map(one_line, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
    return "\n".join(line.rstrip() for line in lines)


def shortened(paths: Collection[str]) -> Callable[[str], str]:
    """The function that calls each path in a text by its end, as much of it as tells it apart from the others.

    >>> shortened(["/a/b/net.pth"])("w of /a/b/net.pth")
    'w of net.pth'
    """
    ends, every = dict[str, str](), sorted({*paths}, key=len, reverse=True)
    for path in every:
        parts = path.split("/")
        tails = filter(None, ("/".join(parts[at:]) for at in range(len(parts) - 1, 0, -1)))
        unique = (tail for tail in tails if sum(f"/{other}".endswith(f"/{tail}") for other in every) == 1)
        ends[path] = next(unique, path)

    def shorten(text: str) -> str:
        for path, end in ends.items():
            text = text.replace(path, end)
        return text

    return shorten


# --- values ----------------------------------------------------------------------------------------------------------


class ShortStr:
    """A dataclass whose ``str`` is short, where its ``repr`` is exact."""

    __slots__ = ()

    def __str__(self) -> str:
        return short_repr(self)


def short_repr(value: object) -> str:
    """The value as a call without its defaults, numbers to six digits, required arguments by position.

    >>> from torchinit.initializers.elementwise import Constant, Normal
    >>> short_repr(Normal(std=0.1 + 0.2)), short_repr(Constant(1.0)), short_repr({"a": Constant(1.0)})
    ('Normal(std=0.3)', 'Constant(1)', "{'a': Constant(1)}")
    """
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple):
        return f"({', '.join(map(short_repr, value))}{',' * (len(value) == 1)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {short_repr(item)}' for key, item in value.items())}}}"
    if isinstance(value, type) or not is_dataclass(value):
        return repr(value)
    if type(value).__str__ is not ShortStr.__str__ and isinstance(value, ShortStr):
        return str(value)
    arguments = [(field, getattr(value, field.name)) for field in fields(value)]
    spelled = [
        short_repr(item) if field.default is MISSING else f"{field.name}={short_repr(item)}"
        for field, item in arguments
        if item != field.default
    ]
    return f"{type(value).__name__}({', '.join(spelled)})"
