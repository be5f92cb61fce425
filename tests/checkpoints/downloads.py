"""Downloads: a body, the bounds that keep tests quick, and what lies in a cache."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

from torchinit.checkpoints import Limits, fetch

BODY = random.Random(0).randbytes(3_000_000)
SHA = hashlib.sha256(BODY).hexdigest()
QUICK = Limits(idle=0.4, slowest=1000, total=20, attempts=3, pause=0.01, private=("localhost", "127.0.0.1"))


def got(url: str, **options: Any) -> bytes:
    return fetch(url, **{"limits": QUICK, **options}).read_bytes()


def left_in(cache: Path) -> list[str]:
    """What lies in a cache: entries, and parts that can be gone on with."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.parent.name != ".locks")
