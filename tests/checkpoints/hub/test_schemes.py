"""Sources: each kind becomes a local file, and none is taken for another; those of model zoos by their tables."""

from __future__ import annotations

import enum
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.servers import Host, whole
from torchinit.checkpoints import Limits, fetch, register_source
from torchinit.checkpoints.hub.cache import Request
from torchinit.checkpoints.hub.schemes import RESOLVERS, LocalFile, Prefixes
from torchinit.errors import FetchError, MissingExtraError


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(RESOLVERS._values)
    yield
    RESOLVERS._values.clear()
    RESOLVERS._values.update(before)


def test_local_files(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a b%20.pth"
    path.write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    for source in (path, str(path), path.as_uri(), f"file://localhost{path.as_uri().removeprefix('file://')}"):
        assert fetch(source, sha256=sha256) == path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch("~/a b%20.pth") == path
    monkeypatch.chdir(tmp_path)
    assert fetch("a b%20.pth") == Path("a b%20.pth")
    assert not cache.exists()


def test_a_folder_is_left_to_who_reads_it(tmp_path: Path) -> None:
    assert fetch(tmp_path) == tmp_path
    with pytest.raises(FetchError, match="is not a file, so it has no sha256"):
        fetch(tmp_path, sha256=64 * "0")


def test_a_path_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "resnet50.pth").touch()
    with pytest.raises(FileNotFoundError, match=r"resnet5O\.pth can not be found\. Did you mean 'resnet50\.pth'\?"):
        fetch(tmp_path / "resnet5O.pth")
    with pytest.raises(FileNotFoundError, match=r"/nowhere/a\.pth can not be found\.$"):
        fetch("file:///nowhere/a.pth")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("s3://bucket/a.pth", r"s3://bucket/a\.pth: this kind of source is not registered\n  known are "),
        ("HTTPS://example.org/a.pth", "this kind of source is not registered; did you mean 'https'\\?"),
        ("https:///a.pth", "is not an http or https URL with a host"),
        ("https://user:secret@example.org/a.pth", "^https://example.org/a.pth: a URL with a user or a password"),
        ("https://example.org:x/a.pth", "is not a URL: "),
        ("https://[::1/a.pth", "is not a URL: "),
        ("https://example.org/a\r\nX: y", "holds a control character"),
        ("https://good.org\\@evil.org/a.pth", "a URL with a user or a password"),
        ("https://good.org\\.evil.org/a.pth", r"'good\.org\\\\\.evil\.org' is not the name of a host"),
        ("https://good.org;evil.org/a.pth", "is not the name of a host"),
        ("https://a b.org/a.pth", "'a b.org' is not the name of a host"),
        (f"https://{'a' * 70}.org/a.pth", "is not a URL: "),
    ],
)
def test_what_is_no_source(source: str, text: str, cache: Path) -> None:
    with pytest.raises(FetchError, match=text):
        fetch(source)
    assert not cache.exists()


def test_a_kind_of_ones_own(tmp_path: Path, host: Host) -> None:
    (tmp_path / "a.pth").write_bytes(b"local")
    url = host.serve("/b.pth", whole(b"remote"))
    asked: list[str | None] = []

    def resolve(source: str, request: Request) -> Path | str | LocalFile:
        asked.append(request.sha256)
        name = source.removeprefix("own://")
        made: dict[str, Path | str | LocalFile] = {
            "path": tmp_path / "a.pth",
            "url": url,
            "found": LocalFile(tmp_path / "a.pth"),
        }
        return made[name]

    register_source("own://", resolve)
    names = ("path", "url", "found")
    assert [fetch(f"own://{name}").read_bytes() for name in names] == [b"local", b"remote", b"local"]
    sha256 = hashlib.sha256(b"remote").hexdigest()
    assert fetch("own://url", sha256=sha256).read_bytes() == b"remote"
    assert asked[-1] == sha256
    with pytest.raises(FetchError, match="own://path is not the file that was asked for"):
        fetch("own://path", sha256=sha256)
    with pytest.raises(KeyError, match="own://: registered already; force=True replaces it"):
        register_source(["own://", "other://"], resolve)
    register_source(["own://"], lambda source, request: source, force=True)
    with pytest.raises(FetchError, match="own://path leads from source to source, 8 times and on"):
        fetch("own://path")


