"""Model zoos: sources that a library knows by its own tables: torchvision's, timm's, MMEngine's."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from dataclasses import replace
from pathlib import Path

from torchinit._text import did_you_mean
from torchinit.checkpoints.hub.schemes import LocalFile, Request, register_source, resolve
from torchinit.errors import FetchError


def torchvision(source: str, request: Request) -> LocalFile:
    """Weights by the table of torchvision: ``torchvision://resnet50``, ``torchvision://resnet50.imagenet1k_v2``.

    The bare name is the first of the model's weights. The file must have the hash that torchvision puts into
    the names of its files, unless a whole hash is given.
    """
    try:
        from torchvision import models
    except ImportError:
        raise _missing(source, "torchvision") from None
    builder, _, member = source.removeprefix("torchvision://").lower().partition(".")
    builder = builder.removesuffix("_weights")
    if builder not in models.list_models():
        raise FetchError(f"{source}: torchvision has no model {builder!r}{did_you_mean(builder, models.list_models())}")
    weights = {key.lower(): value for key, value in models.get_model_weights(builder).__members__.items()}
    chosen = member or next(iter(weights), "")
    if chosen not in weights:
        raise FetchError(f"{source}: {builder} has no weights {chosen!r}, but {', '.join(weights) or 'none'}")
    url = weights[chosen].url
    in_name = re.search(r"-([0-9a-f]{8,64})\.\w+$", url)
    return resolve(url, replace(request, sha256=request.sha256 or (in_name[1] if in_name else None)))


def timm(source: str, request: Request) -> str:
    """Weights by the table of timm: ``timm://resnet50``, ``timm://resnet50.a1_in1k``."""
    name = source.removeprefix("timm://")
    try:
        from timm import models
    except ImportError:
        raise _missing(source, "timm") from None
    config = models.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        near = did_you_mean(name, models.list_pretrained())
        raise FetchError(f"{source}: timm has no weights of this name{near}")
    if not config.hf_hub_id:
        return str(config.url)
    repository, at, revision = config.hf_hub_id.partition("@")
    return f"hf://{repository}/{config.hf_hub_filename or 'model.safetensors'}{at}{revision}"


def open_mmlab(source: str, request: Request) -> str:
    """Weights by the tables of MMEngine: ``open-mmlab://detectron/resnet50_caffe``.

    A table of one's own, ``open_mmlab.json`` in ``$MMENGINE_HOME``, comes before it; a file that it names without
    a URL lies beside it.
    """
    package = importlib.util.find_spec("mmengine")  # which does not import it
    if package is None or not package.submodule_search_locations:
        raise _missing(source, "mmengine")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = Path(os.environ.get("MMENGINE_HOME") or caches / "mmengine").expanduser()
    tables = Path(package.submodule_search_locations[0], "hub")
    urls = {**_table(tables / "openmmlab.json"), **_table(home / "open_mmlab.json")}
    name = source.partition("://")[2]
    name = _table(tables / "deprecated.json").get(name, name)
    if name not in urls:
        raise FetchError(f"{source}: MMEngine has no weights of this name{did_you_mean(name, urls)}")
    return urls[name] if "://" in urls[name] else str(home / urls[name])


def _table(path: Path) -> dict[str, str]:
    """A mapping from names to URLs; empty where there is no file."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise FetchError(f"{path} cannot be read: {error}") from error
    return {str(key): str(value) for key, value in dict(data).items()}


def _missing(source: str, library: str) -> FetchError:
    remedy = f"pip install {library}, or give the URL of the file"
    return FetchError(f"{source}: only {library} knows where its weights are: {remedy}")


register_source("torchvision://", torchvision)
register_source("timm://", timm)
register_source(("open-mmlab://", "openmmlab://"), open_mmlab)
