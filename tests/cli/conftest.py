"""The fixture that the tests of commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.given import Write


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, text: str) -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write_file
