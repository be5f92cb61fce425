"""Schemes: the local file that a source leads to, by how it begins; model zoos, whose files a library finds."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Generic, TypeAlias, TypeVar
from urllib.parse import quote, unquote

from torchinit._files import expanded, read_bounded
from torchinit._limits import HOPS, NOTE_BYTES
from torchinit._text import abbreviate, did_you_mean, masked
from torchinit.checkpoints.hub.cache import (
    Cache,
    HashMismatchError,
    Pin,
    Request,
    check_hash,
    default_folder,
    hash_of,
    lock_of,
)
from torchinit.checkpoints.hub.urls import Limits, Progress, address_of, check_allowed, from_environment, show_progress
from torchinit.errors import FetchError, MissingExtraError

T = TypeVar("T")

_SCHEME: Final = re.compile(r"([A-Za-z][\w+.-]*)://")
_MORE: Final = "torchinit.checkpoints.register_source adds others, for an init_cfg CheckpointLoader.register_scheme"


class Prefixes(Generic[T]):
    """Values by how a source begins.

    A prefix is a regular expression that is matched at the start, as MMEngine's schemes are. They are tried in reverse
    alphabetical order, so the longer comes before the shorter, and ``""``, which takes all, last.
    """

    def __init__(self) -> None:
        self._values: dict[str, T] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._values, reverse=True))

    def register(self, prefixes: str | Iterable[str], value: T, *, force: bool = False) -> None:
        """Let prefixes stand for a value. Raises KeyError for one that is taken, unless ``force`` replaces it."""
        names = [prefixes] if isinstance(prefixes, str) else list(prefixes)
        taken = sorted(self._values.keys() & set(names))
        if taken and not force:
            raise KeyError(f"{', '.join(taken)}: registered already; force=True replaces it")
        self._values.update(dict.fromkeys(names, value))

    def find(self, source: str) -> T | None:
        """The value for the beginning of a source; None if none is registered."""
        return next((self._values[prefix] for prefix in self if re.match(prefix, source)), None)


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A local file, and where it came from, as far as that is known."""

    path: Path
    url: str = ""
    revision: str = ""


Resolver: TypeAlias = Callable[[str, Request], LocalFile | Path | str]
"""A function from a source to a local file, or to another source that leads to it."""

RESOLVERS: Final[Prefixes[Resolver]] = Prefixes()


def fetch(
    source: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    lock: str | os.PathLike[str] | None = None,
    frozen: bool | None = None,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> Path:
    """The local file of a source: a path, ``file://``, ``https://``, ``hf://``, ``torchvision://``, ``timm://``.

    What comes from a URL lies in a cache, and is fetched once. ``sha256`` is the hash that the file must have;
    ``http://`` wants it. A lock file (``lock``, or else the variable TORCHINIT_LOCK) records which file each
    source was, and refuses another one; ``frozen`` (or TORCHINIT_FROZEN=1) refuses sources that are not in it.
    ``progress`` is told how far a download is; without one a bar shows in a terminal. ``limits`` are those of
    the environment. Raises FetchError, MissingExtraError, and FileNotFoundError for a path where nothing is.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.pth")
    ...     _ = path.write_bytes(b"weights")
    ...     fetch(path) == fetch(f"file://{path}") == path
    True
    >>> fetch("http://example.org/a.pth")
    Traceback (most recent call last):
    torchinit.errors.FetchError: http://example.org/a.pth: anyone on the way can change what comes by http; ...
    """
    text, lockfile = os.fspath(source), lock_of(lock, frozen)
    wanted = sha256 and sha256.strip().lower().removeprefix("sha256:")
    if wanted is not None and not re.fullmatch(r"[0-9a-f]{64}", wanted):
        raise FetchError(f"a sha256 has 64 hexadecimal digits, but got {sha256!r}")
    pin = lockfile.pin(text, wanted)
    wanted, revision = (pin.sha256, pin.revision) if pin else (wanted, "")
    try:
        with show_progress(text, progress) as shown:
            request = Request(limits or from_environment(), shown, Cache(default_folder()), wanted, revision)
            file = resolve(text, request)
    except HashMismatchError as error:
        remedy = f"{lockfile.path} has the wanted one; if the change is right, remove the source there"
        raise HashMismatchError(error.headline, [*error.problems, *[remedy] * bool(pin)]) from error
    if lockfile.path and pin is None:
        if not file.path.is_file():
            raise FetchError(f"{text} is not a file, so it cannot be recorded in a lock file")
        url = masked(file.url) if file.url not in (text, masked(text)) else ""
        lockfile.add(text, Pin(hash_of(file.path), file.path.stat().st_size, url, file.revision))
    return file.path


def resolve(source: str, request: Request) -> LocalFile:
    """The local file of a source, checked by its hash; follows sources that lead to other sources."""
    target: LocalFile | Path | str = source
    # A resolver gives a file or another source, so that schemes can stand on others (timm:// on hf://), and a ring of
    # them ends. The hash is that of the file in the end, whichever way led to it.
    for _ in range(HOPS):
        if isinstance(target, str):
            target = _resolver(target)(target, request)
            continue
        file = target if isinstance(target, LocalFile) else LocalFile(target)
        if request.sha256 is not None:
            if not file.path.is_file():
                raise FetchError(f"{source} is not a file, so it has no sha256")
            check_hash(source, hash_of(file.path), request.sha256)
        return file
    raise FetchError(f"{source} leads from source to source, {HOPS} times and on")


def _resolver(source: str) -> Resolver:
    resolver, scheme = RESOLVERS.find(source), _SCHEME.match(source)
    if resolver is None or (scheme and resolver is _local):
        known = [prefix.removesuffix("://") for prefix in RESOLVERS if prefix]
        near = did_you_mean(scheme[1], known) if scheme else ""
        problems = [f"known are {', '.join(known)}; {_MORE}"]
        raise FetchError(f"{source}: this kind of source is not registered{near}", problems)
    return resolver


def register_source(prefixes: str | Iterable[str], resolver: Resolver, *, force: bool = False) -> None:
    """Let sources that begin so be resolved by a function of the source and the :class:`Request`.

    The function returns a local path, or another source that leads to it. Raises KeyError for a prefix that is
    taken, unless ``force`` replaces it.

    >>> register_source("models://", lambda source, request: f"/nfs/models/{source[9:]}", force=True)
    >>> fetch("models://a.pth")
    Traceback (most recent call last):
    FileNotFoundError: /nfs/models/a.pth can not be found.
    >>> fetch("model://a.pth")
    Traceback (most recent call last):
    torchinit.errors.FetchError: model://a.pth: this kind of source is not registered; did you mean 'models'?
      known are ...
    """
    RESOLVERS.register(prefixes, resolver, force=force)


def _local(source: str, request: Request) -> Path:
    path = expanded(source)
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path} can not be found: it is a link to {str(path.readlink())!r}, where nothing is")
    if not path.exists():
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        near = did_you_mean(path.name, [other.name for other in beside if not other.name.startswith(("_", "."))])
        raise FileNotFoundError(f"{path} can not be found.{near.replace('; d', ' D')}")
    return path


