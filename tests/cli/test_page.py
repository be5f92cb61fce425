"""The page of the command line: each `$ torchinit ...` on it prints what the page says."""

from __future__ import annotations

import doctest
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.snippets import DOCTEST_OPTIONS, Page, run_command, snippets

PAGE = Path(__file__).parents[2] / "docs/reference/cli.md"


def test_console_blocks_print_what_the_page_says(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page, ran, code = Page(tmp_path), 0, 0
    for snippet in snippets(PAGE):
        page.run(snippet)
        if snippet.language == "console":
            for command, expected in commands(snippet.code):
                if command == "echo $?":
                    printed = f"{code}\n"
                else:
                    printed, code = run_command(command)
                    ran += 1
                same = doctest.OutputChecker().check_output(expected, printed, DOCTEST_OPTIONS)
                assert same, f"{snippet.place}: $ {command}\nprinted\n{printed}\nand the page says\n{expected}"
    assert ran >= 10


def commands(block: str) -> Iterator[tuple[str, str]]:
    """The commands of a block, each with the output below it."""
    for part in ("\n" + block).split("\n$ ")[1:]:
        command, _, output = part.partition("\n")
        yield command, output
