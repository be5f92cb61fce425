"""Models: what a MODEL on the command line stands for, found and built; its weights, to a file and from one.

A MODEL is ``package.module:factory``, ``path/to/file.py:factory`` or ``transformers:path/to/config.json``. A
factory is anything that returns a ``torch.nn.Module`` when called: a function, a class, a bound method.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import json
import os
import pkgutil
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchinit._files import read_bounded, replacing
from torchinit._limits import RECIPE_BYTES
from torchinit._text import count, did_you_mean, dtype_name
from torchinit.checkpoints.formats.safetensors import DTYPES, TIED, SafetensorsCheckpoint
from torchinit.cli.frame import ModelError, UsageError, check_free, parse_arguments
from torchinit.errors import TorchinitError
from torchinit.model.names import normalize
from torchinit.noise import seeded_generators
from torchinit.plans import Diff, Fingerprint
from torchinit.plans.fingerprint import fingerprint

Device = Literal["meta", "cpu"]


def model_of(arguments: Namespace, device: Device, seed: int | None = None) -> nn.Module:
    """The model that the command line names."""
    return build(arguments.model, parse_arguments(arguments.arg), device, seed)


def build(text: str, arguments: Mapping[str, Any], device: Device, seed: int | None = None) -> nn.Module:
    """The model that ``text`` stands for; ``arguments`` go to its factory.

    On ``"meta"`` no memory is taken. With a ``seed`` the factory's own draws from torch's generator come from
    it, and the generator's state is afterwards what it was before. Raises ModelError.

    >>> build("torch.nn:Linear", {"in_features": 2, "out_features": 3}, "meta").weight.device
    device(type='meta')
    """
    with nullcontext() if seed is None else seeded_generators(seed):  # around `find`, which may build models, too
        factory = find(text)
        try:
            with torch.device("meta") if device == "meta" else nullcontext():
                model = factory(**arguments)
        except TorchinitError:
            raise
        except (Exception, SystemExit) as error:  # whatever a stranger's code raises
            hint = "\n  It was called for the meta device; with --device cpu it is built in memory."
            raise ModelError(_raised(f"{text} raised", error) + (hint if device == "meta" else "")) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{text} returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def find(text: str) -> Callable[..., object]:
    """The factory that ``text`` names; nothing is called yet. Raises ModelError."""
    source, colon, name = text.rpartition(":")
    if text.startswith("transformers:"):
        return functools.partial(_build_from_config, Path(text.removeprefix("transformers:")))
    if not (colon and source and name):
        raise ModelError(
            f"{text!r} names no model; it is package.module:factory, path/to/file.py:factory"
            " or transformers:path/to/config.json"
        )
    module = _from_file(Path(source)) if source.endswith(".py") else _from_package(source)
    return _attribute(module, name, text)


def _from_package(name: str) -> ModuleType:
    with _importable(Path.cwd()):
        try:
            return importlib.import_module(name)
        except (Exception, SystemExit) as error:
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing is not None and f"{name}.".startswith(f"{missing}."):  # not one that the module itself imports
                raise ModelError(f"there is no module {missing!r}{_near_module(missing)}") from error
            raise ModelError(_raised(f"importing {name} raised", error)) from error


def _near_module(name: str) -> str:
    """The near name among a module's siblings."""
    parent, _, last = name.rpartition(".")
    path = getattr(sys.modules.get(parent), "__path__", []) if parent else [str(Path.cwd())]
    hint = did_you_mean(last, [module.name for module in pkgutil.iter_modules(path)])
    file = name.replace(".", "/") + ".py"
    return hint or (f"; for a file, write {file}:factory" if Path(file).exists() else "")


def _from_file(path: Path) -> ModuleType:
    _check_file(path)
    name = f"torchinit_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise ModelError(f"{str(path)!r} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    with _importable(path.resolve().parent):
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise ModelError(_raised(f"loading {path} raised", error)) from error
    return module


