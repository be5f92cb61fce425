"""Keys: dotted parts of a key, found and replaced."""

from __future__ import annotations

import re

from torchinit.errors import did_you_mean


def swapped(key: str, old: str, new: str) -> str:
    """The key with the last ``old``, one or several whole parts of it, replaced.

    Raises ValueError for a key without it.

    >>> swapped("h.0.attn.qkv.weight", "qkv", "q_proj")
    'h.0.attn.q_proj.weight'
    """
    at, parts = _found(key, old), key.split(".")
    return ".".join([*parts[:at], *new.split("."), *parts[at + len(old.split(".")) :]])


def place(key: str, wanted: str) -> int | None:
    """At which of the key's parts the last ``wanted`` begins; ``*`` in it stands for one part that is a number.

    >>> place("h.0.attn.qkv.weight", "attn.qkv"), place("h.0.attn.qkv.weight", "tn"), place("h.0", "*")
    (2, None, 1)
    """
    parts, run = key.split("."), wanted.split(".")
    places = range(len(parts) - len(run), -1, -1)
    return next((at for at in places if all(map(_fits, parts[at : at + len(run)], run))), None)


def numbered(key: str, pattern: str) -> tuple[int, str]:
    """The number at the ``*`` of the pattern, and the part of the key that the pattern stands for.

    Raises ValueError for a key without it.

    >>> numbered("layers.1.experts.12.w1.weight", "experts.*.w1")
    (12, 'experts.12.w1')
    """
    at = _found(key, pattern)
    run = pattern.split(".")
    found = key.split(".")[at : at + len(run)]
    return int(found[run.index("*")]), ".".join(found)


def check_pattern(name: str, pattern: str) -> None:
    """Raises ValueError unless the pattern has exactly one part ``*``."""
    if pattern.split(".").count("*") != 1:
        raise ValueError(f"{name} must have one part '*', the number of each, but got {pattern!r}")


def _found(key: str, wanted: str) -> int:
    at = place(key, wanted)
    if at is None:
        parts, length = key.split("."), len(wanted.split("."))
        runs = [".".join(parts[start : start + length]) for start in range(len(parts) - length + 1)]
        raise ValueError(f"{key!r} has no part {wanted!r}{did_you_mean(wanted, [] if '*' in wanted else runs)}")
    return at


def _fits(part: str, wanted: str) -> bool:
    return part == wanted or (wanted == "*" and re.fullmatch(r"[0-9]+", part) is not None)
