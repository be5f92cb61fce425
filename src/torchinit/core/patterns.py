"""Patterns: whether a regular expression of a stranger can be matched in reasonable time.

Python tries the ways in which an expression may match one after the other. They are many where something that
repeats may end at many places, and without number where it repeats something of that kind: ``(a+)+b`` takes 2**n
steps on n times ``a``. Counted are the ways on a text of a hundred letters; a choice counts where the next letter
does not tell it, and where a word comes next, as in ``.*attn.*``, no more ends than there may be such words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

_LENGTH: Final = 100
_MOST: Final = 1e8
"""So many ways Python goes in seconds."""

_Chars = frozenset[str]
_ALPHABET: Final[_Chars] = frozenset([*map(chr, range(128)), "é"])
_NONE: Final[_Chars] = frozenset()


def slow(pattern: str) -> str:
    """Why an expression may take forever to match; nothing for one that does not.

    It is judged as :func:`re.sub` and :func:`re.fullmatch` match it. Raises re.error for what is none.

    >>> slow(r"^(?:[^.]+[.])*weight$")
    ''
    >>> slow(r"(?:[^.]+[.]?)*weight$")
    "'(?:[^.]+[.]?)*weight$' may take forever to match: what repeats in it can be cut in too many ways; ..."
    """
    parser: Any = getattr(re, "_parser")  # noqa: B009  # as old as Python 3.11, under another name before
    try:
        ways, _ = _sequence(parser.parse(pattern), _NONE)
    except (RecursionError, OverflowError) as error:
        return f"{pattern!r} is more than Python can take: {error}"
    remedy = "say what ends a part, as in [^.]+[.], or let it keep what it has, as in [^.]++"
    cut = "may take forever to match: what repeats in it can be cut in too many ways"
    return f"{pattern!r} {cut}; {remedy}" if ways > _MOST else ""


@lru_cache(maxsize=1024)
def _sequence(items: Iterable[tuple[Any, Any]], follow: _Chars) -> tuple[float, _Chars]:
    """In how many ways the items can match one after the other, and which letters they begin with.

    ``follow`` are the letters that may come after them.
    """
    ways, word = 1.0, ""
    for kind, held in reversed([*items]):
        more, follow = _item(str(kind), held, follow, word)
        ways = min(ways * more, float("inf"))
        word = chr(held) + word if str(kind) == "LITERAL" else ""
    return ways, follow


def _item(kind: str, held: Any, follow: _Chars, word: str) -> tuple[float, _Chars]:
    if kind in _LETTERS:
        return 1, _either_case(_LETTERS[kind](held))
    if kind in ("MAX_REPEAT", "MIN_REPEAT"):
        return _repeat(held[0], held[1], held[2], follow, word)
    if kind == "SUBPATTERN":
        return _sequence(held[3], follow)
    if kind == "BRANCH":
        return _branch(held[1], follow)
    if kind == "AT":
        return 1, follow
    if kind in ("ASSERT", "ASSERT_NOT"):
        return _sequence(held[1], _ALPHABET)[0], follow
    if kind in ("ATOMIC_GROUP", "POSSESSIVE_REPEAT"):  # which never give back what they have
        least, _, body = (1, 1, held) if kind == "ATOMIC_GROUP" else held
        return _sequence(body, _NONE)[0], _sequence(body, follow)[1] | (follow if least == 0 else _NONE)
    if kind == "GROUPREF_EXISTS":
        return _branch([branch or () for branch in held[1:]], follow)
    return 1, _ALPHABET


def _repeat(least: int, most: int, body: Any, follow: _Chars, word: str) -> tuple[float, _Chars]:
    most = min(most, _LENGTH)
    ways, first = _sequence(body, _sequence(body, follow)[1] | follow if most > 1 else follow)
    ends = min(most - min(least, most) + 1, _LENGTH // _apart(word)) if first & follow else 1
    many = ends if ways == 1 else ends * ways**most if most * len(str(int(min(ways, 1e300)))) < 300 else float("inf")
    return many, first | (follow if least == 0 else _NONE)


def _apart(word: str) -> int:
    """How many letters there are at least from the beginning of a word to that of the next."""
    return next((shift for shift in range(1, len(word)) if word.startswith(word[shift:])), max(1, len(word)))


def _branch(branches: Iterable[Any], follow: _Chars) -> tuple[float, _Chars]:
    found = [_sequence(branch, follow) for branch in branches]
    firsts = [first for _, first in found]
    every = _NONE.union(*firsts)
    told_apart = sum(map(len, firsts)) == len(every)
    return (max if told_apart else sum)(ways for ways, _ in found), every


def _in(items: Iterable[tuple[Any, Any]]) -> _Chars:
    pairs = [(str(kind), held) for kind, held in items]
    held = _NONE.union(*(_LETTERS[kind](one) for kind, one in pairs if kind != "NEGATE"))
    return _ALPHABET - held if pairs[0][0] == "NEGATE" else held


def _category(name: Any) -> _Chars:
    kind = str(name).removeprefix("CATEGORY_")
    meant = frozenset(letter for letter in _ALPHABET if _CATEGORIES[kind.removeprefix("NOT_")](letter))
    return _ALPHABET - meant if kind.startswith("NOT_") else meant


def _either_case(letters: _Chars) -> _Chars:
    return letters | {letter.lower() for letter in letters} | {letter.upper() for letter in letters}


def _letter(code: int) -> _Chars:
    return frozenset([chr(code) if code < 128 else "é"])


_CATEGORIES: Final[Mapping[str, Callable[[str], bool]]] = {
    "DIGIT": str.isdigit, "SPACE": str.isspace, "WORD": lambda letter: letter.isalnum() or letter == "_",
}  # fmt: skip
_LETTERS: Final[Mapping[str, Callable[[Any], _Chars]]] = {
    "ANY": lambda _: _ALPHABET,
    "CATEGORY": _category,
    "IN": _in,
    "LITERAL": _letter,
    "NOT_LITERAL": lambda code: _ALPHABET - _letter(code) if code < 128 else _ALPHABET,
    "RANGE": lambda ends: frozenset().union(
        *(_letter(min(code, 128)) for code in range(ends[0], min(ends[1], 128) + 1))
    ),
}
