"""init_weights of a ResNet-50-like tree of base modules: torchinit beside MMEngine, interleaved in one process.

    .venv-peers/bin/python benchmarks/mmengine_init.py

prints the medians and the ratio of nine interleaved runs, with the log written to a file on both sides.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torchinit

REPEATS = 9


def resnet(library: Any, *, nested: bool) -> Any:
    """A ResNet-50 of bottlenecks; ``nested`` gives each stage and block an init_cfg of its own."""
    own = {"type": "Constant", "val": 0, "override": {"name": "norm3"}} if nested else None
    every = [{"type": "Kaiming", "layer": "Conv2d"}, {"type": "Constant", "val": 1, "layer": "_BatchNorm"}]

    class Bottleneck(library.BaseModule):
        def __init__(self, inputs: int, width: int, stride: int) -> None:
            super().__init__(own)
            self.conv1, self.norm1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
            self.conv2, self.norm2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
            self.conv3, self.norm3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
            if inputs != 4 * width:
                shortcut = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
                self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    class ResNet(library.BaseModule):
        def __init__(self) -> None:
            super().__init__(every)
            self.stem, self.norm = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
            inputs, stages = 64, []
            for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
                blocks = []
                for index in range(depth):
                    blocks.append(Bottleneck(inputs, width, stride if index == 0 else 1))
                    inputs = 4 * width
                stages.append(library.Sequential(*blocks, init_cfg=every if nested else None))
            self.stages = library.ModuleList(stages)

    return ResNet()


def seconds(library: Any, *, nested: bool) -> float:
    """How long one initialization takes, its log included."""
    torch.manual_seed(0)
    model = resnet(library, nested=nested)
    start = time.perf_counter()
    model.init_weights()
    return time.perf_counter() - start


def main() -> None:
    """Prints a line for each of the two trees."""
    warnings.simplefilter("ignore")
    import mmengine.model
    from mmengine.logging import MMLogger

    with tempfile.TemporaryDirectory() as folder:
        for logger in (MMLogger.get_instance("bench"), logging.getLogger("torchinit")):
            handler = logging.FileHandler(Path(folder) / f"{logger.name}.log")
            handler.setLevel(logging.CRITICAL)
            logger.handlers[:] = [handler]
        for nested in (False, True):
            libraries = {"mmengine": mmengine.model, "torchinit": torchinit}
            runs: dict[str, list[float]] = {name: [] for name in libraries}
            for _ in range(REPEATS):
                for name, library in libraries.items():
                    runs[name].append(seconds(library, nested=nested))
            theirs, ours = (statistics.median(runs[name]) for name in libraries)
            best = min(runs["torchinit"]) / min(runs["mmengine"])
            tree = "an init_cfg at every level" if nested else "one init_cfg"
            sys.stdout.write(
                f"{tree}: mmengine {theirs * 1e3:.0f} ms, torchinit {ours * 1e3:.0f} ms,"
                f" ratio {ours / theirs:.2f} (best against best {best:.2f})\n"
            )


if __name__ == "__main__":
    main()
