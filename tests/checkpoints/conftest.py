"""What the tests of checkpoints share: a server that misbehaves, and a cache of each test's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints.servers import Site, certificate_in, served


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate_in(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an environment in which nothing else is set."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("TORCHINIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TORCHINIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def site(certificate: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server with TLS, trusted."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with served(certificate) as running:
        yield running


@pytest.fixture
def plain(cache: Path) -> Iterator[Site]:
    """A server without TLS."""
    with served() as running:
        yield running
