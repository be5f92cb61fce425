"""The page of adapters: its table says what the code says."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

from torchinit.checkpoints.adapters import ADAPTERS

PAGE = Path(__file__).parents[3] / "docs/guides/adapters.md"


def signature(name: str) -> str:
    """The adapter as it is called, with its defaults."""
    given = [
        field.name if field.default is dataclasses.MISSING else f"{field.name}={field.default!r}"
        for field in dataclasses.fields(ADAPTERS.get(name))
    ]
    return f"{name}({', '.join(given)})"


def sentence(name: str) -> str:
    """What it does, in the first words of its docstring."""
    paragraph = (inspect.getdoc(ADAPTERS.get(name)) or "").partition("\n\n")[0]
    return re.sub(r":\w+:`([^`]*)`", r"`\1`", " ".join(paragraph.split())).replace("``", "`")


def test_the_table_has_every_adapter_as_it_is() -> None:
    rows = re.findall(r"^\| `(\w+\(.*?\))` \| (.*?) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert rows == [(signature(name), sentence(name)) for name in ADAPTERS]
