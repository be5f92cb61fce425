"""Sources that a library knows the way to, with the real library and without the network."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.hf_api import api as _api

from tests.servers import Host, status, whole
from torchinit import FetchError
from torchinit.checkpoints import fetch
from torchinit.checkpoints.hub.cache import Cache, Pin, Request, read_pins
from torchinit.checkpoints.hub.schemes import open_mmlab, timm
from torchinit.checkpoints.hub.urls import Limits

COMMIT = "5f0a" * 10


@pytest.fixture
def hub(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of huggingface_hub as it lays it out, with one file in it."""
    folder = tmp_path / "hub" / "models--org--repo"
    (folder / "snapshots" / COMMIT / "sub").mkdir(parents=True)
    (folder / "snapshots" / COMMIT / "sub" / "a.bin").write_bytes(b"weights")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT, "ascii")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCHINIT_OFFLINE", "1")
    return folder


def test_a_file_of_a_repository_and_its_commit(hub: Path, tmp_path: Path) -> None:
    lock = tmp_path / "init.lock"
    assert fetch("hf://org/repo/sub/a.bin", lock=lock).read_bytes() == b"weights"
    assert read_pins(lock)["hf://org/repo/sub/a.bin"].revision == COMMIT
    (hub / "refs" / "main").write_text("0" * 40, "ascii")  # the branch went on
    assert fetch("hf://org/repo/sub/a.bin", lock=lock).read_bytes() == b"weights"
    with pytest.raises(FetchError, match=r"cannot be fetched \(TORCHINIT_OFFLINE is set\)"):
        fetch("hf://org/repo/sub/a.bin")


def test_what_is_not_there(hub: Path) -> None:
    for source in ("hf://org/repo/b.bin", "hf://org/other/a.bin", "hf://org/repo/sub/a.bin@v2"):
        text = rf"{source} cannot be fetched \(TORCHINIT_OFFLINE is set\): it is not in the cache of huggingface_hub"
        with pytest.raises(FetchError, match=text):
            fetch(source)


BODY = b"weights" * 100
SHA = hashlib.sha256(BODY).hexdigest()
REFS = {"tags": [{"name": "v1.0", "ref": "refs/tags/v1.0", "targetCommit": COMMIT}], "converts": []}
BRANCHES = {"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": COMMIT}]}
TREE = [{"type": "file", "path": "model.safetensors", "size": 1, "oid": "0" * 40}]


