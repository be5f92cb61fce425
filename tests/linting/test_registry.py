"""Checks: their registry, what they tell about themselves, how they are chosen."""

from __future__ import annotations

import re

import pytest

from torchinit import ConfigError
from torchinit.linting import CHECKS, SEVERITIES, select_checks


@pytest.mark.parametrize("code", CHECKS)
def test_a_check_tells_about_itself(code: str) -> None:
    one = CHECKS[code]
    assert re.fullmatch(r"TI[1-79]\d\d", code)
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", one.name)
    assert one.severity in SEVERITIES
    summary, *more = one.text.split("\n\n")
    assert summary.endswith(".")
    assert one.summary == " ".join(summary.split())
    assert more, f"{code} does not say why, and how it is decided"
    assert not one.remedy.endswith(".")


def test_names_are_different() -> None:
    assert len({one.name for one in CHECKS.values()}) == len(CHECKS)


def test_selecting() -> None:
    assert [one.code for one in select_checks((), ())] == sorted(CHECKS)
    assert {one.code for one in select_checks(("TI3",), ("TI302",))} == {"TI301", "TI303", "TI304"}
    assert [one.code for one in select_checks(("meta", "TI103"), ())] == ["TI102", "TI103"]
    assert "TI102" not in {one.code for one in select_checks((), ("meta",))}


def test_a_word_that_is_not_a_check() -> None:
    with pytest.raises(ConfigError, match="a check goes by its code") as caught:
        select_checks(("XY9", "same-in-layer"), ("T",))
    assert caught.value.problems == (
        "'XY9' is not a check",
        "'same-in-layer' is not a check; did you mean 'same-in-layers'?",
        "'T' is not a check",
    )
