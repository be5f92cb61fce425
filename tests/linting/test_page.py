"""The page of the checks: its table is the registry."""

from __future__ import annotations

import re
from pathlib import Path

from torchinit.linting import CHECKS

PAGE = Path(__file__).parents[2] / "docs/guides/lint.md"
TABLE = re.compile(r"<!-- table: checks -->\n(.*?)<!-- table ends -->", re.DOTALL)


def table() -> str:
    """The checks as a table in Markdown."""
    rows = [
        f"| `{code}` | {one.name} | {one.severity} | {one.needs} | {one.summary} |\n"
        for code, one in sorted(CHECKS.items())
    ]
    head = "| code | name | severity | needs | what it finds |\n|---|---|---|---|---|\n"
    return "".join([head, *rows]).replace("``", "`")


def test_the_table_is_the_registry() -> None:
    found = TABLE.search(PAGE.read_text("utf-8"))
    assert found
    assert found[1] == table(), f"the table of {PAGE.name} should be\n{table()}"
