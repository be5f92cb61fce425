"""Errors: one tree, all problems in one text, data to read, and copies that survive a process."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from torchinit import errors
from torchinit._text import masked
from torchinit.errors import (
    CheckpointError,
    ConfigError,
    FanError,
    FetchError,
    MissingExtraError,
    PlanError,
    ReportError,
    RunError,
    TorchinitError,
)

TREE = {
    ConfigError: ValueError,
    FanError: ValueError,
    PlanError: ValueError,
    RunError: RuntimeError,
    ReportError: AssertionError,
    CheckpointError: RuntimeError,
    FetchError: CheckpointError,
    MissingExtraError: ImportError,
}
MANY: list[Any] = [ConfigError, PlanError, RunError, ReportError, CheckpointError, FetchError]


@pytest.mark.parametrize(("error", "base"), TREE.items())
def test_the_tree(error: type[Exception], base: type[Exception]) -> None:
    assert issubclass(error, TorchinitError)
    assert issubclass(error, base)
    assert errors.__doc__ is not None
    assert f"{error.__name__} ({base.__name__})" in errors.__doc__


@pytest.mark.parametrize("error", MANY)
def test_every_problem_on_a_line_of_its_own(error: Any) -> None:
    made = error("2 mistakes", ["a: one", "b: two"])
    assert str(made) == "2 mistakes\n  a: one\n  b: two"
    assert made.headline == "2 mistakes"
    assert made.problems == ("a: one", "b: two")
    assert str(error("nothing else")) == "nothing else"


@pytest.mark.parametrize(
    "error", [*(kind("head", ["a", "b"]) for kind in MANY), FanError("text"), MissingExtraError("Tables", "cli")]
)
def test_copies(error: Exception) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_a_missing_extra_says_what_to_install() -> None:
    error = MissingExtraError("Reading YAML", "yaml")
    assert str(error) == "Reading YAML needs an optional dependency: pip install 'torchinit[yaml]'"
    assert (error.what, error.extra) == ("Reading YAML", "yaml")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@e.org/a and s3://key:pass@b/c", "https://e.org/a and s3://b/c"),
        ("https://e.org/a?token=1&b=2#x: no", "https://e.org/a?token=***&b=2#x: no"),
        ("https://e.org/a?b=2&X-Amz-Signature=1a: no", "https://e.org/a?b=2&X-Amz-Signature=***: no"),
        ("https://e.org/a?sv=1&SIG=%2B/=, no", "https://e.org/a?sv=1&SIG=***, no"),
        ("https://e.org/a?key=1;apikey=2;api_key=3", "https://e.org/a?key=***;apikey=***;api_key=***"),
        ("https://e.org/a@v2?monkey=1&keys=2", "https://e.org/a@v2?monkey=1&keys=2"),
        ("C://a@b is no URL; 'hf://o/r/a@main'", "C://b is no URL; 'hf://o/r/a@main'"),
        ("a token=1 outside of a URL", "a token=1 outside of a URL"),
    ],
)
def test_secrets_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown
    assert str(CheckpointError("no", [text])) == f"no\n  {shown}"


def test_what_a_terminal_would_obey_is_spelled_out() -> None:
    error = CheckpointError("a\x1b[31m", ["b\x9b2J\nc", "\u202e\ud800"])
    assert str(error) == "a\\u001b[31m\n  b\\u009b2J\nc\n  \\u202e\\ud800"
