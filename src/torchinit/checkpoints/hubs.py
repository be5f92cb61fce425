"""Hubs: sources that a library knows the way to, ``hf://``, ``torchvision://``, ``timm://`` and ``open-mmlab://``."""

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

from torchinit.checkpoints.addresses import address_of, check_allowed
from torchinit.checkpoints.cache import hash_of
from torchinit.checkpoints.sources import Found, Request, register_source, resolve
from torchinit.core.tables import some
from torchinit.errors import FetchError, MissingExtraError, did_you_mean

_HF: Final = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[^@\\]+)(@(?P<revision>[\w./-]+))?")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_BLOB: Final = re.compile(r"[0-9a-f]{64}")
_LOG_IN: Final = "log in with `hf auth login`, or set HF_TOKEN"
_HASH_IN_NAME: Final = re.compile(r"-([0-9a-f]{8,64})\.\w+$")


def hugging_face(source: str, request: Request) -> Found:
    """A file of a repository, ``hf://org/repo/folder/file@revision``, by huggingface_hub, in the cache of that.

    What is locked is fetched at the commit that was locked, whatever the revision has become since. A file that
    is kept in the cache by its hash is compared with it.
    """
    parts = _HF.fullmatch(source)
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
    _check_blob(source, path)
    commit = _commit(path, file)
    return Found(path, f"{endpoint}/{repo}/resolve/{commit}/{quote(file)}" if commit else "", commit)


def _why_not(hub: Any, error: BaseException, repo: str, file: str, revision: str) -> str:
    """What an error of huggingface_hub means, and the way out where there is one."""
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
        return f"{repo} has no revision {revision!r}{_names(revision, lambda: _revisions(hub, repo))}"
    if "RemoteEntryNotFoundError" in kinds or "EntryNotFoundError" in kinds[:1]:
        return f"{repo} has no {file} at {revision}{_names(file, lambda: hub.list_repo_files(repo, revision=revision))}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    return " ".join(str(error).split()) + (f"; {_LOG_IN}" if status in (401, 403) else "")


def _revisions(hub: Any, repo: str) -> list[str]:
    refs = hub.list_repo_refs(repo)
    return [ref.name for ref in (*refs.branches, *refs.tags)]


def _names(wanted: str, known: Callable[[], list[str]]) -> str:
    """The near name, or a few of those that there are, as far as the hub tells."""
    try:
        names = known()
    except Exception:  # noqa: BLE001  # an error is being told already
        return ""
    return did_you_mean(wanted, names) or (f", but {some(names)}" if names else "")


def _check_blob(source: str, path: Path) -> None:
    """Raises FetchError for a damaged file, where the cache keeps it under its SHA-256, as it does with large ones."""
    blob = path.resolve()
    if _BLOB.fullmatch(blob.name) and (found := hash_of(blob)) != blob.name:
        raise FetchError(f"{source}: {blob} is damaged, its sha256 is {found}; delete it, and it is fetched anew")


def _commit(path: Path, file: str) -> str:
    """The commit that a file in that cache belongs to, which is the folder of its snapshot."""
    folder = path.parents[file.count("/")].name
    return folder if _COMMIT.fullmatch(folder) else ""


def torchvision(source: str, request: Request) -> Found:
    """Weights by the table of torchvision: ``torchvision://resnet50``, ``torchvision://resnet50.imagenet1k_v2``.

    The bare name is the first of the model's weights. The file must have the hash that torchvision puts into
    the names of its files.
    """
    name = source.removeprefix("torchvision://")
    try:
        from torchvision import models
    except ImportError:
        raise _unknown_way(source, "torchvision") from None
    builder, _, member = name.lower().partition(".")
    builder = builder.removesuffix("_weights")
    if builder not in models.list_models():
        raise FetchError(f"{source}: torchvision has no model {builder!r}{did_you_mean(builder, models.list_models())}")
    weights = {key.lower(): value for key, value in models.get_model_weights(builder).__members__.items()}
    chosen = member or next(iter(weights), "")
    if chosen not in weights:
        raise FetchError(f"{source}: {builder} has no weights {chosen!r}, but {', '.join(weights) or 'none'}")
    return _hashed(weights[chosen].url, request)


def _hashed(url: str, request: Request) -> Found:
    """What a URL leads to, with the hash in its name unless there is a whole one to go by."""
    found = _HASH_IN_NAME.search(url)
    return resolve(url, replace(request, sha256=request.sha256 or (found[1] if found else None)))


def timm(source: str, request: Request) -> str:
    """Weights by the table of timm: ``timm://resnet50``, ``timm://resnet50.a1_in1k``."""
    name = source.removeprefix("timm://")
    try:
        from timm import models
    except ImportError:
        raise _unknown_way(source, "timm") from None
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
    found = importlib.util.find_spec("mmengine")  # which does not import it
    if found is None or not found.submodule_search_locations:
        raise _unknown_way(source, "mmengine")
    tables, home = Path(found.submodule_search_locations[0], "hub"), _mmengine_home()
    urls = {**_table(tables / "openmmlab.json"), **_table(home / "open_mmlab.json")}
    name = source.partition("://")[2]
    name = _table(tables / "deprecated.json").get(name, name)
    if name not in urls:
        raise FetchError(f"{source}: MMEngine has no weights of this name{did_you_mean(name, urls)}")
    return urls[name] if "://" in urls[name] else str(home / urls[name])


def _mmengine_home() -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("MMENGINE_HOME") or caches / "mmengine").expanduser()


def _table(path: Path) -> dict[str, str]:
    """Which name stands for which text; nothing where there is no file."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise FetchError(f"{path} cannot be read: {error}") from error
    return {str(key): str(value) for key, value in dict(data).items()}


def _unknown_way(source: str, library: str) -> FetchError:
    return FetchError(
        f"{source}: only {library} knows where its weights are: pip install {library}, or give the URL of the file"
    )


register_source("hf://", hugging_face)
register_source("torchvision://", torchvision)
register_source("timm://", timm)
register_source(("open-mmlab://", "openmmlab://"), open_mmlab)
