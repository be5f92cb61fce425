"""Maps: mappings that are frozen and in order, so that a frozen value can hold one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar, final

_Value = TypeVar("_Value")


@final
class FrozenMap(Mapping[str, _Value]):
    """A mapping from text that cannot change, can be hashed, and prints as the dict that it was made of.

    Two are equal if they have the same items in the same order: where two keys match, the later one wins.

    >>> FrozenMap({"a": 1}), {FrozenMap({"a": 1}): "found"}[FrozenMap({"a": 1})]
    ({'a': 1}, 'found')
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, _Value] | None = None) -> None:
        self._items = dict(items or {})

    def __getitem__(self, key: str) -> _Value:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return repr(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and tuple(self.items()) == tuple(other.items())

    def __hash__(self) -> int:
        return hash(tuple(self.items()))
