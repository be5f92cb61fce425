"""The page on trainers: its blocks that need a framework, run in order on the real ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/guides/trainers.md"

RUN = """
import dataclasses, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
from peer_stubs import standing_in
from tests.snippets import Page, snippets

page = Page(Path.cwd())
for snippet in snippets(Path(sys.argv[2])):
    if snippet.directive == "skip" and "tests/peers/test_trainer_page.py" in snippet.value:
        directive = None if snippet.language == "python" else "prints"
        with standing_in("torchtitan.distributed.minimal_async_ep.kernels"):  # which alone needs triton
            page.run(dataclasses.replace(snippet, directive=directive))
        print("RAN", snippet.language, snippet.value.split(";")[0])
    elif snippet.directive == "file":
        page.run(snippet)
"""


def test_blocks_that_need_a_framework(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, str(ROOT), str(PAGE)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    ran = [line for line in done.stdout.splitlines() if line.startswith("RAN python")]
    assert [line.split("needs ")[1] for line in ran] == [
        *["transformers"] * 4,
        *("peft", "torchtitan", "lightning", "accelerate", "mmengine and mmpretrain", "hydra"),
    ]
