"""Sides: one list of OpenMMLab models, initialized by MMEngine and by torchinit, each in a process of its own.

A side is a fresh Python in which `mmengine.model` is what it always was ("mmengine") or hands out torchinit's classes and
functions under the same names ("torchinit"); mmcv, mmdet and mmpretrain are imported after that and cannot tell. "broken"
is MMEngine with one draw too many, to show that a difference is seen. What a model looks like afterwards comes back as an
Outcome: digests of every tensor and of the random generators, the error if there was one, and the log.

    .venv-peers/bin/python tests/peers/openmmlab.py SIDE CASES.pickle OUTCOMES.jsonl

is what `run_side` starts; tests/peers/openmmlab_sweep.py runs every config that mmdet and mmpretrain ship.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
import pickle
import random
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SEED = 20240717
CHECKPOINT = "{checkpoint}"
"""Stands in a config for a file with values for the whole model, made before the model is built."""

# Where mmengine keeps the names of its initialization system: torchinit's stand there before mmengine.model is imported.
STAND_INS = {
    "mmengine.model.base_module": ("BaseModule", "Sequential", "ModuleList", "ModuleDict"),
    "mmengine.model.weight_init": (
        *("BaseInit", "ConstantInit", "XavierInit", "NormalInit", "TruncNormalInit", "UniformInit", "KaimingInit"),
        *("Caffe2XavierInit", "PretrainedInit", "initialize", "update_init_info", "bias_init_with_prob"),
        *("constant_init", "xavier_init", "normal_init", "trunc_normal_init", "uniform_init", "kaiming_init"),
        *("caffe2_xavier_init", "trunc_normal_"),
    ),
    "mmengine.model.wrappers.utils": ("is_model_wrapper",),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One model: its name in the list, the package whose registry builds it, and its config."""

    name: str
    package: str
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is left of one model: digests, no tensors. `error` is the exception's type, `""` where all went well."""

    name: str
    error: str
    message: str
    state: dict[str, str]
    generators: str
    tree: str
    leftovers: tuple[str, ...]
    log: str
    parameters: int
    seconds: float

    def differences(self, other: Outcome) -> tuple[str, ...]:
        """What of the values, the generators and the model's own text is not the same on the other side."""
        names = sorted(self.state.keys() | other.state.keys())
        fields = ("error", "generators", "tree", "leftovers")
        return (
            *(name for name in names if self.state.get(name) != other.state.get(name)),
            *(f"<{field}>" for field in fields if getattr(self, field) != getattr(other, field)),
        )


# --- the parent ------------------------------------------------------------------------------------------------------


def run_side(side: str, cases: Sequence[Case], folder: Path) -> dict[str, Outcome]:
    """Runs all cases on one side, in a fresh process; the checkpoints and the log lie in the folder."""
    wanted, got = folder / f"{side}.pickle", folder / f"{side}.jsonl"
    wanted.write_bytes(pickle.dumps([dataclasses.astuple(case) for case in cases]))
    command = [sys.executable, str(Path(__file__).resolve()), side, str(wanted), str(got)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the {side} side ended with {done.returncode}:\n{done.stderr[-4000:]}"
    return read_outcomes(got)


def read_outcomes(path: Path) -> dict[str, Outcome]:
    """The outcomes that a side has written, by name."""
    found = (json.loads(line) for line in path.read_text().splitlines())
    return {item["name"]: Outcome(**{**item, "leftovers": tuple(item["leftovers"])}) for item in found}


# --- one side --------------------------------------------------------------------------------------------------------


def prepare(side: str) -> None:
    """Makes `mmengine.model` that of the side; nothing of mmengine.model may have been imported."""
    if side == "torchinit":
        _stand_in()
    elif side == "broken":
        _break()
    elif side != "mmengine":
        raise ValueError(f"a side is mmengine, torchinit or broken, but got {side!r}")


def _stand_in() -> None:
    import torchinit

    for path, names in STAND_INS.items():
        assert path not in sys.modules, f"{path} was imported before the stand-in"
        module = ModuleType(path)
        for name in names:
            setattr(module, name, getattr(torchinit, name))
        sys.modules[path] = module
    import mmengine.model

    # An import binds the name in the parent package; a module that was there already is not imported.
    for path in STAND_INS:
        package, _, name = path.rpartition(".")
        setattr(sys.modules[package], name, sys.modules[path])
    assert issubclass(mmengine.model.BaseModel, torchinit.BaseModule)


def _break() -> None:
    from mmengine.model import weight_init

    normal = weight_init.NormalInit._init

    def draws_once_more(self: Any) -> Any:
        torch.rand(1)
        return normal(self)

    weight_init.NormalInit.__call__ = lambda self, module: (torch.rand(1), module.apply(lambda m: None))
    del draws_once_more


def outcomes(cases: Iterable[Case], folder: Path) -> Iterator[Outcome]:
    """Builds and initializes each case in this process."""
    log = _log_into(folder / "init.log")
    for case in cases:
        log.seek(0)
        log.truncate()
        yield _outcome(case, folder)


if __name__ == "__main__":
    pass