def _check_file(path: Path) -> None:
    if not path.is_file():
        near = map(str, path.parent.glob(f"*{path.suffix}")) if path.parent.is_dir() else ()
        raise ModelError(f"there is no file {str(path)!r}{did_you_mean(str(path), near)}")


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let ``import`` look into a folder; a script that is started by its own name does not see the current one."""
    text = str(folder)
    sys.path.insert(0, text)
    try:
        yield
    finally:
        if text in sys.path:
            sys.path.remove(text)


def _attribute(module: ModuleType, name: str, text: str) -> Callable[..., object]:
    value: object = module
    for part in name.split("."):
        if not hasattr(value, part):
            near = [key for key in dir(value) if callable(getattr(value, key, None))]
            raise ModelError(f"{text.rpartition(':')[0]} has no {name!r}{did_you_mean(part, near)}")
        value = getattr(value, part)
    if isinstance(value, nn.Module):
        raise ModelError(f"{text} is a model already; name a function or a class that makes one when it is called")
    if not callable(value):
        raise ModelError(f"{text} is a {type(value).__name__}, which cannot be called; name a function or a class")
    return value


def _raised(event: str, error: BaseException) -> str:
    """The error with the last line of other people's code."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parent)
    last = next((frame for frame in reversed(frames) if not frame.filename.startswith(("<", ours))), None)
    line = f"\n  at {last.filename}:{last.lineno}" if last else ""
    return f"{event} {type(error).__name__}: {error}{line}"


def _build_from_config(path: Path, **overrides: Any) -> object:
    """The model of a transformers config file (or of the folder that holds ``config.json``), untrained and offline.

    Its class is the first of ``architectures``, or else the bare model of its ``model_type``. ``overrides``
    replace settings of the config. No code runs but that of transformers.
    """
    path = path / "config.json" if path.is_dir() else path
    _check_file(path)
    try:
        data = json.loads(read_bounded(path, RECIPE_BYTES))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} holds a {type(data).__name__}, not the settings of a model")
    with _offline():
        try:
            import transformers
        except ImportError as error:
            raise ModelError(f"a transformers: model needs transformers: pip install transformers ({error})") from error
        config = _config(transformers, data, overrides, path)
        return _model_class(transformers, data, config, path)(config)


def _config(transformers: Any, data: dict[str, Any], overrides: Mapping[str, Any], path: Path) -> Any:
    kind = data.get("model_type")
    if kind is None:
        raise ModelError(f"{path} has no 'model_type', so its settings have no meaning")
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        near = did_you_mean(str(kind), transformers.CONFIG_MAPPING.keys())
        raise ModelError(f"{path}: this transformers has no model_type {kind!r}{near}")
    cls = transformers.CONFIG_MAPPING[kind]
    known = {*cls().to_dict(), *data, *getattr(cls, "attribute_map", {})} if overrides else ()
    for key in overrides:
        if key not in known:  # transformers itself would take it and never look at it
            raise ModelError(f"{cls.__name__} has no setting {key!r}{did_you_mean(key, known)}")
    return cls.from_dict({**data, **overrides})


def _model_class(transformers: Any, data: dict[str, Any], config: Any, path: Path) -> Any:
    names = data.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"{path}: 'architectures' is a list of names, but got {names!r}")
    if not names:
        bare = transformers.MODEL_MAPPING.get(type(config), None)
        if bare is None:
            raise ModelError(f"{path} names no architecture, and {data['model_type']!r} has no bare model")
        return bare[0] if isinstance(bare, (list, tuple)) else bare
    cls = getattr(transformers, names[0], None)
    # The name comes from a file: nothing but a model class may be called for it.
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        models = [name for name in dir(transformers) if name.endswith(("Model", "PreTrainedModel")) or "For" in name]
        raise ModelError(f"{path}: transformers has no model {names[0]!r}{did_you_mean(names[0], models)}")
    return cls


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the Hugging Face libraries from the network, whether they are imported already or not."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:  # the environment is read once, when this is imported
        constants: Any = importlib.import_module("huggingface_hub.constants")
    except ImportError:
        constants = SimpleNamespace(HF_HUB_OFFLINE=None)
    constant_before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = constant_before
        del os.environ["HF_HUB_OFFLINE"]
        os.environ.update({} if before is None else {"HF_HUB_OFFLINE": before})


CODES = {dtype: code for code, dtype in DTYPES.items()}  # the format's names of dtypes


