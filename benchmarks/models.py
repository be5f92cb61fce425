"""Models: a whole model from meta to its initial values, each run in a process of its own.

A process of its own, because the first touch of a page costs more than the number that is written there, and because
only then does the peak of memory mean something. All are forked from one that has imported and tried everything once:
what torch imports late belongs to no way. ``python -m benchmarks.models`` prints the tables.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks import results
from benchmarks.networks import (
    gpt2,
    init_gpt2,
    init_resnet,
    init_transformer,
    llama,
    mixture,
    mlp,
    resnet18,
    resnet50,
    vit_tiny,
)
from benchmarks.timing import Spread, spread
from torchinit import Layer, Leaf, Normal, Ones, Rule, TruncNormal, Zeros, initialize
from torchinit.recipes import RecipeLike

STD = 0.02
REPEATS = 7


@dataclass(frozen=True, slots=True)
class Case:
    """A model, a recipe for it, and the torch code that does the same; of that so many repeats are enough.

    The way with statistics differs between draws by its draw alone, so one large model shows it.
    """

    name: str
    build: Callable[[], nn.Module]
    recipe: RecipeLike
    theirs: Callable[[nn.Module], object]
    repeats: int = REPEATS
    statistics: bool = True

    @property
    def ways(self) -> list[str]:
        return [way for way in WAYS if self.statistics or way != STATISTICS]


STATISTICS = "torchinit, with statistics"


def _everywhere(init: Callable[..., object], model: nn.Module) -> None:
    for parameter in model.parameters():
        init(parameter)


def _llama(what: str, fill: Normal | TruncNormal, init: Callable[..., object], repeats: int = REPEATS) -> Case:
    rule = Rule(Layer("Linear") | Layer("Embedding"), fill)
    return Case(f"Llama 1.1B, {what}", llama, rule, partial(_everywhere, init), repeats, what == "normal")


_cut = partial(nn.init.trunc_normal_, std=STD)
_transformer = (
    Rule((Layer("Linear") | Layer("Embedding")) & Leaf("weight"), Normal(std=STD)),
    Rule(Layer("LayerNorm") & Leaf("weight"), Ones(), optional=True),
    Rule(Leaf("bias"), Zeros(), optional=True),
)
CASES = [
    Case("a toy of 4 tensors", mlp, _transformer, init_transformer),
    Case("ResNet-18", resnet18, "resnet", init_resnet),
    Case("ViT-tiny", vit_tiny, _transformer, init_transformer),
    Case("a mixture of 19,649 tensors", mixture, _transformer, init_transformer),
    Case("ResNet-50", resnet50, "resnet", init_resnet),
    Case("GPT-2 small", gpt2, "gpt2", init_gpt2),
    _llama("normal", Normal(std=STD), partial(nn.init.normal_, std=STD)),
    _llama("truncated ±2", TruncNormal(std=STD, a=-2.0, b=2.0), _cut),
    # Half a minute each.
    _llama("truncated ±3σ", TruncNormal(std=STD, a=-3 * STD, b=3 * STD), partial(_cut, a=-3 * STD, b=3 * STD), 3),
]


@dataclass(frozen=True, slots=True)
class Run:
    """One way to initialize a model: seconds of the clock, seconds of all processors together, and the MiB at the peak
    beyond what the process held before the model was made and beyond the parameters themselves.
    """

    model: str
    way: str
    seconds: Spread
    processor: Spread
    beyond: float


def _ours(case: Case, model: nn.Module) -> None:
    """The whole path: allocation, plan, run, report without statistics."""
    model.to_empty(device="cpu")
    initialize(model, case.recipe, seed=0, stats=False)


def _with_statistics(case: Case, model: nn.Module) -> None:
    model.to_empty(device="cpu")
    initialize(model, case.recipe, seed=0)  # buffers that to_empty() leaves unfilled would be findings of assert_ok()


def _theirs(case: Case, model: nn.Module) -> None:
    """Allocation, then the torch code."""
    model.to_empty(device="cpu")
    case.theirs(model)


def _zero(case: Case, model: nn.Module) -> None:
    """Allocation, and zeros: what the memory alone costs."""
    del case
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()


WAYS: dict[str, Callable[[Case, nn.Module], None]] = {
    "torchinit": _ours,
    STATISTICS: _with_statistics,
    "torch": _theirs,
    "zero_": _zero,
}


@contextmanager
def server(quick: bool) -> Iterator[tuple[dict[str, float], Iterator[Run]]]:
    """A process that forks all others: what memory it takes itself, and all models in all ways."""
    command = [sys.executable, "-m", "benchmarks.models", "--serve", *(["--quick"] if quick else ())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield json.loads(process.stdout.readline()), map(_decoded, process.stdout)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def _decoded(line: str) -> Run:
    found = json.loads(line)
    return Run(**found | {key: Spread(**found[key]) for key in ("seconds", "processor")})


def _measured(case: Case, repeats: int) -> Iterator[dict[str, object]]:
    """All ways of one model in turn, so that what else the machine does meets all of them alike."""
    seen: dict[str, list[tuple[float, float, float]]] = {way: [] for way in case.ways}
    for repeat in range(repeats):
        for way, found in seen.items():
            if way != "torch" or repeat < case.repeats:
                found.append(_in_a_child(case, way))
    for way, found in seen.items():
        clock, processor, beyond = (list(column) for column in zip(*found, strict=True))
        spreads = {"seconds": _plain(spread(clock)), "processor": _plain(spread(processor))}
        yield {"model": case.name, "way": way, **spreads, "beyond": max(beyond)}


def _plain(found: Spread) -> dict[str, float]:
    return {name: getattr(found, name) for name in Spread.__slots__}


def _in_a_child(case: Case, way: str) -> tuple[float, float, float]:
    """Seconds of the clock, of all processors, and MiB beyond, of one run."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, json.dumps(_run(case, way)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    clock, processor, beyond = json.loads(text)
    return clock, processor, beyond


