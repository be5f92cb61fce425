"""Limits: one input, read in a child process that may take 10 s of the processor and 64 MiB + 10 times the input.

A process that has imported everything forks for each input, so that the baseline of imports does not count, and what
ends or fills the child is told by the process above it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 10
MEMORY = 64 << 20
TIMES = 10
PATIENCE = 120.0
"""The seconds by the clock after which a child that does not use the processor counts as hanging."""


@dataclass(frozen=True)
class Outcome:
    """``said`` is "read", or how it was refused; ``wrong`` is what must not be: a raw error, a limit that was hit."""

    said: str
    wrong: str
    seconds: float
    mebibytes: float

    @property
    def is_fine(self) -> bool:
        return not self.wrong


class Reader:
    """The process that forks; :func:`reader` starts and ends it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def read(self, surface: str, path: Path) -> Outcome:
        """Have a file read by one of ``surfaces.SURFACES``, by name."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([surface, str(path)]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the reading process has ended"
        return Outcome(*json.loads(line))


@contextlib.contextmanager
def reader(**environment: str) -> Iterator[Reader]:
    """A process that reads inputs under limits, for as long as this lasts."""
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-m", "tests.fuzz.limits"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True, env={**os.environ, **one, **environment}
    ) as process:
        try:
            yield Reader(process)
        finally:
            assert process.stdin
            process.stdin.close()
            process.wait()


def _in_child(surface: str, path: Path, said: int) -> None:
    """Read the file and write down what came of it; ends the process."""
    from tests.fuzz.surfaces import SURFACES, outcome

    before, size = _status("VmRSS"), path.stat().st_size if path.is_file() else 0
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    bytes_ = _status("VmSize") + MEMORY + TIMES * size
    resource.setrlimit(resource.RLIMIT_AS, (bytes_, bytes_))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    text, wrong = "", ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "Possible (nested set|set )", FutureWarning)  # what `re` says of "[["
            text, wrong = outcome(SURFACES[surface], path)
    except BaseException as error:  # noqa: BLE001  # any is a finding
        try:
            wrong = "".join(traceback.format_exception(error, limit=-6))
        except MemoryError:
            wrong = "MemoryError"
    peak = max(_status("VmHWM") - before, 0)
    if not wrong and peak > MEMORY + TIMES * size:
        wrong = f"took {peak >> 20} MiB"
    os.write(said, json.dumps([text[:2000], wrong[-4000:], peak / (1 << 20)]).encode())
    os._exit(0)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    return 0


def _under_limits(surface: str, path: Path) -> Outcome:
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        os.close(source)
        _in_child(surface, path, sink)
    os.close(sink)
    content, end = b"", time.monotonic() + PATIENCE
    while (ready := select.select([source], [], [], max(0, end - time.monotonic()))[0]) and (
        block := os.read(source, 1 << 16)
    ):
        content += block
    if not ready:
        os.kill(child, signal.SIGKILL)
    os.close(source)
    _, status, used = os.wait4(child, 0)
    seconds = used.ru_utime + used.ru_stime
    if not ready:
        return Outcome("", f"hangs: {PATIENCE:g} s have passed", seconds, 0.0)
    if not content:
        return Outcome("", f"ended by {os.waitstatus_to_exitcode(status)} after {seconds:.1f} s", seconds, 0.0)
    text, wrong, peak = json.loads(content)
    return Outcome(text, wrong, seconds, peak)


def main() -> None:
    """Read requests, a line each, and answer each by a line."""
    from tests.fuzz.surfaces import warm_up

    logging.disable()
    warm_up()
    for line in sys.stdin:
        surface, path = json.loads(line)
        found = _under_limits(surface, Path(path))
        print(json.dumps([found.said, found.wrong, round(found.seconds, 3), round(found.mebibytes, 1)]), flush=True)


if __name__ == "__main__":
    main()
