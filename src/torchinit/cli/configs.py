"""Configs: models that transformers builds from a config file, offline and without anybody's code but its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torchinit._text import did_you_mean
from torchinit.cli.errors import ModelError


def build(path: Path, **overrides: Any) -> object:
    """The model of a transformers config file (or of the folder that holds ``config.json``), untrained.

    Its class is the first of ``architectures``, or else the bare model of its ``model_type``. ``overrides``
    replace settings of the config. Raises ModelError.
    """
    data = _read(path / "config.json" if path.is_dir() else path)
    with offline():
        transformers = _transformers()
        config = _config(transformers, data, overrides, path)
        return _model_class(transformers, data, config, path)(config)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = [str(found) for found in path.parent.glob("*.json")] if path.parent.is_dir() else []
        raise ModelError(f"there is no file {str(path)!r}{did_you_mean(str(path), near)}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} holds a {type(data).__name__}, not the settings of a model")
    return data


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise ModelError(f"a transformers: model needs transformers: pip install transformers ({error})") from error
    module: ModuleType = transformers
    return module


def _config(transformers: ModuleType, data: dict[str, Any], overrides: Mapping[str, Any], path: Path) -> Any:
    kind = data.get("model_type")
    known = list(transformers.CONFIG_MAPPING.keys())
    if kind not in known:
        if kind is None:
            raise ModelError(f"{path} has no 'model_type', so its settings have no meaning")
        raise ModelError(f"{path}: this transformers has no model_type {kind!r}{did_you_mean(str(kind), known)}")
    cls = transformers.CONFIG_MAPPING[kind]
    _check_settings(cls, data, overrides)
    return cls.from_dict({**data, **overrides})


def _check_settings(cls: Any, data: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    if not overrides:
        return
    known = {*cls().to_dict(), *data, *getattr(cls, "attribute_map", {})}
    for key in overrides:
        if key not in known:  # transformers itself would take it and never look at it
            raise ModelError(f"{cls.__name__} has no setting {key!r}{did_you_mean(key, known)}")


def _model_class(transformers: ModuleType, data: dict[str, Any], config: Any, path: Path) -> Any:
    names = data.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"{path}: 'architectures' is a list of names, but got {names!r}")
    if not names:
        found = transformers.MODEL_MAPPING.get(type(config), None)
        if found is None:
            raise ModelError(f"{path} names no architecture, and {data['model_type']!r} has no bare model")
        return found[0] if isinstance(found, (list, tuple)) else found
    cls = getattr(transformers, names[0], None)
    # The name comes from a file: nothing but a model class may be called for it.
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        models = [name for name in dir(transformers) if name.endswith(("Model", "PreTrainedModel")) or "For" in name]
        raise ModelError(f"{path}: transformers has no model {names[0]!r}{did_you_mean(names[0], models)}")
    return cls


@contextmanager
def offline() -> Iterator[None]:
    """Keeps the Hugging Face libraries from the network, whether they are imported already or not."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        with _constant_offline():
            yield
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before


@contextmanager
def _constant_offline() -> Iterator[None]:
    # Read from the environment once, when it is imported.
    try:
        from huggingface_hub import constants
    except ImportError:
        yield
        return
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
