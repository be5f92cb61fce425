"""Downloads: a body, the bounds that keep tests quick, and what lies in a cache."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchinit.checkpoints import Limits, fetch

BODY = random.Random(0).randbytes(3_000_000)
SHA = hashlib.sha256(BODY).hexdigest()
QUICK = Limits(idle=20, total=60, attempts=3, pause=0.01, private=("localhost", "127.0.0.1"))
"""Tries again at once."""

HASTY = replace(QUICK, idle=0.4)
"""Gives up soon: for servers that never answer, since on a busy machine nobody else is that fast either."""


def got(url: str, **options: Any) -> bytes:
    return fetch(url, **{"limits": QUICK, **options}).read_bytes()


def left_in(cache: Path) -> list[str]:
    """What lies in a cache: entries, and parts that can be gone on with."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.parent.name != ".locks")
