"""The examples of MMEngine's page on initialization print under torchinit what they print under MMEngine.

What differs is pinned here and listed on the page about migration. Each library has a process of its own, in which
nobody configures logging.
"""

from __future__ import annotations

import difflib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers.page import EXAMPLES

NAMES = [example.__name__ for example in EXAMPLES]
LIBRARIES = ("mmengine.model", "torchinit.mmengine")

KAIMING = "KaimingInit: a=0, mode=fan_out, nonlinearity=relu, distribution =normal, bias=0 "
XAVIER = "XavierInit: gain=1, distribution=normal, bias=0 "
UNCHANGED = "The value is the same before and after calling `init_weights` of Mixed  "
AGAIN = [
    line
    for name, shape in (
        ("linear.weight", "1, 1"),
        ("linear.bias", "1"),
        ("conv.weight", "1, 1, 1, 1"),
        ("conv.bias", "1"),
    )
    for line in ("- TIME - mmengine - INFO - ", f"- {name} - torch.Size([{shape}]): ", f"- {UNCHANGED}", "-  ")
]
LOADED = "Loads checkpoint by local backend from path: ./whole.pth"

DIFFERENCES: dict[str, list[str]] = {
    # MMEngine prints this line past its log where a prefix is given.
    "pretrained_part": [f"- {LOADED}", f"+ TIME - mmengine - INFO - {LOADED}"],
    # The bias was 0 and is 0, so MMEngine does not see who wrote it.
    "override": [f"- {KAIMING}", f"+ {XAVIER}"],
    "custom": [f"- {KAIMING}", f"+ {XAVIER}"],
    # MMEngine logs each parameter once more.
    "called_twice": AGAIN,
}


def run(library: str, folder: Path) -> dict[str, list[str]]:
    """What each example prints, without the times."""
    program = Path(__file__).with_name("page.py")
    command = [sys.executable, "-W", "ignore", str(program), library]
    printed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert printed.stderr == ""
    text = re.sub(r"^\d\d/\d\d \d\d:\d\d:\d\d - ", "TIME - ", printed.stdout, flags=re.MULTILINE)
    parts = re.split(r"^=== (\w+)\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], (part.splitlines() for part in parts[1::2]), strict=True))


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[str]]]:
    return [run(library, tmp_path_factory.mktemp("page")) for library in LIBRARIES]


@pytest.mark.parametrize("name", NAMES)
def test_the_example_prints_what_it_prints_there(name: str, printed: list[dict[str, list[str]]]) -> None:
    theirs, ours = (found[name] for found in printed)
    assert theirs
    different = [line for line in difflib.ndiff(theirs, ours) if line[0] in "-+"]
    assert sorted(different) == sorted(DIFFERENCES.get(name, []))


def test_every_difference_is_on_the_page_about_migration() -> None:
    page = (Path(__file__).parents[2] / "docs/guides/migration.md").read_text("utf-8")
    for text in ("compares means", "comes again with each further call", "past its log"):
        assert text in page
