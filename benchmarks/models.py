"""Models: a whole model from meta to its initial values, each run in a process of its own.

Fresh processes, because the first touch of a page costs more than the number that is written there, and because
only then does the peak of memory mean something.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from torchinit import Layer, Normal, Rule, TruncNormal, initialize

STD = 0.02


class Block(nn.Module):
    """A Llama block's weights, without its computation."""

    def __init__(self, width: int, kv: int, hidden: int) -> None:
        super().__init__()
        self.q, self.o = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(width, kv, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)


def llama(width: int = 2048, blocks: int = 22) -> nn.Module:
    """The matrices of a Llama of 1.1 billion parameters, on meta."""
    with torch.device("meta"):
        layers = [Block(width, width // 8, width * 11 // 4) for _ in range(blocks)]
        return nn.Sequential(nn.Embedding(32_000, width), *layers, nn.Linear(width, 32_000, bias=False))


DRAWS: dict[str, tuple[Normal | TruncNormal, Callable[[Tensor], object]]] = {
    "normal": (Normal(std=STD), lambda t: nn.init.normal_(t, std=STD)),
    "truncated ±2": (TruncNormal(std=STD, a=-2.0, b=2.0), lambda t: nn.init.trunc_normal_(t, std=STD)),
    "truncated ±3σ": (
        TruncNormal(std=STD, a=-3 * STD, b=3 * STD),
        lambda t: nn.init.trunc_normal_(t, std=STD, a=-3 * STD, b=3 * STD),
    ),
}


def ours(model: nn.Module, draw: str) -> None:
    """The whole path: allocation, plan, run, report without statistics."""
    model.to_empty(device="cpu")
    rule = Rule(Layer("Linear") | Layer("Embedding"), DRAWS[draw][0])
    initialize(model, [rule], seed=0, stats=False)


def theirs(model: nn.Module, draw: str) -> None:
    """Allocation, then torch's own initialization of every weight."""
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        DRAWS[draw][1](parameter)


def floor(model: nn.Module, draw: str) -> None:
    """Allocation, and zeros: what the memory alone costs."""
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()


WAYS = {"ours": ours, "theirs": theirs, "zero_": floor}


@dataclass(frozen=True, slots=True)
class Run:
    """One way to initialize the model: seconds of the clock and of all processors together, and MiB at the
    peak beyond the parameters themselves.
    """

    draw: str
    way: str
    seconds: float
    processor: float
    beyond: float


def runs(repeats: int = 3) -> Iterator[Run]:
    """All draws in all ways, the best of a few runs in turn."""
    for draw in DRAWS:
        seen: dict[str, list[Run]] = {way: [] for way in WAYS}
        for _ in range(repeats):
            for way, found in seen.items():
                found.append(_in_process(draw, way))
        yield from (min(found, key=lambda run: run.processor) for found in seen.values())


def _in_process(draw: str, way: str) -> Run:
    command = [sys.executable, "-m", "benchmarks.models", draw, way]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Run(draw, way, **json.loads(done.stdout))


def _peak() -> float:
    """The most memory that this process has held, in MiB; `getrusage` would count its parent's, too."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def main(draw: str, way: str) -> None:
    """Runs one way and prints what it took, as JSON."""
    # Whatever is imported or compiled on first use belongs to no way.
    initialize(nn.Linear(2, 2), [Rule(Layer("Linear"), DRAWS[draw][0])], seed=0, stats=False)
    before = _peak()
    model = llama()
    begun, busy = time.perf_counter(), time.process_time()
    WAYS[way](model, draw)
    seconds, processor = time.perf_counter() - begun, time.process_time() - busy
    held = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    print(json.dumps({"seconds": seconds, "processor": processor, "beyond": _peak() - before - held / 2**20}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
