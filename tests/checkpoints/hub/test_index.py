"""Members: an index names files beside it, and nothing else."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from torchinit.checkpoints import member_of
from torchinit.errors import FetchError

SOURCES = ["/data/m/index.json", "m/index.json", "https://example.org/m/index.json", "hf://org/repo/m/index.json@v1"]
OUTSIDE = [
    "",
    ".",
    "..",
    "../a",
    "a/../../b",
    "/etc/passwd",
    "//evil.org/a",
    "a//b",
    "a/",
    "./a",
    "\\evil\\a",
    "..\\a",
    "C:a",
    "https://evil.org/a",
    "file:///etc/passwd",
    "a?x",
    "a#x",
    "%2e%2e/a",
    "a\nb",
    "a\0b",
]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", OUTSIDE)
def test_what_lies_outside_is_refused(source: str, name: str) -> None:
    with pytest.raises(FetchError, match="which is not in its folder"):
        member_of(source, name)


@pytest.mark.parametrize(
    ("source", "member"),
    [
        ("/data/m/index.json", "/data/m/x/a b.bin"),
        ("index.json", "x/a b.bin"),
        ("https://example.org/m/index.json#part", "https://example.org/m/x/a%20b.bin"),
        ("https://example.org/index.json?a=1", "https://example.org/x/a%20b.bin?a=1"),
        ("hf://org/repo/m/index.json@v1", "hf://org/repo/m/x/a b.bin@v1"),
        ("hf://org/repo/index.json", "hf://org/repo/x/a b.bin"),
        ("models://m/index.json", "models://m/x/a b.bin"),
    ],
)
def test_what_lies_beside_it(source: str, member: str) -> None:
    assert member_of(source, "x/a b.bin") == member


@given(st.text())
@example("a/..")
@example("x/.../y")
def test_a_member_is_refused_or_lies_in_the_folder(name: str) -> None:
    try:
        member = member_of("https://example.org/m/index.json", name)
    except FetchError:
        return
    parts = urlsplit(member)
    assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("https", "example.org", "", "")
    path = PurePosixPath(unquote(parts.path))
    assert path.is_relative_to("/m")
    assert ".." not in path.parts
