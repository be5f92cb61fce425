"""The runner of the pages' snippets: it runs what it says, in order, and fails when a page is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.snippets import Page, Snippet, SnippetError, snippets

HERE = Path("page.md")


def run(text: str, folder: Path) -> Page:
    page = Page(folder)
    for snippet in snippets(HERE, text):
        page.run(snippet)
    return page


def test_blocks_share_one_namespace(tmp_path: Path) -> None:
    text = "```python\na = 1\n```\ntext\n```pycon\n>>> b = a + 1\n```\n```python\nc = a + b\n```\n"
    assert run(text, tmp_path).namespace["c"] == 3


def test_a_block_in_a_list_is_dedented() -> None:
    assert snippets(HERE, "* item\n\n  ```python\n  a = 1\n  ```\n") == [Snippet(HERE, 3, "python", "a = 1\n")]


def test_other_languages_are_not_run(tmp_path: Path) -> None:
    assert "a" not in run("```text\na = 1\n```\n````markdown\n```python\na = 1\n```\n````\n", tmp_path).namespace


def test_file_is_written(tmp_path: Path) -> None:
    run('<!-- file: sub/recipe.toml -->\n\n```toml\n[[rules]]\ntype = "Ones"\n```\n', tmp_path)
    assert (tmp_path / "sub/recipe.toml").read_text("utf-8") == '[[rules]]\ntype = "Ones"\n'


def test_printed_text_is_compared(tmp_path: Path) -> None:
    run("```python\nprint('one 2 three')\n```\n<!-- prints -->\n```text\none ... three\n```\n", tmp_path)
    with pytest.raises(SnippetError, match=r"page\.md:5: the page says\ntwo"):
        run("```python\nprint('one')\n```\n<!-- prints -->\n```text\ntwo\n```\n", tmp_path)


def test_skip_keeps_its_reason_and_is_not_run(tmp_path: Path) -> None:
    text = "<!-- skip: needs a GPU -->\n```python\nraise ValueError\n```\n"
    (snippet,) = snippets(HERE, text)
    assert (snippet.directive, snippet.value) == ("skip", "needs a GPU")
    run(text, tmp_path)


def test_a_directive_holds_for_the_next_block_only(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run("<!-- skip: later -->\nSome text.\n```python\n1 / 0\n```\n", tmp_path)


def test_commands_are_run(tmp_path: Path) -> None:
    page = run("```sh\npip install .\ntorchinit list schemes   # those that come with it\n```\n", tmp_path)
    assert "general" in page.printed
    run("```sh\ntorchinit explain Ones\n```\n<!-- prints -->\n```text\nOnes: Every ...\n```\n", tmp_path)


def test_a_command_finds_what_the_page_says(tmp_path: Path) -> None:
    check = "```sh\ntorchinit check torch.nn:Transformer --arg batch_first=true --arg d_model=64\n```\n"
    run(f"<!-- finds: TI301 -->\n{check}", tmp_path)
    for text, message in (
        (check, r"page\.md:1: exit code 1, printed\n(.|\n)*TI301"),
        (f"<!-- finds: TI999 -->\n{check}", r"page\.md:2: exit code 1"),
        ("<!-- finds: general -->\n```sh\ntorchinit list schemes\n```\n", r"page\.md:2: exit code 0"),
        ("<!-- finds: a -->\n```sh\ntorchinit plan nothing.py:at_all general\n```\n", r"exit code 2, (.|\n)*nothing"),
    ):
        with pytest.raises(SnippetError, match=message):
            run(text, tmp_path)


def test_traceback_names_the_line_of_the_page(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run("text\n\n```python\na = 1\n1 / 0\n```\n", tmp_path)
    assert caught.traceback[-1].lineno + 1 == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```pycon\n>>> 1 + 1\n3\n```\n", r"(?s)page\.md:1.*Expected:\n    3\nGot:\n    2"),
        ("```pycon\n1 + 1\n```\n", r"page\.md:1: a pycon block without a >>> line"),
        ("```python\n1\n", r"page\.md:1: this block is never closed"),
        ("```py\n1\n```\n", r"page\.md:1: ```py is not run"),
        ("```{code-block} python\n1\n```\n", r"```\{code-block\} python is not run"),
        ("<!-- skip -->\n```python\n1\n```\n", r"page\.md:2: <!-- skip: \.\.\. --> wants a value"),
    ],
)
def test_a_wrong_page_fails(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SnippetError, match=message):
        run(text, tmp_path)
