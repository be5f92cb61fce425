"""Sources that a library knows the way to, with the real library and without the network."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from torchinit import FetchError
from torchinit.checkpoints import fetch
from torchinit.checkpoints.cache import Cache
from torchinit.checkpoints.hubs import open_mmlab, timm
from torchinit.checkpoints.limits import Limits
from torchinit.checkpoints.lockfile import read_pins
from torchinit.checkpoints.sources import Request

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
        with pytest.raises(FetchError, match=rf"{source} cannot be fetched \(TORCHINIT_OFFLINE is set\)"):
            fetch(source)


@pytest.fixture
def request_for(cache: Path) -> Request:
    return Request(Limits(), lambda done, total: None, Cache(cache))


def test_every_name_of_mmengine(request_for: Request) -> None:
    from mmengine.runner.checkpoint import get_deprecated_model_names, get_external_models

    urls = get_external_models()
    for name, url in urls.items():
        assert open_mmlab(f"openmmlab://{name}", request_for) == url
    renamed = {old: new for old, new in get_deprecated_model_names().items() if new in urls}  # not all are
    assert renamed
    for old, new in renamed.items():
        assert open_mmlab(f"open-mmlab://{old}", request_for) == urls[new]


def test_weights_of_timm(request_for: Request) -> None:
    assert timm("timm://resnet50.a1_in1k", request_for) == "hf://timm/resnet50.a1_in1k/model.safetensors"
    assert timm("timm://resnet50", request_for).startswith("hf://timm/resnet50.")
    with pytest.raises(FetchError, match="timm has no weights of this name; did you mean 'resnet50"):
        timm("timm://resnet5O.a1_in1k", request_for)