def _file_url(source: str, request: Request) -> Path:
    return _local(unquote(source.removeprefix("file://").removeprefix("localhost")), request)


def _web(source: str, request: Request) -> LocalFile:
    if source.startswith("http://") and request.sha256 is None:
        remedy = "give its sha256, which may stand in a lock file (TORCHINIT_LOCK), or use https://"
        raise FetchError(f"{source}: anyone on the way can change what comes by http; {remedy}")
    entry = request.cache.valid(source, request.sha256)
    if entry is None:
        check_allowed(address_of(source), request.limits)
        try:  # not before, for it imports urllib3
            from torchinit.checkpoints.hub.download import download
        except ModuleNotFoundError as error:
            remedy = f"{error.name} is not installed: pip install {error.name}"
            raise FetchError(f"{source} cannot be fetched: {remedy}") from error
        entry = download(source, request)
    return LocalFile(entry.path, entry.url)


register_source("", _local)
register_source("file://", _file_url)
register_source(("http://", "https://"), _web)


# --- model zoos ------------------------------------------------------------------------------------------------------


_FORM: Final = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[^@\\]+)(@(?P<revision>[\w./-]+))?")
_LOG_IN: Final = "log in with `hf auth login`, or set HF_TOKEN"


def hugging_face(source: str, request: Request) -> LocalFile:
    """A file of a repository, ``hf://org/repo/folder/file@revision``; what is locked, at the commit that was locked.

    A file that is kept in the cache by its hash is compared with it.
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
    # Files of that cache are links to blobs. A large one is called by its SHA-256, so that a damaged one can be told; a
    # small one by git's hash of 40 digits, of which nothing is asked.
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
    builder, known = builder.removesuffix("_weights"), models.list_models()
    if builder not in known:
        raise FetchError(f"{source}: torchvision has no model {builder!r}{did_you_mean(builder, known)}")
    weights = {key.lower(): value for key, value in models.get_model_weights(builder).__members__.items()}
    chosen = member or next(iter(weights), "")
    if chosen not in weights:
        raise FetchError(f"{source}: {builder} has no weights {chosen!r}, but {', '.join(weights) or 'none'}")
    url = weights[chosen].url
    # The names of torchvision's files end with the first digits of their hash. It has to go with the request, so the
    # URL is resolved here: one that is merely returned would be fetched without it.
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
        raise FetchError(f"{source}: timm has no weights of this name{did_you_mean(name, models.list_pretrained())}")
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
