"""Model zoos: sources whose files a library finds: Hugging Face's hub, torchvision's, timm's and MMEngine's tables."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from torchinit._files import expanded, read_bounded
from torchinit._limits import NOTE_BYTES
from torchinit._text import abbreviate, did_you_mean
from torchinit.checkpoints.hub.cache import Request, hash_of
from torchinit.checkpoints.hub.schemes import LocalFile, register_source, resolve
from torchinit.checkpoints.hub.urls import address_of, check_allowed
from torchinit.errors import FetchError, MissingExtraError

_FORM: Final = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[^@\\]+)(@(?P<revision>[\w./-]+))?")
_LOG_IN: Final = "log in with `hf auth login`, or set HF_TOKEN"


def hugging_face(source: str, request: Request) -> LocalFile:
    """A file of a repository, ``hf://org/repo/folder/file@revision``.

    What is locked is fetched at the commit that was locked, whatever the revision has become since. A file that
    is kept in the cache by its hash is compared with it.
    """
    parts = _FORM.fullmatch(source)
    if not parts or {"", ".", ".."} & set(parts["file"].split("/")):
        raise FetchError(f"{source} is not of the form hf://org/repo/file@revision")
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants  # which the package does not import by itself
    except ImportError:
        raise MissingExtraError(source, "hf") from None
    repo, file, revision = parts["repo"], parts["file"], request.revision or parts["revision"] or "main"
    offline, endpoint = request.limits.offline, str(constants.ENDPOINT)
    if not offline:
        check_allowed(address_of(endpoint), request.limits)
    try:
        path = Path(hub.hf_hub_download(repo, file, revision=revision, local_files_only=offline))
    except Exception as error:  # its own errors, and those of the HTTP library below it
        why = _why_not(hub, error, repo, file, revision)
        raise FetchError(f"{source} cannot be fetched{' (TORCHINIT_OFFLINE is set)' * offline}: {why}") from error
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name) and (sha256 := hash_of(blob)) != blob.name:
        raise FetchError(f"{source}: {blob} is damaged, its sha256 is {sha256}; delete it, and it is fetched anew")
    commit = path.parents[file.count("/")].name  # the folder of a snapshot in that cache
    commit = commit if re.fullmatch("[0-9a-f]{40}", commit) else ""
    return LocalFile(path, f"{endpoint}/{repo}/resolve/{commit}/{quote(file)}" if commit else "", commit)


def _why_not(hub: Any, error: BaseException, repo: str, file: str, revision: str) -> str:
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if "LocalEntryNotFoundError" in kinds:
        if error.__cause__ is None:
            return "it is not in the cache of huggingface_hub; fetch it once while online (torchinit fetch SOURCE)"
        return _why_not(hub, error.__cause__, repo, file, revision)  # the hub could not be asked, for this reason
    if "GatedRepoError" in kinds:
        return f"{repo} is open to those whom its owner lets in; ask on its page, and then {_LOG_IN}"
    if "RepositoryNotFoundError" in kinds:
        return f"there is no {repo}, or it is not open to everyone; if it is yours, {_LOG_IN}"
    if "RevisionNotFoundError" in kinds:
        refs = hub.list_repo_refs
        known = _names(revision, lambda: [ref.name for ref in (*refs(repo).branches, *refs(repo).tags)])
        return f"{repo} has no revision {revision!r}{known}"
    if "RemoteEntryNotFoundError" in kinds or "EntryNotFoundError" in kinds[:1]:
        return f"{repo} has no {file} at {revision}{_names(file, lambda: hub.list_repo_files(repo, revision=revision))}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    return " ".join(str(error).split()) + (f"; {_LOG_IN}" if status in (401, 403) else "")


def _names(wanted: str, known: Callable[[], list[str]]) -> str:
    try:
        names = known()
    except Exception:  # noqa: BLE001  # an error is being told already
        return ""
    return did_you_mean(wanted, names) or (f", but {abbreviate(names)}" if names else "")


def torchvision(source: str, request: Request) -> LocalFile:
    """Weights by the table of torchvision: ``torchvision://resnet50``, ``torchvision://resnet50.imagenet1k_v2``.

    The bare name is the first of the model's weights. The file must have the hash that torchvision puts into
    the names of its files, unless a whole hash is given.
    """
    try:
        from torchvision import models
    except ImportError:
        raise _missing(source, "torchvision") from None
    builder, _, member = source.partition("://")[2].lower().partition(".")
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
    """Weights by the tables of MMEngine: ``open-mmlab://detectron/resnet50_caffe``, ``mmcls://vgg16``.

    A table of one's own, ``open_mmlab.json`` in ``$MMENGINE_HOME``, comes before it; a file that it names without
    a URL lies beside it.
    """
    package = importlib.util.find_spec("mmengine")  # which does not import it
    if package is None or not package.submodule_search_locations:
        raise _missing(source, "mmengine")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = expanded(os.environ.get("MMENGINE_HOME") or caches / "mmengine")
    tables = Path(package.submodule_search_locations[0], "hub")
    scheme, _, name = source.partition("://")
    if scheme == "mmcls":
        urls = _table(tables / "mmcls.json")
    else:
        urls = {**_table(tables / "openmmlab.json"), **_table(home / "open_mmlab.json")}
        name = _table(tables / "deprecated.json").get(name, name)
    if name not in urls:
        raise FetchError(f"{source}: MMEngine has no weights of this name{did_you_mean(name, urls)}")
    return urls[name] if "://" in urls[name] else str(home / urls[name])


def _table(path: Path) -> dict[str, str]:
    try:
        data = dict(json.loads(read_bounded(path, NOTE_BYTES)))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise FetchError(f"{path} cannot be read: {error}") from error
    return {str(key): str(value) for key, value in data.items()}


def _missing(source: str, library: str) -> FetchError:
    remedy = f"pip install {library}, or give the URL of the file"
    return FetchError(f"{source}: only {library} knows where its weights are: {remedy}")


register_source("hf://", hugging_face)
register_source(("torchvision://", "modelzoo://"), torchvision)
register_source("timm://", timm)
register_source(("open-mmlab://", "openmmlab://", "mmcls://"), open_mmlab)
