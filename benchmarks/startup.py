"""Start-up: what importing torchinit and its light commands cost beside ``import torch``.

``python -m benchmarks.startup`` starts processes in turn and takes the processor time of each, as it is counted by the
system; the time of a Python that does nothing is taken off neither side.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping

MAIN = "from torchinit.cli import main; main({})"

CODE: Mapping[str, str] = {
    "import torch": "import torch",
    "import torchinit": "import torchinit",
    "import torch, torchinit": "import torch, torchinit",
    "from torchinit import initialize": "from torchinit import initialize",
    "from torchinit import *": "from torchinit import *",
    "torchinit --help": MAIN.format(["--help"]),
    "torchinit --version": MAIN.format(["--version"]),
    "torchinit cache ls": MAIN.format(["cache", "ls"]),
    "torchinit list": MAIN.format(["list"]),
    "nothing": "",
}


def processor_seconds(code: str, bytecode: str) -> float:
    """The processor time of a process that runs this code; what it compiles is kept in the folder ``bytecode``."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, env=environment)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{code!r} ended with {child.returncode}")
    return used.ru_utime + used.ru_stime


def medians(repeats: int = 9) -> dict[str, float]:
    """The median seconds of each, all of them once a round, after one round that compiles and does not count."""
    with tempfile.TemporaryDirectory() as folder:
        rounds = [{name: processor_seconds(code, folder) for name, code in CODE.items()} for _ in range(repeats + 1)][
            1:
        ]
    return {name: statistics.median(seconds[name] for seconds in rounds) for name in CODE}


def main() -> None:
    """Prints the medians and their ratios to ``import torch``."""
    found = medians(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
    print("| what | processor time, s | of `import torch` |\n|---|---|---|")
    for name, seconds in found.items():
        print(f"| `{name}` | {seconds:.3f} | {seconds / found['import torch']:.3f} |")


if __name__ == "__main__":
    main()
