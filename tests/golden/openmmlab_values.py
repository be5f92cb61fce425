"""Golden values: trees that MMEngine 0.10.7 initialized, a few numbers of each tensor.

    .venv-peers/bin/python tests/golden/openmmlab_values.py

writes them anew with the real MMEngine. They are kept as numbers and compared with a tolerance, because the last bit of
torch's own draws may depend on the processor; bit for bit they are compared where MMEngine runs beside torchinit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

PATH = Path(__file__).with_suffix(".json")
SEED = 11

CASES: dict[str, Any] = {
    "constant": {"type": "Constant", "val": 0.5, "bias": 1, "layer": "Conv2d"},
    "xavier": {"type": "Xavier", "gain": 2, "layer": ["Conv2d", "Linear"], "bias": 0.1},
    "xavier_uniform": {"type": "Xavier", "distribution": "uniform", "layer": "Linear"},
    "normal": {"type": "Normal", "mean": 1, "std": 0.1, "layer": "Conv2d"},
    "trunc_normal": {"type": "TruncNormal", "std": 0.5, "a": -0.25, "b": 1, "layer": "Linear"},
    "uniform": {"type": "Uniform", "a": -2, "b": 3, "layer": "Linear", "bias_prob": 0.1},
    "kaiming": {"type": "Kaiming", "layer": "Conv2d"},
    "kaiming_uniform": {"type": "Kaiming", "a": 1, "mode": "fan_in", "distribution": "uniform", "layer": "_ConvNd"},
    "caffe2": {"type": "Caffe2Xavier", "layer": ["Linear", "Conv2d"]},
    "overwritten": [{"type": "Normal", "layer": "Linear"}, {"type": "Normal", "std": 3, "layer": "Linear"}],
    "override": {"type": "Normal", "layer": "Conv2d", "override": {"name": "below", "type": "Uniform"}},
    "inherited": {"type": "Normal", "std": 2, "layer": "Conv2d", "override": [{"name": "below"}, {"name": "norm"}]},
}


def tree(library: Any, init_cfg: Any) -> Any:
    """A small tree with an own init_cfg below and a layer with code of its own."""

    class Below(library.BaseModule):
        def __init__(self) -> None:
            super().__init__({"type": "Normal", "std": 0.01, "layer": "Linear"})
            self.fc = nn.Linear(3, 3)
            self.conv = nn.Conv2d(2, 2, 1)

    class Custom(library.BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def init_weights(self) -> None:
            super().init_weights()
            library.trunc_normal_init(self.fc, std=0.02)

    class Tree(library.BaseModule):
        def __init__(self) -> None:
            super().__init__(init_cfg)
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.below = Below()
            self.custom = Custom()
            self.last = nn.Linear(4, 3)

    return Tree()


def values(library: Any, name: str) -> dict[str, list[float]]:
    """The first and the last numbers of each parameter, and where the generator stands."""
    torch.manual_seed(SEED)
    model = tree(library, CASES[name])
    model.init_weights()
    state = {key: _ends(value) for key, value in model.named_parameters()}
    return {**state, "next draws": torch.rand(3).tolist()}


def _ends(value: torch.Tensor) -> list[float]:
    flat = value.detach().flatten()
    return [*flat[:3].tolist(), *flat[-3:].tolist()]


if __name__ == "__main__":
    import mmengine.model

    found = {name: values(mmengine.model, name) for name in CASES}
    PATH.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(f"{len(found)} cases in {PATH}\n")