@pytest.fixture
def huggingface(plain_host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A server that behaves as the hub does: large files lie elsewhere, errors say their kind in a header."""
    monkeypatch.setattr(constants, "ENDPOINT", plain_host.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", plain_host.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(_api, "endpoint", plain_host.url)
    elsewhere = plain_host.url.replace("localhost", "127.0.0.1") + "/blob"
    plain_host.serve("/blob", whole(BODY, ETag='"elsewhere"'))
    linked = {"X_Repo_Commit": COMMIT, "X_Linked_ETag": f'"{SHA}"', "X_Linked_Size": str(len(BODY))}
    for revision in ("main", "v1.0", COMMIT):
        plain_host.serve(
            f"/o/r/resolve/{revision}/a/model.safetensors",
            lambda visit: visit.say(302, b"", Location=elsewhere, **linked),
        )
    plain_host.serve("/api/models/o/r/refs", whole(json.dumps({**REFS, **BRANCHES}).encode()))
    plain_host.serve("/api/models/o/r/tree/main", whole(json.dumps(TREE).encode()))
    plain_host.serve("/api/agent-harnesses", status(404))
    return plain_host


def test_a_large_file_of_the_hub(huggingface: Host, tmp_path: Path) -> None:
    lock = tmp_path / "init.lock"
    for source in ("hf://o/r/a/model.safetensors", "hf://o/r/a/model.safetensors@v1.0"):
        assert fetch(source, lock=lock).read_bytes() == BODY
        url = f"{huggingface.url}/o/r/resolve/{COMMIT}/a/model.safetensors"
        assert read_pins(lock)[source] == Pin(SHA, len(BODY), url, COMMIT)
    assert huggingface.hits("/blob") == 1
    huggingface.serve("/o/r/resolve/main/a/model.safetensors", status(500))  # nobody asks for a branch that is locked
    assert fetch("hf://o/r/a/model.safetensors", lock=lock, sha256=SHA).read_bytes() == BODY


def test_a_damaged_file_of_the_hub(huggingface: Host) -> None:
    path = fetch("hf://o/r/a/model.safetensors")
    path.write_bytes(BODY.swapcase())
    with pytest.raises(FetchError, match=rf"{SHA} is damaged, its sha256 is \w+; delete it, and it is fetched anew"):
        fetch("hf://o/r/a/model.safetensors")
    path.resolve().unlink()
    assert fetch("hf://o/r/a/model.safetensors").read_bytes() == BODY


LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
REFUSED = {
    "no file": (
        "a.bin@main",
        404,
        {"X_Error_Code": "EntryNotFound"},
        "o/r has no a.bin at main, but model.safetensors$",
    ),
    "nearly a file": (
        "models.safetensors@main",
        404,
        {"X_Error_Code": "EntryNotFound"},
        "no models.safetensors at main; did you mean 'model.safetensors'",
    ),
    "no revision": (
        "a.bin@v9",
        404,
        {"X_Error_Code": "RevisionNotFound"},
        "o/r has no revision 'v9', but main, v1.0$",
    ),
    "no names": ("a.bin@v8", 404, {"X_Error_Code": "EntryNotFound"}, "o/r has no a.bin at v8$"),
    "no repository": (
        "a.bin@main",
        401,
        {"X_Error_Code": "RepoNotFound"},
        f"there is no o/r, or it is not open to everyone; if it is yours, {LOG_IN}",
    ),
    "gated, nobody": ("a.bin@main", 401, {"X_Error_Code": "GatedRepo"}, f"whom its owner lets in; .* {LOG_IN}"),
    "gated, somebody": ("a.bin@main", 403, {"X_Error_Code": "GatedRepo"}, f"whom its owner lets in; .* {LOG_IN}"),
    "a token that is none": (
        "a.bin@main",
        401,
        {"X_Error_Message": "Invalid credentials in Authorization header"},
        f"Invalid credentials in Authorization header; {LOG_IN}",
    ),
    "forbidden": ("a.bin@main", 403, {"X_Error_Message": "not you"}, f"403 Forbidden: not you.*; {LOG_IN}"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_hub_refuses(what: str, huggingface: Host) -> None:
    file, code, headers, text = REFUSED[what]
    name, _, revision = file.partition("@")
    huggingface.serve(f"/o/r/resolve/{revision}/{name}", lambda visit: visit.say(code, b"", **headers))
    huggingface.serve("/api/models/o/r/tree/v8", status(404))
    with pytest.raises(FetchError, match=rf"hf://o/r/{file} cannot be fetched: .*{text}"):
        fetch(f"hf://o/r/{file}")


def test_a_hub_that_is_told_not_to_be_asked(huggingface: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FetchError, match=r"a\.bin cannot be fetched: .*HF_HUB_OFFLINE"):
        fetch("hf://o/r/a.bin")
    assert huggingface.seen == []


def test_huggingface_hub_is_imported_as_it_is(cache: Path) -> None:
    """The package gives ``constants`` only to those who ask for that part of it."""
    code = "import torchinit\ntorchinit.checkpoints.fetch('hf://org/repo/a.bin')"
    environment = {**os.environ, "TORCHINIT_ALLOWED_HOSTS": "example.org"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith(
        "torchinit.errors.FetchError: https://huggingface.co/: the host 'huggingface.co' is not allowed"
    )


@pytest.fixture
def request_for(cache: Path) -> Request:
    return Request(Limits(), lambda done, total: None, Cache(cache))


def test_every_name_of_mmengine(request_for: Request) -> None:
    from mmengine.runner.checkpoint import get_deprecated_model_names, get_external_models, get_mmcls_models

    urls = get_external_models()
    for name, url in urls.items():
        assert open_mmlab(f"openmmlab://{name}", request_for) == url
    for name, url in get_mmcls_models().items():
        assert open_mmlab(f"mmcls://{name}", request_for) == url
    renamed = {old: new for old, new in get_deprecated_model_names().items() if new in urls}  # not all are
    assert renamed
    for old, new in renamed.items():
        assert open_mmlab(f"open-mmlab://{old}", request_for) == urls[new]


def test_weights_of_timm(request_for: Request) -> None:
    assert timm("timm://resnet50.a1_in1k", request_for) == "hf://timm/resnet50.a1_in1k/model.safetensors"
    assert timm("timm://resnet50", request_for).startswith("hf://timm/resnet50.")
    with pytest.raises(FetchError, match="timm has no weights of this name; did you mean 'resnet50"):
        timm("timm://resnet5O.a1_in1k", request_for)
