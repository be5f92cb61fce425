"""Fuzzing: any bytes are read or refused by the readers, any data by the decoders of recipes and plans."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints import hostile
from tests.fuzz.__main__ import KINDS, fuzz
from tests.fuzz.mutations import FORMS, changed
from tests.fuzz.surfaces import checkpoint, outcome
from torchinit import CheckpointError, ConfigError, Plan, load_recipe, open_checkpoint
from torchinit.checkpoints.formats.pickle_audit import check_pickle
from torchinit.checkpoints.formats.torch_save import MemoryCheckpoint
from torchinit.recipes import decode_recipe


@pytest.mark.slow("hundreds of changed files, each in a bounded process")
def test_files_that_are_changed_by_their_structure(tmp_path: Path) -> None:
    """Ten seconds of what ``./dev fuzz SECONDS`` does for longer."""
    tried, found = fuzz(10, seed=20261125, folder=tmp_path)
    assert found == []
    assert tried.keys() == KINDS.keys()  # each at least once, however long that takes


@pytest.mark.parametrize("form", FORMS)
def test_changes_leave_some_files_sound_and_not_others(form: str, tmp_path: Path) -> None:
    outcomes: set[str] = set()
    for number in range(200):
        if len(outcomes) == 2:
            break
        (path := tmp_path / f"{number}.{form}").write_bytes(changed(form, Random(number)))
        try:
            load_recipe(path) if form in ("json", "toml", "yaml") else open_checkpoint(path)
        except (CheckpointError, ConfigError):
            outcomes.add("refused")
        else:
            outcomes.add("read")
    assert outcomes == {"read", "refused"}


def test_what_the_fuzzer_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(hostile.sound())
    assert outcome(checkpoint, path) == ("read", "")
    with monkeypatch.context() as patch:
        patch.setattr(MemoryCheckpoint, "_read", lambda self, key, box: torch.zeros(3))
        assert "is not what was said of it" in outcome(checkpoint, path)[1]
    with monkeypatch.context() as patch:
        patch.setattr("torchinit._text.plain", lambda text: text)
        torch.save({"a\x1b": torch.ones(2)}, path)
        assert "shows what a terminal would obey: " in outcome(checkpoint, path)[1]


@settings(max_examples=150)
@given(st.lists(st.sampled_from([*b"]}()a.sutqh\x85\x86\x87K\x00\x01RQNX"]), max_size=80).map(bytes))
def test_the_look_at_pickles(operations: bytes) -> None:
    with suppress(CheckpointError):
        check_pickle("fuzzed", operations)


WORDS = [
    "type",
    "checkpoint",
    "prefix",
    "rename",
    "adapt",
    "on_shape",
    "expect_missing",
    "where",
    "init",
    "name",
    "rules",
]
TYPES = ["Pretrained", "Loaded", "Normal", "Blocks", "InputChannels", "All", "Name", "skip", "**", "a.pth", "1e999"]
DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(TYPES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5),
    max_leaves=12,
)


@pytest.mark.slow("hundreds of changed recipes")
@settings(max_examples=300)
@given(st.lists(st.dictionaries(st.sampled_from(WORDS), st.sampled_from(TYPES) | DATA, max_size=6), max_size=3) | DATA)
def test_the_decoder_of_recipes(entries: Any) -> None:
    for data in ({"rules": entries}, entries):
        with suppress(ConfigError):
            decode_recipe(data)


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(["steps", "loads", "problems", "unused"]), DATA, max_size=3))
def test_the_decoder_of_plans(data: dict[str, Any]) -> None:
    with suppress(ConfigError):
        Plan.from_json(json.dumps({"format": "torchinit-plan-1", **data}))