def check_output(path: Path, *, force: bool) -> None:
    """Refuse an output that cannot be written before anything costly is done."""
    if path.suffix != ".safetensors":
        raise UsageError(f"the output is a .safetensors file, but got {str(path)!r}")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {str(path.parent)!r} to write {path.name!r} to")
    check_free(path, force=force)


def write_state(
    path: Path, state: Mapping[str, object], metadata: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Write a state dict, a tied tensor once, under its first name; return what :func:`distinct` says of it.

    The other names of tied tensors are in the metadata, under ``torchinit.tied``, as a JSON object. Raises UsageError
    for what the format cannot hold.
    """
    tensors, tied = distinct(state)
    extra = {TIED: json.dumps(tied, sort_keys=True)} if tied else {}
    write(path, tensors, {"format": "pt", **metadata, **extra})
    return tensors, tied


def distinct(state: Mapping[str, object]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a state by their first names, and which other name means which of them."""
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    names: dict[object, str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise UsageError(f"{name} is a {type(tensor).__name__}; safetensors holds tensors only")
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        first = names.setdefault(key, name)
        if first == name:
            kept[name] = tensor
        else:
            tied[name] = first
    return kept, tied


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # the widest first: aligned
    head = _head({name: tensors[name] for name in order}, metadata)
    with replacing(path) as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in order:
            feed(tensors[name], file.write)


def _head(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    begin = 0
    for name, tensor in tensors.items():
        if name == "__metadata__" or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise UsageError(f"{name!r} cannot be written: safetensors has no such name for a tensor")
        if tensor.dtype not in CODES or tensor.layout != torch.strided or tensor.is_meta:
            raise UsageError(f"{name} cannot be written: safetensors has no {tensor.dtype}, {tensor.layout}")
        end = begin + tensor.nbytes
        entries[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)


def feed(tensor: Tensor, function: Callable[[Any], object]) -> None:
    """Call a function with the bytes of a tensor, straight from its memory."""
    here = tensor.detach().cpu().contiguous()  # alive until the function has returned
    if here.nbytes:
        function((ctypes.c_char * here.nbytes).from_address(here.data_ptr()))


def compare(a: Path, b: Path) -> Diff:
    """The tensors in which two safetensors files differ, bit for bit; the files are mapped, not read into memory."""
    (first, _), (second, _) = open_file(a), open_file(b)
    diff = Diff.between(first, second, agree=same_bits, facts=_facts)
    changes = []
    for change in sorted(diff, key=lambda change: change.name):
        distance = _distance(first[change.name], second[change.name]) if change.verb == "changed" else []
        after, gist = (", ".join([*filter(None, [text]), *distance]) for text in (change.after, change.gist))
        changes.append(replace(change, after=after, gist=gist))
    return Diff.of(changes, diff.same)


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same in shape, dtype and every bit: NaN equals itself, -0 is not 0."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))


def open_file(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """The tensors of a safetensors file, by name, in mapped memory; and the other names of tied ones.

    Raises UsageError where there is no file, CheckpointError for one that is not sound.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r}")
    file = SafetensorsCheckpoint(path)
    return {key: file.read(key) for key in file if key not in file.tied}, file.tied


def fingerprint_of(path: Path) -> Fingerprint:
    """The fingerprint of the tensors of a safetensors file."""
    tensors, tied = open_file(path)
    return replace(fingerprint(tensors), aliases=tied)


def load(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Give a model what stands under its names, wrappers left out of them, and in its shapes; no more."""
    state = {normalize(name): tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    for key, value in tensors.items():
        target = state.get(normalize(key))
        if target is not None and target.shape == value.shape:
            target.copy_(value)


def _facts(tensor: Tensor) -> tuple[str, str]:
    return str(list(tensor.shape)), dtype_name(tensor.dtype)


def _distance(first: Tensor, second: Tensor) -> list[str]:
    if first.shape != second.shape or not first.numel():
        return []
    wide = torch.complex128 if first.is_complex() or second.is_complex() else torch.float64
    apart = (first.to(wide) - second.to(wide)).abs()
    return [f"{count(int(apart.ne(0).sum()), 'element')} apart by up to {float(apart.max()):.6g}"]
