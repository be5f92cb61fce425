"""Settings of all tests: property tests that behave the same on a slow and on a fast machine; hosts that misbehave."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.servers import Host, certificate_in, served

# Collected only where `./dev peers` has put those libraries; the header of each run says which it is.
HAS_PEERS = importlib.util.find_spec("mmengine") is not None
collect_ignore = [] if HAS_PEERS else ["peers"]

# Same examples in every run: a red run is red again. No deadline, because time is no assertion here.
settings.register_profile("torchinit", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
# For `./dev fuzz`: others in every run.
settings.register_profile("fresh", deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("torchinit")


def pytest_report_header() -> str:
    where = "here" if HAS_PEERS else "not in this run (./dev peers)"
    return f"tests against other libraries (tests/peers): {where}"


@pytest.fixture(scope="session", autouse=True)
def nobodys_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the tests from the cache of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `host` shows, with its key."""
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
def host(certificate: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A server with TLS, trusted, which may be where it is."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("TORCHINIT_PRIVATE_HOSTS", "localhost,127.0.0.1")
    with served(certificate) as running:
        yield running


@pytest.fixture
def plain_host(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A server without TLS, which may be where it is."""
    monkeypatch.setenv("TORCHINIT_PRIVATE_HOSTS", "localhost,127.0.0.1")
    with served() as running:
        yield running