def test_prefixes_are_tried_from_the_last_to_the_first() -> None:
    kinds = Prefixes[int]()
    for number, prefix in enumerate(["", "open-mmlab://", r"(\S+\:)?s3://", "https://", "http://"]):
        kinds.register(prefix, number)
    assert list(kinds) == ["open-mmlab://", "https://", "http://", r"(\S+\:)?s3://", ""]
    assert [kinds.find(text) for text in ("a:s3://b", "s3://b", "https://c", "/d")] == [2, 2, 3, 0]
    assert Prefixes[int]().find("a") is None


def test_hosts_and_offline(host: Host, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, other = host.serve("/a.pth", whole(b"here")), host.serve("/b.pth", whole(b"there"))
    with pytest.raises(FetchError, match=r"the host 'localhost' is not allowed; .* names example\.org, \*\.hf\.co"):
        fetch(url, limits=Limits(hosts=("example.org", "*.hf.co")))
    monkeypatch.setenv("TORCHINIT_ALLOWED_HOSTS", "LOCALHOST.")
    assert fetch(url).read_bytes() == b"here"
    monkeypatch.setenv("TORCHINIT_OFFLINE", "1")
    assert fetch(url).read_bytes() == b"here"
    with pytest.raises(FetchError, match=r"b\.pth is not in the cache, and TORCHINIT_OFFLINE is set"):
        fetch(other)
    assert [path for path, _ in host.seen] == ["/a.pth"]


def test_a_redirect_to_a_host_that_is_not_allowed(host: Host) -> None:
    target = host.url.replace("localhost", "127.0.0.1") + "/b.pth"
    host.serve("/b.pth", whole(b"there"))
    url = host.serve("/a.pth", lambda visit: visit.say(302, Location=target))
    with pytest.raises(FetchError, match=r"the host '127\.0\.0\.1' is not allowed"):
        fetch(url, limits=Limits(hosts=("localhost",)))
    assert fetch(url).read_bytes() == b"there"


# --- model zoos ------------------------------------------------------------------------------------------------------


BODY = b"weights"
SHA = hashlib.sha256(BODY).hexdigest()
COMMIT = "5f0a" * 10


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> Any:
    """A module of that name with these contents."""
    module = ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)
    return module


