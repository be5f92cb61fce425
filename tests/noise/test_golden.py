"""The values of the published stream, draw by draw; see tests/noise/golden.py for how the file came to be."""

from __future__ import annotations

import json

import pytest

from tests.noise.golden import COUNT, FILE, Case, main
from torchinit.noise import STREAM


def test_values_are_those_of_the_published_stream() -> None:
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    assert kept["stream"] == STREAM
    assert len(kept["cases"]) == COUNT
    changed = []
    for row in kept["cases"]:
        digest = row.pop("digest")
        case = Case(**row)
        if case.digest() != digest:
            changed.append(case)
    assert not changed


def test_the_file_is_never_overwritten() -> None:
    with pytest.raises(SystemExit, match=r"stream-1.json exists: values of a published stream never change"):
        main()
