"""JSON without duplicate keys, and mappings that a frozen value can hold."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, final

import torchinit._limits as limits

_Value = TypeVar("_Value")


@final
class FrozenDict(Mapping[str, _Value]):
    """A mapping from ``str`` that cannot change, can be hashed, and prints as the dict that it was made of.

    Two are equal if they have the same items in the same order: where two keys match, the later one wins.

    >>> FrozenDict({"a": 1}), {FrozenDict({"a": 1}): "found"}[FrozenDict({"a": 1})]
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


def finite_data(value: Any) -> Any:
    """Plain data without numbers that JSON cannot hold: None for NaN, text for an infinity.

    >>> finite_data({"rms": (1.0, float("nan"), float("inf"))})
    {'rms': [1.0, None, 'inf']}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, Mapping):
        return {key: finite_data(item) for key, item in value.items()}
    return [finite_data(item) for item in value] if isinstance(value, (list, tuple)) else value


class DuplicateKeyError(ValueError):
    """Duplicate keys in one table; ``keys`` has them in the order in which they came again."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys: tuple[str, ...] = tuple(keys)
        super().__init__(f"the key {self.keys[0]!r} stands twice in one table")


def reject_duplicate_keys(pairs: Iterable[tuple[str, _Value]]) -> dict[str, _Value]:
    """The dict of pairs, as a hook for ``json``, which would let the last of two win; raises DuplicateKeyError."""
    items: dict[str, _Value] = {}
    duplicates: dict[str, None] = {}
    for key, value in pairs:
        if key in items:
            duplicates[key] = None
        items[key] = value
    if duplicates:
        raise DuplicateKeyError(duplicates)
    return items


def check_size(text: str | bytes, most: int = limits.JSON_VALUES) -> None:
    """Raise ValueError for JSON or TOML that may hold more values than that, before it is parsed."""
    # Marks within texts count as well, so the most is chosen far above what honest files hold.
    marks = ("[", "{", ",") if isinstance(text, str) else (b"[", b"{", b",")
    if sum(map(text.count, marks)) > most:  # type: ignore[arg-type]  # of the type of the text
        raise ValueError(f"holds more than {most:,} values")


def unique_json(raw: bytes, most: int = limits.JSON_VALUES) -> Any:
    """The data of JSON from strangers; ValueError for duplicate keys, NaN, more values than ``most``, or no JSON."""
    check_size(raw, most)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=reject_duplicate_keys, parse_constant=refuse)
    except DuplicateKeyError as error:
        raise ValueError(f"has the key {error.keys[0]!r} twice") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error
