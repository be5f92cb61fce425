r"""Regular expressions of a stranger's: they match what `re` matches, in bounded time.

`re` tries the ways in which an expression can match one after the other, and ``(a+)+b`` has 2**n of them on n times
``a``. It cannot be stopped, for it holds the interpreter's lock. Counting the ways beforehand was tried: what is
counted too low hangs, and what is counted too high refuses what people write. The package `regex` takes Python's
syntax and a limit of time, so it matches, while `re` says what an expression is and how a replacement is read.

Where the two are known to differ: beyond ASCII, ``\w``, ``\s`` and ignored case follow another table of Unicode, and
``(?a:...)`` does not turn to ASCII; a condition on a group within that group, ``((?(1)a|b))``, may differ; brackets
within brackets end at about a hundred, where Python takes some hundreds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

import torchinit._limits as limits
from torchinit.errors import ConfigError

_ESCAPED: Final = {"{": r"\{", "{}": r"\{}"} | ({} if re.search(r"\B", "") else {r"\B": r"(?:(?!\A\Z)\B)"})
_REMEDY: Final = "say what ends a part, as in [^.]+[.], or let it keep what it has, as in [^.]++"
_FREE: Final = 1e-3
_spent = 0.0
"""The seconds of the processor that each use has free, and those beyond it that uses have taken so far."""

_TOKEN: Final = r"\\.|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])|(?P<count>[*+?]|\{(?P<least>\d*)(?P<to>,?)(?P<most>\d*)\})|"
_TOKEN_END: Final = r"\(\?#(?:\\.|[^)\\])*\)|."


def check_pattern(pattern: str, new: str = "") -> None:
    """Raise re.error or IndexError, as `re` does, for what is not an expression, or not a replacement for it."""
    if len(pattern) > limits.NAME_LENGTH:
        raise re.error(f"it has {len(pattern):,} characters, more than {limits.NAME_LENGTH:,}")
    try:
        with _accounted("regular expressions take", f"all up to {pattern[:40]!r}"):
            _replacement(pattern, new)
            _compiled(pattern)
    except (RecursionError, OverflowError) as error:
        raise re.error(f"more than Python can take: {error}") from None


def matches_whole(pattern: str, text: str) -> bool:
    """Whether :func:`re.fullmatch` matches. Raises ConfigError if that takes too long.

    >>> matches_whole(r"layers[.](0|1)[.].*", "layers.1.weight")
    True
    """
    return _bounded("fullmatch", pattern, text, text) is not None


def substitute(pattern: str, new: str, text: str) -> str:
    r"""Return what :func:`re.sub` returns. Raises ConfigError if that takes too long.

    >>> substitute(r"^layers[.](\d+)", r"blocks.\1.body", "layers.1.weight")
    'blocks.1.body.weight'
    """
    parts = _replacement(pattern, new)

    def expand(match: Any) -> str:
        return "".join(part if isinstance(part, str) else match[part] or "" for part in parts)

    changed: str = _bounded("sub", pattern, text, expand, text)
    return changed


def _bounded(method: str, pattern: str, text: str, *arguments: object) -> Any:
    shown = repr(text if len(text) <= 60 else text[:40]) + "..." * (len(text) > 60)
    with _accounted(f"{pattern!r} takes", f"all names up to {shown}"):
        try:
            return getattr(_compiled(pattern), method)(*arguments, timeout=limits.PATTERN_SECONDS)
        except TimeoutError:
            most = f"more than {limits.PATTERN_SECONDS:g} s to match {shown}"
            raise ConfigError(f"{pattern!r} takes {most}; {_REMEDY}") from None


@contextmanager
def _accounted(subject: str, what: str) -> Iterator[None]:
    """Raise ConfigError once expressions take too much processor time in all."""
    # A limit for each name alone would let a file of ten thousand names take hours. Each use has its time free, as
    # expressions that people write take far less; what is beyond is added up, and paid back by those that are quick.
    global _spent  # noqa: PLW0603  # one account for all expressions, for there may be many
    begin = time.thread_time()
    yield
    _spent = max(0.0, _spent + time.thread_time() - begin - _FREE)
    if _spent > limits.PATTERNS_SECONDS:
        _spent = 0.0
        raise ConfigError(f"{subject} more than {limits.PATTERNS_SECONDS:g} s with {what}; {_REMEDY}")


@lru_cache(maxsize=32)  # each takes two megabytes at most
def _compiled(pattern: str) -> Any:
    verbose = bool(re.compile(pattern).flags & re.VERBOSE)
    try:
        import regex
    except ModuleNotFoundError:
        raise ConfigError(f"{pattern!r} needs the package regex: pip install regex") from None
    try:
        return regex.compile(_translated(pattern, verbose), regex.VERSION0)
    except regex.error as error:
        raise re.error(f"it cannot be matched in bounded time: {error}") from None


def _translated(pattern: str, verbose: bool) -> str:
    """The expression with what `regex` alone has a meaning for escaped: other braces, and brackets within a set.

    ``block{i}`` would be a fuzzy match there, and ``[[:alpha:]]`` a class. On the way its size is counted, since
    `regex` copies what has to occur: ``x{9}`` is nine copies and ``(x+)+`` four, so short texts can fill the memory.
    Raises re.error for more than 50,000 copies.
    """
    # `sizes` holds the sizes of the groups that are open, `last` that of the item which a count would repeat. What the
    # expression has to hold is clear, for `re` has compiled it; a count's suffix `+` is taken for a count of its own.
    texts, sizes, last = [], [0], 0
    for match in re.finditer(_TOKEN + (r"\#[^\n]*|" if verbose else "") + _TOKEN_END, pattern, re.DOTALL):
        token = match[0]
        if match["count"] and token != "{}":
            least = {"*": 0, "?": 0, "+": 1}.get(token, int(match["least"] or 0))
            copies = max(1, least + (token == "+" or (match["to"] == "," and match["most"] != match["least"])))
            sizes[-1] += last * (copies - 1)
            last *= copies
        elif token == "(":
            sizes.append(0)
        elif token == ")" and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        else:
            last = 1
            sizes[-1] += last
        if sizes[-1] > limits.PATTERN_COPIES + len(pattern):
            raise re.error(f"what has to occur in it is repeated more than {limits.PATTERN_COPIES:,} times")
        texts.append(_escaped(match))
    return "".join(texts)


def _escaped(match: re.Match[str]) -> str:
    if match["set"]:
        return "[" + re.sub(r"(\\.)|\[", lambda inner: inner[1] or r"\[", match[0][1:], flags=re.DOTALL)
    return _ESCAPED.get(match[0], match[0])


@lru_cache(maxsize=1024)
def _replacement(pattern: str, new: str) -> tuple[str | int, ...]:
    """The literal texts of a replacement, and between them the numbers of the groups, as `re` reads it.

    `re` does not tell how it reads one, but shows it: it is asked to replace a text of marks, one a group, found by
    an expression of as many groups of the same names. The marks in what it makes of that are the groups.
    """
    compiled = re.compile(pattern)
    mark = next(letter for letter in map(chr, range(0xE000, 0x110000)) if letter not in new)
    names = {number: f"?P<{name}>" for name, number in compiled.groupindex.items()}
    marks = [f"{mark}{number}{mark}" for number in range(compiled.groups + 1)]
    groups = (f"({names.get(number, '')}{text})" for number, text in enumerate(marks[1:], 1))
    shown = re.sub(marks[0] + "".join(groups), new, "".join(marks)).replace("".join(marks), marks[0])
    return tuple(int(part) if at % 2 else part for at, part in enumerate(re.split(f"{mark}([0-9]+){mark}", shown)))