class Hub:
    """A stand-in for huggingface_hub: one file, and what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[Any, ...]] = []
        self.failure: Exception | None = None

    def hf_hub_download(self, repo: str, file: str, *, revision: str, local_files_only: bool) -> str:
        self.asked.append((repo, file, revision, local_files_only))
        if self.failure:
            raise self.failure
        path = self.folder / "models--o--r" / "snapshots" / COMMIT / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(BODY)
        return str(path)


@pytest.fixture
def hub(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    constants = SimpleNamespace(ENDPOINT="https://huggingface.co")
    stand_in(monkeypatch, "huggingface_hub", hf_hub_download=made.hf_hub_download, constants=constants)
    return made


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("hf://o/r/model.safetensors", ("o/r", "model.safetensors", "main", False)),
        ("hf://o/r/a/b c.bin@v1.0", ("o/r", "a/b c.bin", "v1.0", False)),
        ("hf://o/r/a.bin@refs/pr/1", ("o/r", "a.bin", "refs/pr/1", False)),
    ],
)
def test_a_file_of_a_repository(source: str, asked: tuple[Any, ...], hub: Hub) -> None:
    assert fetch(source, sha256=SHA).read_bytes() == BODY
    assert hub.asked == [asked]
    with pytest.raises(FetchError, match="is not the file that was asked for"):
        fetch(source, sha256=64 * "0")


def test_the_commit_is_locked_and_asked_for(hub: Hub, tmp_path: Path) -> None:
    lock = tmp_path / "init.lock"
    for _ in range(2):
        fetch("hf://o/r/a/b.bin@main", lock=lock)
    assert [asked[2] for asked in hub.asked] == ["main", COMMIT]
    assert COMMIT in lock.read_text("utf-8")


@pytest.mark.parametrize(
    "source", ["hf://o/r", "hf://o/r/", "hf://o/r/a@", "hf://o/r/../a", "hf://r/a", "hf://o/r/a//b"]
)
def test_what_is_no_file_of_a_repository(source: str, hub: Hub) -> None:
    with pytest.raises(FetchError, match="is not of the form hf://org/repo/file@revision"):
        fetch(source)
    assert hub.asked == []


def test_the_bounds_hold_for_repositories(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FetchError, match=r"the host 'huggingface\.co' is not allowed"):
        fetch("hf://o/r/a.bin", limits=Limits(hosts=("example.org",)))
    fetch("hf://o/r/a.bin", limits=Limits(hosts=("huggingface.co",)))
    monkeypatch.setenv("TORCHINIT_OFFLINE", "1")
    fetch("hf://o/r/a.bin")
    assert [asked[3] for asked in hub.asked] == [False, True]
    hub.failure = FileNotFoundError("no file\n  in the cache")
    with pytest.raises(FetchError, match=r"a\.bin cannot be fetched \(TORCHINIT_OFFLINE is set\): no file in the"):
        fetch("hf://o/r/a.bin")


class Weights(enum.Enum):
    """A stand-in for a table of torchvision."""

    IMAGENET1K_V1 = "/resnet50-" + SHA[:8] + ".pth"
    IMAGENET1K_V2 = "/resnet50-00000000.pth"
    DEFAULT = IMAGENET1K_V2


@pytest.fixture
def vision(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    members = {name: SimpleNamespace(url=host.url + member.value) for name, member in Weights.__members__.items()}
    tables = {"resnet50": members, "mnasnet0_75": {}}
    for member in Weights:
        host.serve(member.value, whole(BODY))
    models = stand_in(
        monkeypatch,
        "torchvision.models",
        list_models=lambda: list(tables),
        get_model_weights=lambda name: SimpleNamespace(__members__=tables[name]),
    )
    stand_in(monkeypatch, "torchvision", models=models)
    return host


@pytest.mark.parametrize(
    "name", ["resnet50", "resnet50.imagenet1k_v1", "ResNet50_Weights.IMAGENET1K_V1", "resnet50.IMAGENET1K_V1"]
)
def test_weights_of_torchvision(name: str, vision: Host) -> None:
    assert fetch(f"torchvision://{name}").read_bytes() == BODY
    assert vision.hits(Weights.IMAGENET1K_V1.value) == 1


@pytest.mark.parametrize("name", ["resnet50.default", "resnet50.imagenet1k_v2"])
def test_a_file_without_the_hash_in_its_name(name: str, vision: Host, cache: Path) -> None:
    with pytest.raises(FetchError, match=rf"(?s)not the file that was asked for.*wanted sha256 00000000\n.*{SHA}"):
        fetch(f"torchvision://{name}")
    assert fetch(f"torchvision://{name}", sha256=SHA).read_bytes() == BODY  # the whole hash decides


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("resnet5O", "torchvision has no model 'resnet5o'; did you mean 'resnet50'"),
        ("resnet50.v3", "resnet50 has no weights 'v3', but imagenet1k_v1, imagenet1k_v2, default"),
        ("mnasnet0_75", "mnasnet0_75 has no weights '', but none"),
    ],
)
def test_what_torchvision_does_not_have(name: str, text: str, vision: Host) -> None:
    with pytest.raises(FetchError, match=text):
        fetch(f"torchvision://{name}")


@pytest.fixture
def timm(host: Host, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Host:
    def config(hub: str | None = None, file: str | None = None, url: str = "") -> SimpleNamespace:
        return SimpleNamespace(hf_hub_id=hub, hf_hub_filename=file, url=url)

    configs = {
        "a.in1k": config("timm/a.in1k"),
        "b": config("o/r@v2", "b.bin", "https://example.org/unused"),
        "c": config(url=host.serve("/c.pth", whole(BODY))),
        "d": config(),
    }
    models = stand_in(monkeypatch, "timm.models", get_pretrained_cfg=configs.get, list_pretrained=lambda: list(configs))
    stand_in(monkeypatch, "timm", models=models)
    return host


def test_weights_of_timm(timm: Host, hub: Hub) -> None:
    assert [fetch(f"timm://{name}").read_bytes() for name in ("a.in1k", "b", "c")] == [BODY] * 3
    assert [asked[:3] for asked in hub.asked] == [("timm/a.in1k", "model.safetensors", "main"), ("o/r", "b.bin", "v2")]
    with pytest.raises(FetchError, match=r"timm://a\.in1K: timm has no weights of this name; did you mean 'a\.in1k'"):
        fetch("timm://a.in1K")
    with pytest.raises(FetchError, match="timm://d: timm has no weights of this name"):
        fetch("timm://d")


@pytest.fixture
def mmengine(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a stand-in for MMEngine keeps the tables of its user."""
    tables, home = tmp_path / "packages" / "mmengine" / "hub", tmp_path / "home"
    tables.mkdir(parents=True)
    home.mkdir()
    (tables.parent / "__init__.py").write_text("raise ImportError('nobody has to import it')", "utf-8")
    url = host.serve("/resnet50-292e1171.pth", whole(BODY))  # whose name has another hash, which MMEngine lets pass
    (tables / "openmmlab.json").write_text(json.dumps({"detectron/resnet50": url, "mine": "unused"}), "utf-8")
    (tables / "deprecated.json").write_text(json.dumps({"resnet50": "detectron/resnet50"}), "utf-8")
    (tables / "mmcls.json").write_text(json.dumps({"resnet50": host.serve("/cls.pth", whole(b"cls"))}), "utf-8")
    monkeypatch.delitem(sys.modules, "mmengine", raising=False)
    monkeypatch.syspath_prepend(tables.parents[1])
    monkeypatch.setenv("MMENGINE_HOME", str(home))
    return home


