"""Checkpoints: how fast a whole file is loaded beside torch and safetensors, and how much memory a part of one takes.

``python -m benchmarks.checkpoints`` prints the tables.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks import results
from benchmarks.networks import gpt2, resnet50
from benchmarks.timing import Spread, side_by_side
from torchinit import Name, Pretrained, Rule, initialize
from torchinit.checkpoints.open import forget

MiB = 1 << 20
LARGE = 4096 * MiB


def net(layers: int, width: int) -> nn.Sequential:
    """Like layers, one behind the other."""
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))


# --- speed -----------------------------------------------------------------------------------------------------------


def filled(model: nn.Module) -> nn.Module:
    """A model in memory, every tensor with numbers of its own."""
    model = model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape))
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "24 matrices, 384 MiB": lambda: net(24, 2048),
    "GPT-2 small, 148 tensors, 475 MiB": gpt2,
    "ResNet-50, 320 tensors, 98 MiB": resnet50,
    "160 small layers, 320 tensors, 1.4 MiB": lambda: nn.Sequential(*(nn.Linear(48, 48) for _ in range(160))),
}
REPEATS = 11


@dataclass(frozen=True, slots=True)
class Load:
    """Seconds of a whole load and of the same by hand: of the processor with one thread, and by the clock with all.

    torch's other threads go on for a while when they have nothing to do, which would count as somebody's work.
    """

    model: str
    way: str
    against: str
    processor: tuple[Spread, Spread]
    clock: tuple[Spread, Spread]


PAIRS = (
    ("safetensors", "load_model"),
    ("safetensors, finite=False", "load_model"),
    ("pth", "torch.load"),
    ("pth", "torch.load, mmap"),
)
"""Our ways, and what each is to be compared with. We map files in any case."""


def loads(folder: Path, quick: bool) -> Iterator[Load]:
    """Each model's file, loaded by torchinit and by what one would write by hand, in both formats."""
    repeats = 5 if quick else REPEATS
    for name, build in [*MODELS.items()][2 if quick else 0 :]:
        calls = _calls(folder, filled(build()), filled(build()), filled(build()))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        processor = side_by_side(calls, repeats=repeats)
        torch.set_num_threads(threads)
        clock = side_by_side(calls, repeats=repeats, clock=time.perf_counter)
        for way, hand in PAIRS:
            yield Load(name, way, hand, (processor[way], processor[hand]), (clock[way], clock[hand]))


def _calls(folder: Path, source: nn.Module, ours: nn.Module, theirs: nn.Module) -> dict[str, Callable[[], object]]:
    from safetensors.torch import load_model, save_model

    pth, safe = folder / "a.pth", folder / "a.safetensors"
    torch.save(source.state_dict(), pth)
    save_model(source, str(safe))

    def own(path: Path, *, finite: bool = True) -> Callable[[], object]:
        rule = Rule(Name("**"), Pretrained(str(path), finite=finite))

        def call() -> object:
            forget()
            return initialize(ours, rule, stats=False)

        return call

    def by_torch(*, mmap: bool) -> Callable[[], object]:
        return lambda: theirs.load_state_dict(torch.load(pth, weights_only=True, mmap=mmap))

    return {
        "safetensors": own(safe),
        "safetensors, finite=False": own(safe, finite=False),
        "load_model": lambda: load_model(theirs, safe),
        "pth": own(pth),
        "torch.load": by_torch(mmap=False),
        "torch.load, mmap": by_torch(mmap=True),
    }


# --- memory ----------------------------------------------------------------------------------------------------------


def sparse_safetensors(path: Path, part: int = LARGE // 100) -> None:
    """A file of 4 GiB, nearly all of it a hole on the disk: 1 % of it below ``small.``, the rest below ``rest.``."""
    side = math.isqrt(part // 16)
    shapes = {**{f"small.{n}.weight": side for n in range(4)}, **{f"rest.{n}.weight": 4 * side for n in range(24)}}
    header, at = {}, 0
    for name, width in shapes.items():
        end = at + 4 * width * width
        header[name] = {"dtype": "F32", "shape": [width, width], "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


def peak(path: Path | None) -> int:
    """The most memory of this process, in bytes, once the part below ``small.`` is loaded, or the model only made."""
    model = net(4, math.isqrt(LARGE // 100 // 16))
    if path is not None:
        initialize(model, Rule(Name("**"), Pretrained(str(path), prefix="small")), stats=False)
    status = Path("/proc/self/status").read_text().splitlines()  # getrusage may tell of the parent
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024


def beyond(folder: Path) -> dict[str, float]:
    """MiB of a large file, of its part that is loaded, and how much more memory that takes than to make the model."""
    path = folder / "large.safetensors"
    sparse_safetensors(path)
    peaks = []
    for what in ("", str(path)):  # in processes of their own
        command = [sys.executable, "-m", "benchmarks.checkpoints", "--peak", what]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    sizes = {"in the file": path.stat().st_size, "loaded": LARGE // 100, "beyond the model": peaks[1] - peaks[0]}
    return {what: size / MiB for what, size in sizes.items()}


def section(quick: bool) -> tuple[object, list[str]]:
    """The loads, and what a part of a large file takes."""
    kept: list[dict[str, object]] = []

    def cells(found: Iterable[Load]) -> Iterator[str]:
        for load in found:
            kept.append(asdict(load))
            times = [
                f"{ours.median:.4f} ({ours.best:.4f}) | {theirs.median:.4f} ({theirs.best:.4f})"
                f" | {ours.median / theirs.median:.2f}"
                for ours, theirs in (load.processor, load.clock)
            ]
            yield f"{load.model} | {load.way} | {load.against} | {' | '.join(times)}"

    with tempfile.TemporaryDirectory() as folder:
        columns = "model | file | by hand | processor seconds: median (best) | theirs | ratio | clock | theirs | ratio"
        lines = results.table(columns, cells(loads(Path(folder), quick)))
        sizes = {} if quick else beyond(Path(folder))
    if sizes:
        rows = (f"{what} | {size:.0f}" for what, size in sizes.items())
        lines += ["", *results.table("a part of a large file | MiB", rows)]
    return {"loads": kept, "part of a large file": sizes}, lines


if __name__ == "__main__":
    if "--peak" in sys.argv:
        name = sys.argv[-1]
        print(peak(Path(name) if name else None))
    else:
        results.measure({"loads": section}, __doc__)
