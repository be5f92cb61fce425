"""Snippets: the fenced blocks of a Markdown page, run in order so that what a page says stays true.

* ```` ```python ```` blocks run one after the other in one namespace a page, in a folder of the page's own.
* ```` ```pycon ```` blocks, and python blocks that start with ``>>>``, are doctests in the same namespace.
* Each line of a ```` ```sh ```` block that begins with ``torchinit`` is run as a command in that folder.
* ``<!-- file: NAME -->`` before a block of any language writes the block to that file of the page's folder.
* ``<!-- prints -->`` before a block compares it with what the block before it printed; ``...`` stands for
  any text, as in a doctest.
* ``<!-- finds: TEXT -->`` before an ``sh`` block says that its commands find something (exit code 1), and print TEXT.
* ``<!-- skip: REASON -->`` before a block leaves it out; it shows in the run as a skipped test with that reason.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torchinit.cli import main

Directive = Literal["file", "finds", "prints", "skip"]

PYTHON = ("python", "pycon")
# Spellings that a highlighter takes for Python and this runner would pass by.
UNRUN = re.compile(r"^(py|python3|ipython3?|\{code-block\}.*|\{code\}.*)$")
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>[^`]*)$")
DIRECTIVE = re.compile(r"^ *<!-- (?P<name>file|finds|prints|skip)(?:: (?P<value>.*?))? -->$")
DOCTEST_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class SnippetError(AssertionError):
    """A block that is written wrongly or does not do what its page says."""


@dataclass(frozen=True, slots=True)
class Snippet:
    """One fenced block: where it starts, what it holds, and what the comment above it asks for."""

    page: Path
    line: int
    language: str
    code: str
    directive: Directive | None = None
    value: str = ""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def snippets(page: Path, text: str | None = None) -> list[Snippet]:
    """All fenced blocks of a page, in order."""
    lines = (page.read_text("utf-8") if text is None else text).splitlines()
    found: list[Snippet] = []
    directive: re.Match[str] | None = None
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if opening := FENCE.match(line):
            end = _closing(page, lines, number, opening["fence"])
            found.append(_snippet(page, number, opening, lines[number:end], directive))
            number, directive = end + 1, None
        elif line.strip():
            directive = DIRECTIVE.match(line)
    return found


def _closing(page: Path, lines: list[str], start: int, fence: str) -> int:
    for number in range(start, len(lines)):
        if lines[number].strip() == fence:
            return number
    raise SnippetError(f"{page}:{start}: this block is never closed")


def _snippet(
    page: Path, line: int, opening: re.Match[str], body: list[str], directive: re.Match[str] | None
) -> Snippet:
    language = opening["language"].strip()
    if UNRUN.match(language):
        raise SnippetError(f"{page}:{line}: ```{language} is not run; write ```python, ```pycon or ```text")
    code = textwrap.dedent("\n".join(body)) + "\n"
    if directive is None:
        return Snippet(page, line, language, code)
    if directive["name"] != "prints" and not directive["value"]:
        raise SnippetError(f"{page}:{line}: <!-- {directive['name']}: ... --> wants a value")
    name: Any = directive["name"]
    return Snippet(page, line, language, code, name, directive["value"] or "")


class Page:
    """The run of one page: its namespace, its folder, and what its last block printed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.printed = ""

    def run(self, snippet: Snippet) -> None:
        if snippet.directive == "file":
            self._write(snippet)
        elif snippet.directive == "prints":
            self._compare(snippet)
        elif snippet.directive is None and snippet.language in PYTHON:
            self._execute(snippet)
        elif snippet.directive in (None, "finds") and snippet.language == "sh":
            self._command(snippet)

    def _write(self, snippet: Snippet) -> None:
        target = self.folder / snippet.value
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(snippet.code, "utf-8")

    def _compare(self, snippet: Snippet) -> None:
        checker = doctest.OutputChecker()
        if not checker.check_output(snippet.code, self.printed, DOCTEST_OPTIONS):
            raise SnippetError(f"{snippet.place}: the page says\n{snippet.code}\nand it printed\n{self.printed}")

    def _execute(self, snippet: Snippet) -> None:
        if snippet.language == "pycon" or snippet.code.lstrip().startswith(">>>"):
            self._doctest(snippet)
            return
        # Blank lines in front make a traceback point at the page's own line.
        program = compile("\n" * snippet.line + snippet.code, str(snippet.page), "exec")
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(program, self.namespace)  # noqa: S102 - running the page is the purpose
        self.printed = output.getvalue()

    def _command(self, snippet: Snippet) -> None:
        self.printed, worst = "", 0
        for line in snippet.code.splitlines():
            if line.startswith("torchinit "):
                printed, code = run_command(line)
                self.printed, worst = self.printed + printed, max(worst, code)
        if worst != (snippet.directive == "finds") or snippet.value not in self.printed:
            raise SnippetError(f"{snippet.place}: exit code {worst}, printed\n{self.printed}")

    def _doctest(self, snippet: Snippet) -> None:
        test = doctest.DocTestParser().get_doctest(
            snippet.code, self.namespace, snippet.place, str(snippet.page), snippet.line
        )
        if not test.examples:
            raise SnippetError(f"{snippet.place}: a pycon block without a >>> line")
        said = io.StringIO()
        runner = doctest.DocTestRunner(optionflags=DOCTEST_OPTIONS, verbose=False)
        runner.run(test, out=said.write, clear_globs=False)
        self.namespace.update(test.globs)
        if runner.failures:
            raise SnippetError(f"{snippet.place}:\n{said.getvalue()}")


def run_command(command: str) -> tuple[str, int]:
    """Return what a `torchinit ...` prints, errors last, and its exit code."""
    program, *arguments = shlex.split(command, comments=True)
    assert program == "torchinit"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
    return out.getvalue() + err.getvalue(), code
