"""Sides: one list of OpenMMLab models, initialized by MMEngine and by torchinit, each in a process of its own.

A side is a fresh Python in which `mmengine.model` is what it always was ("mmengine") or hands out torchinit's classes
and functions under the same names ("torchinit"); mmcv, mmdet and mmpretrain are imported after that and cannot tell.
"hosted" is torchinit below models whose outermost class, derived from mmengine's own BaseModel, is still MMEngine's.
Two more sides are MMEngine: "broken" has one bit and one draw too many, to show that a difference is seen; "truthful"
is led to tell the truth in its log, which goes by the mean of a parameter, and its values are of no use. What a model
looks like afterwards comes back as an Outcome: digests of every tensor and of the random generators, the error if there
was one, and the log.

    .venv-peers/bin/python tests/peers/openmmlab.py SIDE CASES.pickle OUTCOMES.jsonl

is what `run_side` starts; tests/peers/openmmlab_sweep.py runs every config that mmdet and mmpretrain ship.
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
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO, cast

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SEED = 20240717
CHECKPOINT = "{checkpoint}"
"""Stands in a config for a file with values for the whole model, made before the model is built."""

# Where mmengine keeps the names of its initialization system, and torchinit's are put in their place.
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
    command = [sys.executable, str(Path(__file__).resolve()), side, str(wanted), str(got)]
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


def prepare(side: str) -> None:
    """Makes `mmengine.model` that of the side; nothing of mmengine.model may have been imported."""
    if side == "torchinit":
        _stand_in()
    elif side == "hosted":
        _rename()
    elif side == "broken":
        _break()
    elif side == "truthful":
        _tell_the_truth()
    elif side != "mmengine":
        raise ValueError(f"a side is mmengine, torchinit, hosted, broken or truthful, but got {side!r}")


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


def _rename() -> None:
    """Only names: what mmengine.model itself has derived from its BaseModule, BaseModel above all, stays as it is."""
    import mmengine.model

    import torchinit

    for path, names in STAND_INS.items():
        for name in names:
            setattr(sys.modules[path], name, getattr(torchinit, name))
            if hasattr(mmengine.model, name):
                setattr(mmengine.model, name, getattr(torchinit, name))
    assert not issubclass(mmengine.model.BaseModel, torchinit.BaseModule)


def _break() -> None:
    from mmengine.model import weight_init

    kaiming, normal = weight_init.kaiming_init, weight_init.normal_init

    def one_value_one_bit_off(module: Any, *args: Any, **kwargs: Any) -> None:
        kaiming(module, *args, **kwargs)
        with torch.no_grad():
            first = module.weight.view(-1)[0]
            first.copy_(torch.nextafter(first, first + 1))

    def one_draw_too_many(module: Any, *args: Any, **kwargs: Any) -> None:
        normal(module, *args, **kwargs)
        torch.rand(1)

    # The classes look the functions up when they are called.
    weight_init.kaiming_init, weight_init.normal_init = one_value_one_bit_off, one_draw_too_many


def _tell_the_truth() -> None:
    """Lets MMEngine see each write: after each look at the parameters they get values that nobody would write."""
    from mmengine.model import base_module, weight_init

    look = weight_init.update_init_info

    def look_and_shake(module: Any, init_info: str) -> None:
        look(module, init_info)
        shake(module)

    weight_init.update_init_info = base_module.update_init_info = look_and_shake


def shake(module: Any) -> None:
    """Gives each parameter values that nobody would write; an open account of them gets their means."""
    account = getattr(module, "_params_init_info", {})
    for parameter in module.parameters():
        parameter.data.uniform_(0.3, 0.7)
        if parameter in account:
            account[parameter]["tmp_mean_value"] = parameter.data.mean()


def below_a_parent(model: nn.Module) -> Any:
    """A module whose one child is the model: MMEngine sees an overridden `init_weights` in children alone."""
    from mmengine.model import BaseModule

    class Parent(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.child = model

    return Parent()


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

    importlib.import_module(f"{package}.models")
    registry = importlib.import_module(f"{package}.registry").MODELS
    with DefaultScope.overwrite_default_scope(package):
        # A config read from a file lets its keys be attributes, and mmdet asks for them so.
        return registry.build(ConfigDict(copy.deepcopy(config)))


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


if __name__ == "__main__":
    main(*sys.argv[1:])
