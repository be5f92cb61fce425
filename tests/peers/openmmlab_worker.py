"""Worker: runs the pickled cases on one side: SIDE CASES.pickle OUTCOMES.jsonl."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

# A package of the environment is called tests, too.
sys.modules["tests"] = ModuleType("tests")
sys.modules["tests"].__path__ = [str(Path(__file__).parents[1])]

from tests.peers.openmmlab import main  # noqa: E402 - see above

if __name__ == "__main__":
    main(*sys.argv[1:])
