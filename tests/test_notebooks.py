"""The notebooks of examples/ run, and show what they say that they show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.notebooks import FOLDER, execute, outputs


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_shows_what_it_prints(path: Path, tmp_path: Path) -> None:
    execute(path, tmp_path / path.name)
    kept, made = (outputs(json.loads(each.read_text("utf-8"))) for each in (path, tmp_path / path.name))
    assert sum("torchinit-table" in text for text in kept) == 5, "as HTML, too"
    assert made == kept
