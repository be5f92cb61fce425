"""README and docs: every Python snippet runs, and prints what its page says it prints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.logs import unconfigured
from tests.snippets import PYTHON, Page, snippets
from torchinit.linting import CHECKS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    if "_build" not in page.parts and any(s.language in PYTHON for s in snippets(page))
)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchinit.linting.registry.CHECKS", dict(CHECKS))  # a page adds one of its own
    run = Page(tmp_path)
    with torch.random.fork_rng(), unconfigured():
        for snippet in snippets(page):
            run.run(snippet)
    for snippet in snippets(page):
        if snippet.directive == "skip":
            with subtests.test(f"{name(page)}:{snippet.line}"):
                pytest.skip(snippet.value)


def test_the_readme_has_snippets() -> None:
    assert ROOT / "README.md" in PAGES
