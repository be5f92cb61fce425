"""Structure: how large the package is, and how far a reader has to walk: ``python -m benchmarks.structure [ROOT]``.

Counts what a reviewer would count by hand: files, lines, comments, rooms, names that two classes share. A *trip* is
one job, run under a profiler that sees every call within the package: how many files and functions take part, and how
often a call goes into another file (a switch) or another room.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path
from statistics import median

TRIPS = r"""
import importlib, json, os, pkgutil, sys
import torch
from torch import nn

import torchinit
try:
    from torchinit import mmengine
except ImportError:
    mmengine = torchinit

for module in pkgutil.walk_packages(torchinit.__path__, "torchinit."):  # so that no import is part of a trip
    if not module.name.endswith(("__main__", "_kernel", "build")):
        importlib.import_module(module.name)

ROOT = os.path.dirname(torchinit.__file__) + os.sep
MODEL = lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
ENTRY = {"type": "Kaiming", "layer": "Linear"}
PATH = sys.argv[1]
torch.save(MODEL().state_dict(), PATH)


class Net(mmengine.BaseModule):
    def __init__(self):
        super().__init__(init_cfg=dict(ENTRY))
        self.body = MODEL()


LOAD = torchinit.Rule(torchinit.Name("**"), torchinit.Pretrained(PATH))
JOBS = {
    "a recipe entry -> plan": lambda: torchinit.plan(MODEL(), {"rules": [ENTRY]}),
    "a recipe entry -> bits and report": lambda: torchinit.initialize(MODEL(), {"rules": [ENTRY]}, seed=0),
    "the same dict as init_cfg -> bits": lambda: mmengine.initialize(MODEL(), dict(ENTRY)),
    "BaseModule.init_weights": lambda: Net().init_weights(),
    "a Pretrained rule -> bits": lambda: torchinit.initialize(MODEL(), LOAD),
    "Pretrained in an init_cfg": lambda: mmengine.initialize(MODEL(), dict(type="Pretrained", checkpoint=PATH)),
    "load_checkpoint": lambda: mmengine.load_checkpoint(MODEL(), PATH),
}
found = {}
for name, job in JOBS.items():
    files, functions, counts = set(), set(), dict(calls=0, switches=0, rooms=0)
    stack = []

    def watch(frame, event, argument):
        path = frame.f_code.co_filename
        if not path.startswith(ROOT):
            return
        if event == "call":
            counts["calls"] += 1
            files.add(path); functions.add(frame.f_code)
            if stack and stack[-1] != path:
                counts["switches"] += 1
                counts["rooms"] += os.path.dirname(stack[-1]) != os.path.dirname(path)
            stack.append(path)
        elif event == "return" and stack:
            stack.pop()

    sys.setprofile(watch)
    try:
        job()
    finally:
        sys.setprofile(None)
    found[name] = [len(files), len(functions), counts["calls"], counts["switches"], counts["rooms"]]
print(json.dumps(found))
"""


def size(root: Path) -> dict[str, object]:
    """The figures that the files give by themselves."""
    files = {path: path.read_text("utf-8") for path in sorted((root / "src").rglob("*.py"))}
    lines = [text.count("\n") for text in files.values()]
    comments = sum(comments_of(path) for path in files)
    classes = Counter(
        node.name
        for text in files.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    rooms = Counter(path.parent.relative_to(root / "src").as_posix() for path in files if path.name != "__init__.py")
    return {
        "files": len(files),
        "lines": sum(lines),
        "lines of a file, median and maximum": (median(lines), max(lines)),
        "comments per 100 lines": round(100 * comments / sum(lines), 2),
        "class names used twice": sorted(name for name, count in classes.items() if count > 1),
        "files side by side": dict(rooms.most_common()),
    }


def comments_of(path: Path) -> int:
    """The lines of a file that are comments, or end in one; what speaks to a tool does not count."""
    with tokenize.open(path) as file:
        found = [token.string for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.COMMENT]
    return sum(not text.startswith(("# noqa", "# type:", "# fmt:", "# pragma")) for text in found)


def trips(root: Path, scratch: Path) -> dict[str, list[int]]:
    """Files, functions, calls, switches of file and of room of each job, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    command = [sys.executable, "-c", TRIPS, str(scratch / "trip.pth")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, list[int]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(root: Path) -> None:
    """Print the figures of one checkout."""
    import tempfile

    for name, value in size(root).items():
        print(f"{name}: {value}")
    print(f"\n{'trip':36}{'files':>8}{'functions':>11}{'calls':>8}{'switches':>10}{'of room':>9}")
    with tempfile.TemporaryDirectory() as scratch:
        for name, numbers in trips(root, Path(scratch)).items():
            print(f"{name:36}{numbers[0]:8}{numbers[1]:11}{numbers[2]:8}{numbers[3]:10}{numbers[4]:9}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
