"""Globs: dotted names with wildcards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

_MOST: Final = 6


def check_glob(glob: object) -> None:
    """Raises TypeError for what is no text, ValueError for text with an empty part.

    >>> check_glob("layers.*.weight")
    """
    if not isinstance(glob, str):
        raise TypeError(f"a name is text, but got {glob!r}")
    if "" in glob.split("."):
        raise ValueError(f"a name is dotted text such as 'layers.*.weight', but got {glob!r}")
    parts = glob.split(".")
    if parts.count("**") > _MOST or any(part.count("*") > _MOST for part in parts):
        raise ValueError(
            f"a name has at most {_MOST} wildcards, which can be matched in too many ways, but got {glob!r}"
        )


def check_globs(argument: str, globs: object) -> None:
    """Raises TypeError or ValueError for what is no list of globs; the text begins with the argument's name.

    >>> check_globs("adapt", ["head.**"])
    """
    if not isinstance(globs, (list, tuple, Mapping)):
        raise TypeError(f"{argument} must be text or a list, but got {globs!r}")
    for glob in globs:
        try:
            check_glob(glob)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{argument}: {error}") from None


def glob_matches(glob: str, name: str) -> bool:
    """Whether a dotted name fits a glob.

    >>> glob_matches("a.**.b", "a.b"), glob_matches("a.**.b", "a.x.y.b"), glob_matches("conv*", "conv1")
    (True, True, True)
    """
    return _glob(glob).fullmatch(name + ".") is not None


@lru_cache(maxsize=4096)
def _glob(glob: str) -> re.Pattern[str]:
    # Each part is read with the dot behind it, so that "**" is any number of such units; at the end of a
    # glob it is at least one, since 'head.**' is what lies below 'head'.
    *parts, last = glob.split(".")
    texts = [r"(?:[^.]+\.)*" if part == "**" else _part(part) for part in parts]
    return re.compile("".join([*texts, r"(?:[^.]+\.)+" if last == "**" else _part(last)]))


def _part(part: str) -> str:
    wild = {"*": "[^.]*", "?": "[^.]"}
    return "".join(wild.get(char) or re.escape(char) for char in part) + r"\."
