"""The fuzzer: hostile inputs of every kind for so many seconds, then the laws of the tests with fresh seeds.

``./dev fuzz SECONDS [SEED]``. An input that takes too much time or memory, or raises anything but an error of
torchinit's own, is a finding, and is kept.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from tests.fuzz.growth import grown
from tests.fuzz.limits import ROOT, reader
from tests.fuzz.mutations import FORMS, changed

_FILES = ("checkpoint", "loaded", "compared", "inspected", "converted")
_RECIPES = ("recipe", "recipe", "initialized")
_SAVED = ("plan", "report", "fingerprint", "trace", "lockfile")
KINDS: dict[str, tuple[str, ...]] = {
    **{form: _RECIPES if form in ("json", "toml", "yaml") else _FILES for form in FORMS},
    **{form: (form, "differing", "note") for form in _SAVED},
    "renames": ("renamed",),
    "patterns": ("patterns",),
}
"""Each kind of input, and what may read it."""


def fuzz(seconds: float, seed: object, folder: Path) -> tuple[Counter[str], list[str]]:
    """Read inputs for so long, at least one of each kind: how many of each, and what went wrong; that stays."""
    tried, found, number, end = Counter[str](), list[str](), 0, time.monotonic() + seconds
    with reader(TORCHINIT_CACHE=str(folder / "cache")) as process:
        while time.monotonic() < end or number < len(KINDS):
            kind = [*KINDS][number % len(KINDS)]
            dice, number = Random(f"{seed}/{number}"), number + 1
            content = changed(kind, dice) if kind in FORMS and dice.random() < 0.5 else grown(kind, dice)
            suffix = kind if kind in FORMS else "json"
            (path := folder / f"{number - 1}.{suffix}").write_bytes(content)
            surface = dice.choice(KINDS[kind])
            outcome = process.read(surface, path)
            tried[kind] += 1
            if outcome.is_fine:
                path.unlink()
            else:
                found.append(f"{path}, {len(content):,} bytes, as {surface}: {outcome.wrong}")
                print(found[-1], flush=True)
    return tried, found


def laws(seconds: float, dice: Random) -> tuple[int, list[str]]:
    """Run the tests that hypothesis makes, file by file, each with a seed of its own: how many files, which failed."""
    files = sorted(path for path in (ROOT / "tests").rglob("test_*.py") if "@given" in path.read_text("utf-8"))
    dice.shuffle(files)
    failed, number, end = list[str](), 0, time.monotonic() + seconds
    for path in files:
        if (left := end - time.monotonic()) < 5 or "peers" in path.parts:
            continue
        seed = dice.randrange(1 << 32)
        options = ["-m", "hypothesis", "-q", "--no-header", "--hypothesis-profile=fresh", f"--hypothesis-seed={seed}"]
        command = [sys.executable, "-m", "pytest", *options, str(path)]
        try:
            run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=left)
        except subprocess.TimeoutExpired:
            break
        number += 1
        if run.returncode not in (0, 5):
            failed.append(f"{path.relative_to(ROOT)} with --hypothesis-seed={seed}:\n{run.stdout[-3000:]}")
            print(failed[-1], flush=True)
    return number, failed


def main(seconds: float, seed: int) -> int:
    """Print what was tried and found; 1 if anything was."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    print(f"seed {seed}; findings are kept in {folder}", flush=True)
    tried, found = fuzz(seconds * 2 / 3, seed, folder)
    print(", ".join(f"{count:,} {kind}" for kind, count in tried.items()))
    print(f"{tried.total():,} inputs, {len(found)} findings", flush=True)
    files, failed = laws(seconds / 3, Random(seed))
    print(f"laws of {files} files, {len(failed)} findings")
    return 1 if found or failed else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())))
