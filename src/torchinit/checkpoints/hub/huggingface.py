"""Hugging Face: files of a repository, by huggingface_hub and in the cache of that."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from torchinit._text import did_you_mean, some
from torchinit.checkpoints.hub.cache import hash_of
from torchinit.checkpoints.hub.schemes import LocalFile, Request, register_source
from torchinit.checkpoints.hub.urls import address_of, check_allowed
from torchinit.errors import FetchError, MissingExtraError

_FORM: Final = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[^@\\]+)(@(?P<revision>[\w./-]+))?")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_BLOB: Final = re.compile(r"[0-9a-f]{64}")
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
    if _BLOB.fullmatch(blob.name) and (sha256 := hash_of(blob)) != blob.name:
        raise FetchError(f"{source}: {blob} is damaged, its sha256 is {sha256}; delete it, and it is fetched anew")
    commit = path.parents[file.count("/")].name  # the folder of a snapshot in that cache
    commit = commit if _COMMIT.fullmatch(commit) else ""
    return LocalFile(path, f"{endpoint}/{repo}/resolve/{commit}/{quote(file)}" if commit else "", commit)


def _why_not(hub: Any, error: BaseException, repo: str, file: str, revision: str) -> str:
    """The meaning of an error of huggingface_hub, and the way out where there is one."""
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
    """The near name, or a few of those that there are, as far as the hub tells."""
    try:
        names = known()
    except Exception:  # noqa: BLE001  # an error is being told already
        return ""
    return did_you_mean(wanted, names) or (f", but {some(names)}" if names else "")


register_source("hf://", hugging_face)
