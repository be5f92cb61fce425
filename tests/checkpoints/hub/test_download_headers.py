"""Headers of answers: what a server asks for is kept to, within bounds."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from torchinit.checkpoints.hub.download import length_of, retry_after, validator_of


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("7", 7, 7),
        ("86400", 60, 60),
        (formatdate(time.time() + 86400, usegmt=True), 60, 60),
        (formatdate(time.time() - 86400, usegmt=True), 0, 0),
        ("soon", 0, 0),
        ("-5", 0, 0),
        ("", 0, 0),
    ],
    ids=[
        "7",
        "86400",
        "tomorrow",
        "yesterday",
        "soon",
        "-5",
        "nothing",
    ],  # the same in every process
)
def test_how_long_a_busy_server_is_left_alone(text: str, least: float, most: float) -> None:
    assert least <= retry_after({"retry-after": text}) <= most


def test_what_tells_that_a_file_is_the_same() -> None:
    both = {"etag": '"a"', "last-modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    assert validator_of(both) == '"a"'
    assert validator_of({**both, "etag": 'W/"a"'}) == both["last-modified"]
    assert validator_of({}) == ""


def test_a_length_beside_chunks_does_not_count() -> None:
    assert length_of("u", {"content-length": "5"}) == 5
    assert length_of("u", {"content-length": "5", "transfer-encoding": "chunked"}) is None
    assert length_of("u", {}) is None
