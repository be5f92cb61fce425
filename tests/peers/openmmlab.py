"""Outcomes: what came of a list of OpenMMLab models, built and initialized in a fresh process for each side.

The sides are MMEngine itself, torchinit in its place, and three more: openmmlab_sides.py. What a model looks like after
`init_weights()` comes back as an Outcome: digests of every tensor and of the random generators, the error if there was
one, and the log. `run_side` starts the process, openmmlab_worker.py; openmmlab_sweep.py runs every config that mmdet
and mmpretrain ship.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib
import json
import logging
import pickle
import random
import re
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import numpy as np
import torch
from torch import nn

from tests.peers.openmmlab_sides import below_a_parent, prepare, shake

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SEED = 20240717
CHECKPOINT = "{checkpoint}"
"""Stands in a config for a file with values for the whole model, made before the model is built."""


@dataclass(frozen=True, slots=True)
class Case:
    """One model: its name in the list, the package whose registry builds it, and its config."""

    name: str
    package: str
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is left of one model: digests, no tensors. `error` is the exception's type, "" where all went well."""

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
    command = [sys.executable, str(Path(__file__).with_name("openmmlab_worker.py")), side, str(wanted), str(got)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the {side} side ended with {done.returncode}:\n{done.stderr[-4000:]}"
    return read_outcomes(got)


def read_outcomes(path: Path) -> dict[str, Outcome]:
    """The outcomes that a side has written, by name."""
    found = (json.loads(line) for line in path.read_text().splitlines())
    return {item["name"]: Outcome(**{**item, "leftovers": tuple(item["leftovers"])}) for item in found}


def init_lines(log: str) -> dict[tuple[str, str], str]:
    """What a log's last account says of each parameter, in its order: name, size, and how it was set."""
    account = log.rpartition("Name of parameter - Initialization information\n")[2]
    found = re.findall(r"^(\S+) - (torch\.Size\(.*?\)): \n(.*)$", account, flags=re.MULTILINE)
    return {(name, size): text for name, size, text in found}


def true_lines(log: str) -> dict[tuple[str, str], str]:
    """The same of the truthful side, without its extra parent; `""` stands for a parameter that nobody wrote."""
    found = init_lines(log)
    return {
        (name.removeprefix("child."), size): "" if is_unwritten(text) else text for (name, size), text in found.items()
    }


def is_unwritten(text: str) -> bool:
    """Whether a line says that nobody wrote the parameter."""
    return text.startswith("The value is the same before and after calling `init_weights` of ")


# --- one side --------------------------------------------------------------------------------------------------------


def outcomes(cases: Iterable[Case], folder: Path, *, truthful: bool = False) -> Iterator[Outcome]:
    """Builds and initializes each case in this process."""
    log = _log_into(folder / "init.log")
    # Memory that nobody writes is NaN on both sides; else it is what another model left there.
    torch.use_deterministic_algorithms(True)
    for case in cases:
        log.truncate(0)
        yield _outcome(case, log, folder, truthful=truthful)


def _log_into(path: Path) -> TextIO:
    """The stream of a file handler of MMEngine's current logger, which is a user's of either side."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_instance("peers")
    handler = logging.FileHandler(path, mode="a+", delay=False)
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.handlers[:] = [handler]
    return cast("TextIO", handler.stream)


def _outcome(case: Case, log: TextIO, folder: Path, *, truthful: bool) -> Outcome:
    model, error, message, seconds = None, "", "", 0.0
    try:
        config = _with_checkpoint(case, folder)
        _seed(SEED)
        model = build(case.package, config)
        if truthful:
            model = below_a_parent(model)
            shake(model)
        start = time.perf_counter()
        model.init_weights()
        seconds = time.perf_counter() - start
    except Exception as problem:  # noqa: BLE001 - whatever the one side raises, the other must raise, too
        error, message = builtin_name(problem), str(problem)[:500]
    log.flush()
    log.seek(0)
    return Outcome(
        case.name,
        error,
        message,
        state={} if model is None else digests(model),
        generators=_generators(),
        tree=_digest(repr(model).encode()),
        leftovers=() if model is None else leftovers(model),
        log=log.read(),
        parameters=0 if model is None else sum(parameter.numel() for parameter in model.parameters()),
        seconds=seconds,
    )


def build(package: str, config: dict[str, Any]) -> Any:
    """The model that the package's registry makes of a config, as its own tools would."""
    from mmengine.config import ConfigDict
    from mmengine.registry import DefaultScope

    import_models(package)
    registry = importlib.import_module(f"{package}.registry").MODELS
    with DefaultScope.overwrite_default_scope(package):
        # A config read from a file lets its keys be attributes, and mmdet asks for them so.
        return registry.build(ConfigDict(copy.deepcopy(config)))


def import_models(package: str) -> None:
    """Import a package's models; mmseg and mmpose ask for modules that their models do not use."""
    import mmengine.runner  # noqa: F401 - and so transformers, which is to see what is really there
    import peer_stubs

    with peer_stubs.standing_in("ftfy", "json_tricks", "munkres", "regex", "xtcocotools"):
        importlib.import_module(f"{package}.models")


def builtin_name(problem: Exception) -> str:
    """The name of the exception that callers can catch without knowing the library that raised it."""
    return next(kind.__name__ for kind in type(problem).__mro__ if kind.__module__ == "builtins")


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _generators() -> str:
    states = (torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), repr(random.getstate()))
    return _digest(repr(states).encode())


