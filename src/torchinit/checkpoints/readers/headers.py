"""Headers: JSON from strangers, in which no key is twice."""

from __future__ import annotations

import json
from typing import Any


def unique_json(raw: bytes) -> Any:
    """What JSON says, where it says it once; raises ValueError for anything else.

    >>> unique_json(b'{"a": [1, 2]}')
    {'a': [1, 2]}
    """
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_once, parse_constant=_no_number)
    except _TwiceError:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON: {error}") from error


class _TwiceError(ValueError):
    """A key that is there twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise _TwiceError(f"has the key {key!r} twice")
        made[key] = value
    return made


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")
