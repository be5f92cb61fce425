"""Checkpoints: how fast a whole file is loaded beside torch and safetensors, and how much memory a part of one takes.

``python -m benchmarks.checkpoints`` prints both tables.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.timing import side_by_side
from torchinit import Name, Pretrained, Rule, initialize

MiB = 1 << 20
LARGE = 4096 * MiB


def net(layers: int, width: int) -> nn.Sequential:
    """Like layers, one behind the other."""
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))


# --- speed -----------------------------------------------------------------------------------------------------------


def speed(folder: Path, layers: int = 24, width: int = 2048) -> list[str]:
    """Whole files of so many layers, loaded by torchinit and by what one would write by hand."""
    from safetensors.torch import load_model, save_model

    source, ours, theirs = net(layers, width), net(layers, width), net(layers, width)
    torch.save(source.state_dict(), folder / "a.pth")
    save_model(source, str(folder / "a.safetensors"))
    size = layers * width * width * 4

    def own(path: Path, *, finite: bool) -> Callable[[], object]:
        rule = Rule(Name("**"), Pretrained(str(path), finite=finite))

        def call() -> object:
            from torchinit.checkpoints.opening import forget

            forget()
            return initialize(ours, rule, stats=False)

        return call

    hand: dict[str, Callable[[], object]] = {
        "a.pth": lambda: theirs.load_state_dict(torch.load(folder / "a.pth", weights_only=True)),
        "a.safetensors": lambda: load_model(theirs, folder / "a.safetensors"),
    }
    lines = [
        f"| {size / MiB:.0f} MiB in {layers} tensors | CPU seconds, median (best) | by hand | ratio of the medians |",
        "|---|---|---|---|",
    ]
    for name, call in hand.items():
        for what, finite in (("", True), (", finite=False", False)):
            found = side_by_side({"ours": own(folder / name, finite=finite), "theirs": call}, repeats=9)
            one, other = found["ours"], found["theirs"]
            lines.append(
                f"| {name}{what} | {one.median:.3f} ({one.best:.3f}) | {other.median:.3f} ({other.best:.3f})"
                f" | {one.median / other.median:.2f} |"
            )
            print(lines[-1], flush=True)
    return lines


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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory(folder: Path) -> list[str]:
    """How much more memory it takes to load 1 % of a large file than to make the model, in processes of their own."""
    path = folder / "large.safetensors"
    sparse_safetensors(path)
    peaks = {}
    for what in ("", str(path)):
        command = [sys.executable, "-m", "benchmarks.checkpoints", "--peak", what]
        peaks[what] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    part = LARGE // 100
    row = f"| {path.stat().st_size / MiB:.0f} | {part / MiB:.0f} | {(peaks[str(path)] - peaks['']) / MiB:.0f} |"
    lines = ["| MiB in the file | MiB loaded | MiB of memory beyond the model |", "|---|---|---|", row]
    print("\n".join(lines), flush=True)
    return lines


def main() -> None:
    """Prints the tables; with ``--peak`` the figure that another process asks for."""
    if "--peak" in sys.argv:
        name = sys.argv[-1]
        print(peak(Path(name) if name else None))
        return
    with tempfile.TemporaryDirectory() as folder:
        memory(Path(folder))
        speed(Path(folder))


if __name__ == "__main__":
    main()
