"""Prefixes: what the beginning of a source stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefixes(Generic[T]):
    """What each beginning of a source stands for, the longer beginning before the shorter one.

    A prefix is a regular expression that is matched at the start, as MMEngine's schemes are. They are tried in
    reverse alphabetical order, so ``""`` comes last and takes everything.

    >>> kinds = Prefixes[str]()
    >>> kinds.register(["http://", "https://"], "web")
    >>> kinds.register("", "file")
    >>> kinds.find("https://example.org/a.pth"), kinds.find("a.pth"), list(kinds)
    ('web', 'file', ['https://', 'http://', ''])
    """

    def __init__(self) -> None:
        self._values: dict[str, T] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._values, reverse=True))

    def register(self, prefixes: str | Iterable[str], value: T, *, force: bool = False) -> None:
        """Lets prefixes stand for a value; KeyError for one that is taken, unless ``force`` replaces it."""
        names = [prefixes] if isinstance(prefixes, str) else list(prefixes)
        taken = sorted(self._values.keys() & set(names))
        if taken and not force:
            raise KeyError(f"{', '.join(taken)}: registered already; force=True replaces it")
        self._values.update(dict.fromkeys(names, value))

    def find(self, source: str) -> T | None:
        """What the source's beginning stands for; None if nobody registered it."""
        return next((self._values[prefix] for prefix in self if re.match(prefix, source)), None)
