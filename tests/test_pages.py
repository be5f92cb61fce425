"""README and the pages as a reader has them: links, translations, the first screen, and what `pip install .` brings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.snippets import snippets

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
CHINESE = [READMES[1], *sorted(ROOT.glob("docs/zh_CN/*.md"))]
FIRST_STEPS = [*READMES, ROOT / "docs/index.md", *sorted(ROOT.glob("docs/tutorials/*.md"))]
TRANSLATIONS = {
    READMES[0]: READMES[1],
    ROOT / "docs/guides/migration.md": ROOT / "docs/zh_CN/migration.md",
}
LINK = re.compile(r"(?<!!)\[((?:!?\[[^]]*\]\([^)]*\)|[^][])*)\]\(([^)\s]+)\)|(?:href|src)=\"([^\"]+)\"")

# Runs pages as if nothing else were installed than what is named.
ALONE = """
import json, os, sys, tempfile
from pathlib import Path

refused, pages = json.loads(sys.argv[1]), sys.argv[2:]

class Finder:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in refused else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Finder, sys.meta_path)

from tests.snippets import Page, snippets
for path in map(Path, pages):
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        page = Page(Path(folder))
        for snippet in snippets(path):
            page.run(snippet)
        os.chdir(path.parent)
"""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def links(page: Path) -> list[tuple[str, str]]:
    """The text and the target of each link of a page, outside of its blocks."""
    text = re.sub(r"^(`{3,}).*?^\1$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = [(match[1] or "", match[2] or match[3]) for match in LINK.finditer(re.sub(r"`[^`\n]*`", "`", text))]
    return [(text, target) for text, target in found if "://" not in target]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the documentation both make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", [*READMES, *CHINESE[1:], *FIRST_STEPS[2:], ROOT / "docs/reference/glossary.md"], ids=name
)
def test_links_lead_somewhere(page: Path) -> None:
    assert links(page)
    for _, target in links(page):
        file, _, anchor = target.partition("#")
        place = page.parent / file if file else page
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


@pytest.mark.parametrize("page", CHINESE, ids=name)
def test_links_of_chinese_pages_lead_to_chinese_pages_or_say_so(page: Path) -> None:
    pages = {READMES[0], *CHINESE, ROOT / "docs/gallery.md"}  # English says what it is; pictures need no words
    for text, target in links(page):
        place = (page.parent / target.partition("#")[0]).resolve() if not target.startswith("#") else page
        assert place in pages or place.suffix == ".svg" or text.endswith("（英文）"), f"[{text}]({target})"


@pytest.mark.parametrize("page", CHINESE, ids=name)
def test_no_line_of_chinese_ends_within_a_sentence(page: Path) -> None:
    """A browser shows the end of a line as a space, which Chinese does not have."""
    assert re.findall(r"[\u4e00-\u9fff]\n *[\u4e00-\u9fff]", page.read_text("utf-8")) == []


@pytest.mark.parametrize("page", TRANSLATIONS, ids=name)
def test_a_translation_has_the_same_code_and_the_same_rows(page: Path) -> None:
    def without_comments(path: Path) -> list[tuple[str, str]]:
        return [(s.language, re.sub(r" +#.*$", "", s.code, flags=re.MULTILINE)) for s in snippets(path)]

    def shape(path: Path) -> list[str]:
        lines = path.read_text("utf-8").splitlines()
        return [re.match(r"#*|\|", line)[0] for line in lines if line.startswith(("#", "|"))]  # type: ignore[index]

    assert without_comments(TRANSLATIONS[page]) == without_comments(page)
    assert shape(TRANSLATIONS[page]) == shape(page)


@pytest.mark.parametrize("readme", READMES, ids=name)
def test_the_first_screen_shows_and_the_second_begins_with_mmengine(readme: Path) -> None:
    lines = readme.read_text("utf-8").splitlines()
    first = "\n".join(lines[:45])
    steps = [
        "docs/pictures/gpt2.svg",
        "pip install .",
        'initialize(model, "general", seed=0)',
        "torchinit plan ",
        "torchinit check ",
    ]
    places = [first.index(step) for step in steps]
    assert places == sorted(places)
    second = next(number for number, line in enumerate(lines) if line.startswith("## "))
    assert second < 45 and "MMEngine" in lines[second]
    assert "init_cfg" in "\n".join(lines[second : second + 20])
    assert max(lines.count(end) for end in ("./dev test", "./dev demo")) == 0  # they stand in one block, below
    assert {"./dev demo", "./dev test"} <= {line.split("  ")[0] for line in lines}


def installed_by(distribution: str) -> set[str]:
    """The distribution and all that comes with it, extras not asked for."""
    found: set[str] = set()
    waiting = [Requirement(distribution)]
    while waiting:
        requirement = waiting.pop()
        key = canonicalize_name(requirement.name)
        if key not in found:
            found.add(key)
            inner = [Requirement(text) for text in requires(key) or []]
            waiting += [each for each in inner if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def test_the_first_steps_need_nothing_but_what_the_readme_installs() -> None:
    here = installed_by("torchinit")
    refused = sorted(
        module
        for module, distributions in packages_distributions().items()
        if not here.intersection(map(canonicalize_name, distributions)) and module not in sys.stdlib_module_names
    )
    assert {"rich", "numpy", "pytest"} <= set(refused)
    command = [sys.executable, "-c", ALONE, json.dumps(refused), *map(str, FIRST_STEPS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
