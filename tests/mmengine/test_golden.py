"""The values that MMEngine gave the same trees from the same seed."""

from __future__ import annotations

import json

import pytest

import torchinit
from tests.golden.openmmlab_values import CASES, PATH, values

GOLDEN = json.loads(PATH.read_text())


def test_every_case_has_values() -> None:
    assert GOLDEN.keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_values_are_mmengines(name: str) -> None:
    ours = values(torchinit.mmengine, name)
    assert ours.keys() == GOLDEN[name].keys()
    for key, expected in GOLDEN[name].items():
        assert ours[key] == pytest.approx(expected, rel=1e-5, abs=1e-7), key