def test_weights_of_mmengine(mmengine: Path, host: Host) -> None:
    for source in ("open-mmlab://detectron/resnet50", "openmmlab://resnet50"):
        assert fetch(source).read_bytes() == BODY
    assert host.hits("/resnet50-292e1171.pth") == 1
    (mmengine / "open_mmlab.json").write_text(json.dumps({"mine": "mine.pth"}), "utf-8")
    (mmengine / "mine.pth").write_bytes(b"mine")
    assert fetch("openmmlab://mine") == mmengine / "mine.pth"
    with pytest.raises(FetchError, match="MMEngine has no weights of this name; did you mean 'detectron/resnet50'"):
        fetch("open-mmlab://detectron/resnet5O")
    assert fetch("mmcls://resnet50").read_bytes() == b"cls"
    for name in ("mine", "detectron/resnet50"):  # of the other tables
        with pytest.raises(FetchError, match=f"mmcls://{name}: MMEngine has no weights of this name"):
            fetch(f"mmcls://{name}")
    (mmengine / "open_mmlab.json").write_text("{", "utf-8")
    with pytest.raises(FetchError, match=r"open_mmlab\.json cannot be read: "):
        fetch("openmmlab://mine")


def test_mmengine_that_is_not_installed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match="only mmengine knows where its weights are: pip install mmengine, or"):
        fetch("open-mmlab://resnet50")


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_library_that_is_not_installed(library: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(FetchError, match=rf"only {library} knows where its weights are: pip install {library}, or"):
        fetch(f"{library}://resnet50")


def test_hugging_face_is_an_extra(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"hf://o/r/a\.bin needs .*: pip install 'torchinit\[hf\]'"):
        fetch("hf://o/r/a.bin")
