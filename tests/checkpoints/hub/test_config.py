"""Limits: what the environment sets, and what it cannot mean."""

from __future__ import annotations

import pytest

from torchinit.checkpoints.hub.urls import Limits, from_environment
from torchinit.errors import FetchError


def test_a_silent_environment_changes_nothing() -> None:
    assert from_environment({}) == Limits()
    hosts = ("TORCHINIT_ALLOWED_HOSTS", "TORCHINIT_PRIVATE_HOSTS")
    empty = ("TORCHINIT_MAX_DOWNLOAD", "TORCHINIT_TIMEOUT", *hosts, "TORCHINIT_OFFLINE")
    assert from_environment(dict.fromkeys(empty, "")) == Limits()


def test_what_it_sets() -> None:
    said = {
        "TORCHINIT_MAX_DOWNLOAD": "2.5 GB",
        "TORCHINIT_TIMEOUT": "7.5",
        "TORCHINIT_ALLOWED_HOSTS": "a.org, *.b.org,",
        "TORCHINIT_PRIVATE_HOSTS": "*.corp",
        "TORCHINIT_OFFLINE": "Yes",
    }
    assert from_environment(said) == Limits(
        size=2_500_000_000, idle=7.5, hosts=("a.org", "*.b.org"), private=("*.corp",), offline=True
    )


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("TORCHINIT_MAX_DOWNLOAD", "much", "TORCHINIT_MAX_DOWNLOAD='much' is not a size; write 500MB or 20GB"),
        ("TORCHINIT_MAX_DOWNLOAD", "-1", "is not a size"),
        ("TORCHINIT_TIMEOUT", "0", "TORCHINIT_TIMEOUT='0' is not a number of seconds above 0"),
        ("TORCHINIT_TIMEOUT", "inf", "is not a number of seconds above 0"),
        ("TORCHINIT_OFFLINE", "maybe", "TORCHINIT_OFFLINE='maybe' is neither yes nor no; set it to 1 or 0"),
    ],
)
def test_what_it_cannot_mean(name: str, value: str, text: str) -> None:
    with pytest.raises(FetchError, match=text):
        from_environment({name: value})


@pytest.mark.parametrize(
    ("hosts", "host", "allowed"),
    [
        ((), "anybody.org", True),
        (("a.org",), "A.org.", True),
        (("a.org",), "b.a.org", False),
        (("*.a.org",), "b.a.org", True),
        (("*.a.org",), "a.org", False),
        (("*.a.org",), "evila.org", False),
        (("*",), "a.org", True),
    ],
)
def test_hosts(hosts: tuple[str, ...], host: str, allowed: bool) -> None:
    assert Limits(hosts=hosts).allows(host) is allowed
    assert Limits(private=hosts).allows_private(host) is (allowed and bool(hosts))
    assert Limits(hosts=hosts).allows_private(host) is (allowed and bool(hosts))