def digests(model: nn.Module) -> dict[str, str]:
    """A digest of dtype, shape and bytes of each entry of the state dict, and of the buffers that are not in it."""
    tensors = {**dict(model.named_buffers()), **{n: t for n, t in model.state_dict().items() if torch.is_tensor(t)}}
    return {name: _tensor_digest(tensor) for name, tensor in tensors.items()}


def _tensor_digest(tensor: torch.Tensor) -> str:
    head = f"{tensor.dtype} {tuple(tensor.shape)} "
    data = tensor.detach().contiguous().view(-1).view(torch.uint8) if tensor.numel() else torch.empty(0)
    return _digest(head.encode(), data.numpy().data)


def _digest(*parts: bytes | memoryview) -> str:
    made = hashlib.sha256()
    for part in parts:
        made.update(part)
    return made.hexdigest()[:32]


def leftovers(model: nn.Module) -> tuple[str, ...]:
    """What initialization leaves on the modules: `is_init` where it is true, and any trace of a run."""
    marks = (
        (name, key) for name, module in model.named_modules() for key in vars(module) if key == "_params_init_info"
    )
    done = (name for name, module in model.named_modules() if getattr(module, "is_init", False))
    return (*(f"{name}.{key}" for name, key in marks), _digest("\n".join(done).encode()))


# --- checkpoints -----------------------------------------------------------------------------------------------------


def _with_checkpoint(case: Case, folder: Path) -> dict[str, Any]:
    """The case's config with a file in the place of CHECKPOINT: values for the model as it is without one."""
    if CHECKPOINT not in repr(case.config):
        return case.config
    path = folder / f"{case.name}.pth"
    if not path.exists():
        model = build(case.package, without_checkpoints(case.config))
        draws = torch.Generator().manual_seed(SEED)
        state = {name: _values_like(value, draws) for name, value in model.state_dict().items()}
        torch.save({"state_dict": state, "meta": {"epoch": 1}}, path)
    return cast("dict[str, Any]", _replaced(case.config, str(path)))


def _values_like(value: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    return torch.randn(value.shape, generator=draws).to(value.dtype) if value.is_floating_point() else value


def _replaced(config: Any, path: str) -> Any:
    if isinstance(config, dict):
        return {key: _replaced(value, path) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_replaced(value, path) for value in config)
    return path if config == CHECKPOINT else config


def without_checkpoints(config: Any) -> Any:
    """A config that asks for no file: neither a Pretrained nor any other checkpoint."""
    if isinstance(config, dict):
        kept = {key: value for key, value in config.items() if key not in ("pretrained", "teacher_ckpt")}
        return {key: without_checkpoints(value) for key, value in kept.items() if not _is_pretrained(value)}
    if isinstance(config, (list, tuple)):
        return type(config)(without_checkpoints(value) for value in config if not _is_pretrained(value))
    return config


def _is_pretrained(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "Pretrained"


def main(side: str, wanted: str, got: str) -> None:
    """Runs the pickled cases on one side; each outcome is a line, written as soon as it is known."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    prepare(side)
    cases = [Case(*parts) for parts in pickle.loads(Path(wanted).read_bytes())]
    with Path(got).open("w") as file:
        for outcome in outcomes(cases, Path(got).parent, truthful=side == "truthful"):
            print(json.dumps(dataclasses.asdict(outcome)), file=file, flush=True)
