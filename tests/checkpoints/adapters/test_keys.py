"""Keys: whole parts are found, the last of them is meant."""

from __future__ import annotations

import pytest

from torchinit.checkpoints.adapters.keys import numbered, swapped


@pytest.mark.parametrize(
    ("key", "old", "new", "made"),
    [
        ("a.b.c", "b", "x", "a.x.c"),
        ("a.b.c", "b.c", "x", "a.x"),
        ("a.b.c", "a", "x.y", "x.y.b.c"),
        ("a.b.a", "a", "x", "a.b.x"),
        ("ab.b", "b", "x", "ab.x"),
        ("a", "a", "x", "x"),
    ],
)
def test_swapped(key: str, old: str, new: str, made: str) -> None:
    assert swapped(key, old, new) == made


@pytest.mark.parametrize(("key", "old"), [("a.b", "c"), ("abcd", "a"), ("a.b", "a.b.c"), ("b.a", "a.b")])
def test_parts_that_are_not_there(key: str, old: str) -> None:
    with pytest.raises(ValueError, match=rf"^'{key}' has no part '{old}'$"):
        swapped(key, old, "x")


def test_numbered() -> None:
    assert numbered("h.1.e.3.w", "e.*.w") == (3, "e.3.w")
    assert numbered("h.1.2", "*") == (2, "2")
    with pytest.raises(ValueError, match=r"^'h.e.w' has no part 'e.\*'$"):
        numbered("h.e.w", "e.*")
