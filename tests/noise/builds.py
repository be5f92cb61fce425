"""Builds: the kernel compiled in many ways, which must all print the same digests; and its instructions, counted.

``python -m tests.noise.builds`` runs what is installed here of: gcc and clang at -O0, -O2 and -O3, with the address and
undefined-behaviour sanitizers, with the thread sanitizer, under valgrind; each with every instruction set that the
machine, or valgrind, has.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from torchinit.noise.csrc import build

HARNESS = Path(__file__).with_name("harness.c")
SOURCES = Path(build.__file__).parent
SETS = list(build.instruction_sets())
MISSING = 3
"""The harness's exit code where the machine lacks an instruction set."""


def compile_harness(target: Path, cc: str, flags: Sequence[str]) -> Path:
    """The harness with the kernel in it."""
    base = [cc, *build.FLAGS, *flags]
    compilations = build.compilations(base, SOURCES, target.parent)
    for command in compilations:
        _run(command)
    objects = [command[-1] for command in compilations]
    _run([*base, f"-I{SOURCES}", str(HARNESS), *objects, "-lpthread", "-lm", "-o", str(target)])
    return target


def digests(command: Sequence[str]) -> dict[str, str]:
    """What the harness prints with each instruction set that the machine has."""
    found = {}
    for number, name in enumerate(SETS):
        done = subprocess.run([*command, str(number)], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found[name] = done.stdout.strip()
        elif done.returncode != MISSING:
            raise RuntimeError(f"{' '.join(command)} {name} failed:\n{done.stdout}{done.stderr}")
    return found


def instructions(harness: Path, instruction_set: str, kind: str, elements: int = 1 << 20) -> float:
    """Instructions an element, as valgrind's callgrind counts them: the same in every run."""
    counts = []
    for n in (0, elements):
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", str(harness)]
        command += [str(SETS.index(instruction_set)), kind, str(n)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = re.search(r"Collected : (\d+)", done.stderr)
        assert found, done.stderr
        counts.append(int(found[1]))
    return (counts[1] - counts[0]) / elements


def ways() -> Iterator[tuple[str, str, list[str], list[str]]]:
    """Every way to build and run: its name, the compiler, its flags, and what runs the program."""
    compilers = [cc for cc in ("gcc", "clang") if shutil.which(cc)]
    for cc in compilers:
        for level in ("-O0", "-O2", "-O3"):
            yield f"{cc} {level}", cc, [level], []
        checks = "-fsanitize=address,undefined"
        yield f"{cc} {checks}", cc, ["-O1", "-g", checks, "-fno-sanitize-recover=all"], []
        yield f"{cc} -fsanitize=thread", cc, ["-O1", "-g", "-fsanitize=thread"], []
    if shutil.which("valgrind"):
        yield "gcc, valgrind", compilers[0], ["-O3"], ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full"]


def main() -> None:
    """Runs all, prints a line for each, and fails where two digests differ."""
    seen: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, cc, flags, runner) in enumerate(ways()):
            harness = compile_harness(Path(folder) / f"harness{number}", cc, flags)
            found = digests([*runner, str(harness)])
            seen |= set(found.values())
            print(f"{name:40} {' '.join(found)}: {' '.join(sorted(set(found.values())))}", flush=True)
    if len(seen) != 1:
        sys.exit(f"{len(seen)} different digests")


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
