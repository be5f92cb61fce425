"""Fuzzer: sound files changed by their structure, and recipes, read in a process that may end or hang.

``python -m tests.checkpoints.fuzz SECONDS [SEED]`` runs it by hand, and keeps what it finds.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from random import Random

from tests.checkpoints.mutations import FORMS, changed

ROOT = Path(__file__).parents[2]
SECONDS_A_FILE = 20
MEMORY = 6 << 30


def fuzz(seconds: float, seed: int, folder: Path) -> tuple[int, list[str]]:
    """Reads changed files for so long: how many there were, and what went wrong; that stays in the folder."""
    number, found, end = 0, list[str](), time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        command = [
            sys.executable,
            "-m",
            "tests.checkpoints.fuzz",
            "child",
            str(folder),
            str(seed),
            str(number),
            str(left),
        ]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        last = 0
        for line in run.stdout.splitlines():
            last, said = json.loads(line)
            found += [said] if said else []
        number = last + 1
        if run.returncode:
            found.append(f"{seed}/{last} ended the process with {run.returncode}: {run.stderr[-2000:]}")
    return number, found


def child(folder: Path, seed: int, number: int, seconds: float) -> None:
    """Prints each number before its file is read, and what is wrong with how it was."""
    from tests.checkpoints.fuzz_reader import complaint

    warnings.simplefilter("error")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        dice = Random(f"{seed}/{number}")
        form = FORMS[number % len(FORMS)]
        (path := folder / f"{seed}-{number}.{form}").write_bytes(changed(form, dice))
        print(json.dumps([number, None]), flush=True)
        signal.alarm(SECONDS_A_FILE)
        try:
            said = complaint(path)
        except Exception:  # noqa: BLE001  # any is a finding
            said = traceback.format_exc(limit=-6)
        signal.alarm(0)
        if said:
            print(json.dumps([number, f"{path.name}: {said}"]), flush=True)
        else:
            path.unlink()
        number += 1


if __name__ == "__main__":
    if sys.argv[1] == "child":
        child(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
    else:
        kept = Path(tempfile.mkdtemp(prefix="fuzz-"))
        read, wrong = fuzz(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time()), kept)
        print(*wrong, f"{read} files, {len(wrong)} findings, kept in {kept}", sep="\n")
