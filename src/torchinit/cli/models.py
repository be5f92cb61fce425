"""Models: what a MODEL on the command line stands for, found and built.

A MODEL is ``package.module:factory``, ``path/to/file.py:factory`` or ``transformers:path/to/config.json``. A
factory is anything that returns a ``torch.nn.Module`` when called: a function, a class, a bound method.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn

from torchinit._text import did_you_mean
from torchinit.cli import configs
from torchinit.cli.errors import ModelError, UsageError
from torchinit.errors import TorchinitError
from torchinit.noise import seeded_generators

Device = Literal["meta", "cpu"]


def build(text: str, arguments: Mapping[str, Any], device: Device, seed: int | None = None) -> nn.Module:
    """The model that ``text`` stands for; ``arguments`` go to its factory.

    On ``"meta"`` no memory is taken. With a ``seed`` the factory's own draws from torch's generator come from
    it, and the generator's state is afterwards what it was before. Raises ModelError.

    >>> build("torch.nn:Linear", {"in_features": 2, "out_features": 3}, "meta").weight.device
    device(type='meta')
    """
    with nullcontext() if seed is None else seeded_generators(seed):  # around `find`, which may build models, too
        model = _called(find(text), text, arguments, device)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{text} returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def _called(factory: Callable[..., object], text: str, arguments: Mapping[str, Any], device: Device) -> object:
    place: AbstractContextManager[object] = torch.device("meta") if device == "meta" else nullcontext()
    try:
        with place:
            return factory(**arguments)
    except TorchinitError:
        raise
    except (Exception, SystemExit) as error:  # whatever a stranger's code raises
        raise ModelError(_raised(f"{text} raised", error, device)) from error


def find(text: str) -> Callable[..., object]:
    """The factory that ``text`` names; nothing is called yet. Raises ModelError."""
    where, colon, name = text.rpartition(":")
    if text.startswith("transformers:"):
        return functools.partial(configs.build, Path(text.removeprefix("transformers:")))
    if not (colon and where and name):
        raise ModelError(
            f"{text!r} names no model; it is package.module:factory, path/to/file.py:factory"
            " or transformers:path/to/config.json"
        )
    module = _from_file(Path(where)) if where.endswith(".py") else _from_package(where)
    return _attribute(module, name, text)


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments from ``key=value``; a value that is no JSON is text.

    >>> parse_arguments(["depth=2", "bias=false", "act=gelu"])
    {'depth': 2, 'bias': False, 'act': 'gelu'}
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (equals and key.isidentifier()):
            raise UsageError(f"--arg takes key=value, but got {text!r}")
        if key in found:
            raise UsageError(f"--arg {key} is given twice")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _from_package(name: str) -> ModuleType:
    with _importable(Path.cwd()):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise ModelError(_raised(f"importing {name} raised", error)) from error
            raise ModelError(f"there is no module {error.name!r}{_near_module(error.name)}") from error
        except (Exception, SystemExit) as error:
            raise ModelError(_raised(f"importing {name} raised", error)) from error


def _near_module(name: str) -> str:
    """The near name among a module's siblings."""
    parent, _, last = name.rpartition(".")
    path = getattr(sys.modules.get(parent), "__path__", []) if parent else [str(Path.cwd())]
    hint = did_you_mean(last, [found.name for found in pkgutil.iter_modules(path)])
    file = name.replace(".", "/") + ".py"
    return hint or (f"; for a file, write {file}:factory" if Path(file).exists() else "")


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        near = [str(found) for found in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ModelError(f"there is no file {str(path)!r}{did_you_mean(str(path), near)}")
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


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets ``import`` look into a folder; a script that is started by its own name does not see the current one."""
    text = str(folder)
    sys.path.insert(0, text)
    try:
        yield
    finally:
        if text in sys.path:
            sys.path.remove(text)


def _attribute(module: ModuleType, name: str, text: str) -> Callable[..., object]:
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            near = [key for key in dir(found) if callable(getattr(found, key, None))]
            raise ModelError(f"{text.rpartition(':')[0]} has no {name!r}{did_you_mean(part, near)}")
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        raise ModelError(f"{text} is a model already; name a function or a class that makes one when it is called")
    if not callable(found):
        raise ModelError(f"{text} is a {type(found).__name__}, which cannot be called; name a function or a class")
    return found


def _raised(what: str, error: BaseException, device: Device = "cpu") -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parent)
    last = next((frame for frame in reversed(frames) if not frame.filename.startswith(("<", ours))), None)
    where = f"\n  at {last.filename}:{last.lineno}" if last else ""
    way = "\n  It was called for the meta device; with --device cpu it is built in memory." if device == "meta" else ""
    return f"{what} {type(error).__name__}: {error}{where}{way}"
