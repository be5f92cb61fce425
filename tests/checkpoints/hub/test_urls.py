"""Addresses: a URL leads where it says, and an index names files beside it alone; limits by the environment."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from torchinit.checkpoints import member_of
from torchinit.checkpoints.hub.urls import Limits, address_of, from_environment, is_public, name_of, redirected
from torchinit.errors import FetchError


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("https://Example.ORG:443/a.pth#part", "https://example.org/a.pth"),
        ("http://example.org:80", "http://example.org/"),
        ("https://example.org/é b?x=ü&y=%20", "https://example.org/%C3%A9%20b?x=%C3%BC&y=%20"),
        ("https://bücher.example/a", "https://xn--bcher-kva.example/a"),
        ("https://[::1]:8443/a", "https://[::1]:8443/a"),
    ],
)
def test_one_spelling_of_a_url(url: str, same: str) -> None:
    assert address_of(url).url == same
    assert address_of(same).url == same


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://e.org/m/resnet50-0676ba61.pth?x=/../y", "resnet50-0676ba61.pth"),
        ("https://e.org/", "file"),
        ("https://e.org/a/..", "file"),
        ("https://e.org/.bashrc", "bashrc"),
        ("https://e.org/%2e%2e%2f%2e%2e%2fa.pth", "a.pth"),
        ("https://e.org/..%5c..%5ca.pth", "a.pth"),
        ("https://e.org/a%00b%0ac.pth", "a_b_c.pth"),
        ("https://e.org/C:a.pth", "C_a.pth"),
        ("https://e.org/模型.pth", "__.pth"),
        (f"https://e.org/{'x' * 300}.safetensors", "x" * 88 + ".safetensors"),
    ],
)
def test_names(url: str, name: str) -> None:
    assert name_of(url) == name


@given(st.text())
@example("a/.")
@example(("." * 100) + "a" * 99)
def test_a_name_is_safe_whatever_the_url(path: str) -> None:
    name = name_of(f"https://example.org/{path}")
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name)


@pytest.mark.parametrize(
    ("ip", "public"),
    [
        ("1.1.1.1", True),
        ("2606:4700::1111", True),
        ("64:ff9b::101:101", True),  # 1.1.1.1 by NAT64
        ("::ffff:1.1.1.1", True),
        ("198.18.0.7", True),  # what a local proxy says for any name
        ("127.0.0.1", False),
        ("127.8.8.8", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("100.100.100.200", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a9fe:a9fe", False),  # 169.254.169.254 by NAT64
        ("64:ff9b:1::a00:1", False),
        ("2002:7f00:1::", False),  # 127.0.0.1 by 6to4
        ("2001:0:1::1", False),
        ("fd00::1", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("ff02::1", False),
    ],
)
def test_what_is_on_the_internet(ip: str, public: bool) -> None:
    assert is_public(ip) is public


@given(st.text(max_size=30), st.sampled_from(["http", "https"]))
@example("//evil.org\\@example.org", "https")
@example("https:evil", "https")
@example("\n//x", "https")
def test_a_redirect_is_refused_or_stays_on_the_web(location: str, scheme: str) -> None:
    start = address_of(f"{scheme}://example.org/a")
    try:
        target = redirected(start, location)
    except FetchError:
        return
    assert target.scheme in {"https", scheme}
    assert target.host
    assert address_of(target.url) == target


# --- the files of an index -------------------------------------------------------------------------------------------

SOURCES = ["/data/m/index.json", "m/index.json", "https://example.org/m/index.json", "hf://org/repo/m/index.json@v1"]
OUTSIDE = [
    "",
    ".",
    "..",
    "../a",
    "a/../../b",
    "/etc/passwd",
    "//evil.org/a",
    "a//b",
    "a/",
    "./a",
    "\\evil\\a",
    "..\\a",
    "C:a",
    "https://evil.org/a",
    "file:///etc/passwd",
    "a?x",
    "a#x",
    "%2e%2e/a",
    "a\nb",
    "a\0b",
]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", OUTSIDE)
def test_what_lies_outside_is_refused(source: str, name: str) -> None:
    with pytest.raises(FetchError, match="which is not in its folder"):
        member_of(source, name)


@pytest.mark.parametrize(
    ("source", "member"),
    [
        ("/data/m/index.json", "/data/m/x/a b.bin"),
        ("index.json", "x/a b.bin"),
        ("https://example.org/m/index.json#part", "https://example.org/m/x/a%20b.bin"),
        ("https://example.org/index.json?a=1", "https://example.org/x/a%20b.bin?a=1"),
        ("hf://org/repo/m/index.json@v1", "hf://org/repo/m/x/a b.bin@v1"),
        ("hf://org/repo/index.json", "hf://org/repo/x/a b.bin"),
        ("models://m/index.json", "models://m/x/a b.bin"),
    ],
)
def test_what_lies_beside_it(source: str, member: str) -> None:
    assert member_of(source, "x/a b.bin") == member


@given(st.text())
@example("a/..")
@example("x/.../y")
def test_a_member_is_refused_or_lies_in_the_folder(name: str) -> None:
    try:
        member = member_of("https://example.org/m/index.json", name)
    except FetchError:
        return
    parts = urlsplit(member)
    assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("https", "example.org", "", "")
    path = PurePosixPath(unquote(parts.path))
    assert path.is_relative_to("/m")
    assert ".." not in path.parts


# --- limits ----------------------------------------------------------------------------------------------------------


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
