"""Real models of OpenMMLab: building and init_weights under torchinit beside MMEngine, in processor time.

    .venv-peers/bin/python -m benchmarks.mmengine_models [--quick] [--write]
    .venv-peers/bin/python -m benchmarks.mmengine_models REPEATS [MODEL ...]

Each side has a process of its own, since what `mmengine.model` hands out is set before anything imports it; the two
take turns, model by model. Medians and their ratios, with the log written to a file on both sides. The model before is
freed first, and its memory is kept for the next one: what the system takes to hand out pages is on both sides, differs
from run to run, and is nobody's cost.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from tests.peers.openmmlab import _log_into, build
from tests.peers.openmmlab_models import POSES, SEGMENTATION
from tests.peers.openmmlab_sides import prepare

REPEATS = 7
SIDES = ("mmengine", "torchinit")
KEEP = {"MALLOC_TRIM_THRESHOLD_": str(1 << 32), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}
"""Has the C library keep what is freed; the second is the most that it takes."""
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ResNet-50": ("mmpretrain", {"type": "ResNet", "depth": 50}),
    "Swin-T": ("mmpretrain", {"type": "SwinTransformer", "arch": "tiny"}),
    "RetinaNet R50": (
        "mmdet",
        {
            "type": "RetinaNet",
            "backbone": {"type": "ResNet", "depth": 50},
            "neck": {"type": "FPN", "in_channels": [256, 512, 1024, 2048], "out_channels": 256, "num_outs": 5},
            "bbox_head": {"type": "RetinaHead", "num_classes": 80, "in_channels": 256},
        },
    ),
    "HRNet-W18": ("mmpretrain", {"type": "HRNet", "arch": "w18"}),
    "EfficientNet-B0": ("mmpretrain", {"type": "EfficientNet", "arch": "b0"}),
    "SegFormer-B0": ("mmseg", SEGMENTATION["segformer"]),
    "CGNet": ("mmseg", SEGMENTATION["cgnet"]),
    "Lite-HRNet-18": ("mmpose", POSES["lite-hrnet"]),
}
MORE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "MobileNet-V3": ("mmpretrain", {"type": "MobileNetV3"}),
    # As SegFormer does, its init_weights calls MMEngine's functions module by module.
    "PVTv2-B0": ("mmdet", {"type": "PyramidVisionTransformerV2", "embed_dims": 32, "num_layers": [2, 2, 2, 2]}),
}
"""Those beside the eight that the median is of."""


def serve(side: str, log: str) -> None:
    """Answer each model's name on standard input with the seconds that building and initializing it take."""
    answers, sys.stdout = sys.stdout, sys.stderr
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    prepare(side)
    _log_into(Path(log))
    model: Any = None
    for line in sys.stdin:
        package, config = (MODELS | MORE_MODELS)[line.strip()]
        model = None
        gc.collect()
        times = [time.process_time()]
        model = build(package, config)
        times.append(time.process_time())
        model.init_weights()
        times.append(time.process_time())
        answers.write(f"{times[1] - times[0]} {times[2] - times[1]}\n")
        answers.flush()


def ratios(repeats: int, names: list[str]) -> Iterator[dict[str, Any]]:
    """Milliseconds of ``init_weights`` on both sides, and the ratios of this and of building, model by model."""
    every = MODELS | MORE_MODELS
    names = [name for name in names if importlib.util.find_spec(every[name][0])]
    with tempfile.TemporaryDirectory() as folder:
        workers = {side: _start(side, Path(folder) / f"{side}.log") for side in SIDES}
        for name in names:
            taken: dict[str, list[list[float]]] = {side: [] for side in SIDES}
            for turn in range(repeats + 1):
                for side in SIDES if turn % 2 else reversed(SIDES):
                    spent = _ask(workers[side], name)
                    if turn:  # the first round imports
                        taken[side].append(spent)
            build, init = ({side: [one[at] for one in taken[side]] for side in SIDES} for at in (0, 1))
            times = {side: statistics.median(init[side]) * 1e3 for side in SIDES}
            figures = {"ratio": _ratio(init), "best": _ratio(init, min)}
            built = {"building": _ratio(build), "building_best": _ratio(build, min)}
            yield {"model": name, **times, **figures, **built}
        for worker in workers.values():
            worker.communicate()


def section(
    quick: bool, repeats: int = REPEATS, names: Iterable[str] = (*MODELS, *MORE_MODELS)
) -> tuple[object, list[str]]:
    """All models, measured; in short the first three, from three runs."""
    kept: list[dict[str, Any]] = []

    def cells() -> Iterator[str]:
        for row in ratios(3, [*names][:3]) if quick else ratios(repeats, [*names]):
            kept.append(row)
            ours = f"{row['torchinit']:.0f} | {row['ratio']:.2f} ({row['best']:.2f})"
            built = f"{row['building']:.2f} ({row['building_best']:.2f})"
            yield f"{row['model']} | {row['mmengine']:.0f} | {ours} | {built}"
        eight = [row for row in kept if row["model"] in MODELS] or kept
        ratio, best = (statistics.median(row[key] for row in eight) for key in ("ratio", "best"))
        yield f"median of {len(eight)} | | | {ratio:.2f} ({best:.2f}) | "

    columns = "model | init_weights, ms: mmengine | torchinit | ratio (of the best) | building: ratio (of the best)"
    return kept, results.table(columns, cells())


def _start(side: str, log: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.mmengine_models", "--serve", side, str(log)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"} | KEEP, **pipes)


def _ask(worker: subprocess.Popen[str], name: str) -> list[float]:
    assert worker.stdin
    assert worker.stdout
    print(name, file=worker.stdin, flush=True)
    return [float(word) for word in worker.stdout.readline().split()]


def _ratio(seconds: dict[str, list[float]], of: Callable[[list[float]], float] = statistics.median) -> float:
    theirs, ours = (of(seconds[side]) for side in SIDES)
    return ours / theirs


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    elif sys.argv[1:2] and not sys.argv[1].startswith("-"):
        section(False, int(sys.argv[1]), sys.argv[2:] or [*MODELS, *MORE_MODELS])
    else:
        results.measure({"mmengine": section}, __doc__)