def _run(case: Case, way: str) -> tuple[float, float, float]:
    before = memory("VmHWM")
    model = case.build()
    begun, busy = time.perf_counter(), time.process_time()
    WAYS[way](case, model)
    clock, processor = time.perf_counter() - begun, time.process_time() - busy
    held = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return clock, processor, memory("VmHWM") - before - held / 2**20


def memory(what: str = "VmRSS") -> float:
    """The memory that this process holds, or has held at most (``VmHWM``), in MiB."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def serve(quick: bool) -> None:
    """Print a line of JSON for each result; in short: of the first models, from three runs."""
    sizes = {"imports": memory()}
    with torch.device("meta"):
        small = nn.Embedding(2, 2)
    sizes["first module on meta"] = memory() - sum(sizes.values())
    small.to_empty(device="cpu")
    sizes["first to_empty"] = memory() - sum(sizes.values())
    initialize(nn.Linear(2, 2), "general", seed=0)
    sizes["first initialize"] = memory() - sum(sizes.values())
    print(json.dumps(sizes), flush=True)
    for case in CASES[:3] if quick else CASES:
        for found in _measured(case, 3 if quick else REPEATS):
            print(json.dumps(found), flush=True)


def section(quick: bool) -> tuple[object, list[str]]:
    """The memory before any model, and all runs."""
    kept: list[dict[str, object]] = []

    def cells(runs: Iterable[Run]) -> Iterator[str]:
        for run in runs:
            kept.append(asdict(run))
            clock, processor = run.seconds, run.processor
            times = f"{clock.median:.3f} ({clock.best:.3f}) | {clock.low:.3f} to {clock.high:.3f}"
            yield f"{run.model} | {run.way} | {times} | {processor.median:.3f} | {run.beyond:.1f}"

    with server(quick) as (sizes, runs):
        lines = results.table("before any model | MiB", (f"{name} | {size:.0f}" for name, size in sizes.items()))
        columns = "model | way | seconds, median (best) | quartiles | of all processors | MiB beyond the parameters"
        lines += ["", *results.table(columns, cells(runs))]
    return {"memory": sizes, "runs": kept}, lines


if __name__ == "__main__":
    if "--serve" in sys.argv:
        serve("--quick" in sys.argv)
    else:
        results.measure({"models": section}, __doc__)
