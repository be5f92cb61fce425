"""Compile the kernel, by ``python -m torchinit.noise.csrc.build`` in place, or by setup.py into a wheel.

Imports nothing but the standard library, since setup.py loads it by its path.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LIBRARY = "_kernel.so"
SYSTEM = os.name
SOURCES = ("kernel.c", "lanes.c", "sums.c", "sweeps.c", "digest.c", "keys.c", "allocations.c", "kernel.h")

# No fused multiply-add, whatever the machine has: it would change the bits.
FLAGS = ("-std=gnu11", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fexceptions")
OPTIMIZE = ("-O3",)

_AVX2 = ("-mavx2", "-mf16c", "-mbmi", "-mpopcnt")
_X86 = {
    "sse4": ("-msse4.1", "-mpopcnt"),
    "avx2": _AVX2,
    "avx512": (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
}

# The sources compiled once for each instruction set: the macros that name their functions, and what these are called.
_PARTS = {
    "lanes": {"LANES_NAME": "torchinit"},
    "sums": {"SUMS_NAME": "torchinit_sums"},
    "sweeps": {"LARGEST_NAME": "torchinit_largest", "COPY_NAME": "torchinit_copy"},
}


class BuildError(Exception):
    """The kernel could not be compiled; the text says why."""


def instruction_sets(machine: str | None = None) -> dict[str, tuple[str, ...]]:
    """The instruction sets that the kernel is compiled for, each with its compiler flags."""
    x86 = (machine or platform.machine()).lower() in ("x86_64", "amd64")
    return {"plain": (), **(_X86 if x86 else {})}


def compiler() -> list[str]:
    """The C compiler: ``$CC``, the one that Python was built with, or the first that is installed."""
    named = os.environ.get("CC") or sysconfig.get_config_var("CC") or ""
    for candidate in (named, "cc", "gcc", "clang"):
        words = shlex.split(candidate)
        if words and shutil.which(words[0]):
            return words
    raise BuildError("no C compiler: neither $CC nor cc, gcc or clang is installed")


def build(target: Path, flags: Sequence[str] = OPTIMIZE, machine: str | None = None) -> Path:
    """Compile the kernel into the file ``target``, whole or not at all; raises BuildError."""
    if SYSTEM != "posix":
        raise BuildError(f"the kernel needs POSIX threads, which {SYSTEM!r} systems lack")
    folder, cc = Path(__file__).parent, [*compiler(), *FLAGS, *flags]
    with tempfile.TemporaryDirectory() as objects:
        commands = compilations(cc, folder, Path(objects), machine)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        _run([*cc, "-shared", *(command[-1] for command in commands), "-lpthread", "-o", f"{objects}/{LIBRARY}"])
        # Beside the target first: a process that has the old one mapped keeps it.
        fresh = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(f"{objects}/{LIBRARY}", fresh)
        fresh.replace(target)
    return target


def compilations(cc: Sequence[str], sources: Path, objects: Path, machine: str | None = None) -> list[list[str]]:
    """The commands that compile the kernel's parts, each with its object file as the last word."""

    def command(part: str, name: str, *flags: str) -> list[str]:
        return [*cc, *flags, "-c", str(sources / f"{part}.c"), "-o", str(objects / f"{name}.o")]

    commands = [command(part, part) for part in ("kernel", "digest", "keys", "allocations")]
    for name, flags in instruction_sets(machine).items():
        for part, functions in _PARTS.items():
            macros = [f"-D{macro}={function}_{name}" for macro, function in functions.items()]
            commands.append(command(part, f"{part}_{name}", *flags, *macros))
    return commands


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{shlex.join(command)}\n{done.stderr.strip()}")


def is_current(library: Path) -> bool:
    """Whether the library exists and is newer than its sources."""
    newest = max((library.parent / source).stat().st_mtime for source in (*SOURCES, "build.py"))
    return library.exists() and library.stat().st_mtime > newest


def main() -> None:
    """Compile the kernel beside its sources, unless it is there and current."""
    target = Path(__file__).parent / LIBRARY
    try:
        if not is_current(target):
            build(target)
    except BuildError as error:
        sys.exit(f"kernel not built, the slower engines serve instead: {error}")


if __name__ == "__main__":
    main()
