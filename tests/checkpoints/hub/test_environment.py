"""The environment: what its variables name is read like any other input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torch import nn

from tests.servers import Host
from torchinit import CheckpointError, Name, Pretrained, Rule, open_checkpoint, plan
from torchinit.checkpoints import fetch
from torchinit.checkpoints.hub.cache import default_folder
from torchinit.checkpoints.hub.urls import from_environment
from torchinit.errors import FetchError


@pytest.fixture
def weights(tmp_path: Path, cache: Path) -> Path:
    (path := tmp_path / "a.pth").write_bytes(b"weights")
    return path


@pytest.mark.parametrize("odd", ["fifo", "/dev/zero", "/dev/full", "folder", "garbage", "~nouser/lock"])
def test_lock_files_that_are_none(odd: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "garbage").write_bytes(b"\xff")
    monkeypatch.setenv("TORCHINIT_LOCK", odd if odd[0] in "/~" else str(tmp_path / odd))
    with pytest.raises((FetchError, FileNotFoundError), match=r"lock file .* cannot be read|there is no user"):
        fetch(weights)


def test_lock_files_that_are_relative_or_not_set(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHINIT_LOCK", "init.lock")
    assert fetch(weights) == weights
    assert (tmp_path / "init.lock").is_file()
    monkeypatch.setenv("TORCHINIT_LOCK", "")
    assert fetch(weights) == weights


@pytest.mark.parametrize("odd", ["fifo", "/dev/null", "file", "~nouser/cache"])
def test_caches_that_are_none(odd: str, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("TORCHINIT_CACHE", odd if odd[0] in "/~" else str(tmp_path / odd))
    with pytest.raises(FetchError, match="TORCHINIT_CACHE moves it"):
        fetch(f"{host.url}/a.pth")


def test_caches_by_default() -> None:
    assert default_folder({"TORCHINIT_CACHE": ""}) == Path.home() / ".cache/torchinit"
    assert default_folder({"XDG_CACHE_HOME": "rel"}) == Path("rel/torchinit")
    with pytest.raises(FetchError, match=r"the cache ~nouser/torchinit can not be found: there is no user"):
        default_folder({"XDG_CACHE_HOME": "~nouser"})


def test_numbers_beyond_all_bounds() -> None:
    limits = from_environment({"TORCHINIT_MAX_DOWNLOAD": "9" * 5000, "TORCHINIT_TIMEOUT": "9" * 5000})
    assert (limits.size, limits.idle) == (10**18, 1e9)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_certificates_that_are_not_there(
    variable: str, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(odd := tmp_path / "fifo")
    for named in ("/nowhere/a.pem", str(odd)):
        monkeypatch.setenv(variable, named)
        with pytest.raises(FetchError, match=f"{variable}={named}: is not there, so no host can be trusted"):
            fetch(f"{host.url}/a.pth")


@pytest.mark.parametrize("proxy", ["http://[", "http://a:b:c", "http://localhost:99999"])
def test_proxies_that_are_no_urls(proxy: str, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(FetchError, match=r"the proxy .* is not a URL"):
        fetch(f"{host.url}/a.pth")


def test_users_and_links_that_lead_nowhere(cache: Path, tmp_path: Path) -> None:
    (loop := tmp_path / "loop").symlink_to("loop")
    (lost := tmp_path / "lost").symlink_to("gone")
    for path, said in ((loop, "it is a link to 'loop', where nothing is"), (lost, "it is a link to 'gone'")):
        with pytest.raises(FileNotFoundError, match=said):
            open_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="~nouser/x can not be found: there is no user"):
        open_checkpoint("~nouser/x")
    with pytest.raises(CheckpointError, match="~nouser/x can not be found: there is no user"):
        plan(nn.Linear(2, 2), Rule(Name("**"), Pretrained("~nouser/x")))
