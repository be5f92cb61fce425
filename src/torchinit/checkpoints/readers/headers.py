"""Headers: JSON from strangers, in which no key is twice."""

from __future__ import annotations

import json
from typing import Any

from torchinit.core.maps import TwiceError, unique


def unique_json(raw: bytes) -> Any:
    """What JSON says, where it says it once; raises ValueError for anything else.

    >>> unique_json(b'{"a": [1, 2]}')
    {'a': [1, 2]}
    """
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=unique, parse_constant=_no_number)
    except TwiceError as error:
        raise ValueError(f"has the key {error.keys[0]!r} twice") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON: {error}") from error


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")
