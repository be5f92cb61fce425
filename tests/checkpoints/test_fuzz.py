"""Fuzzing: any bytes are read or refused by the readers, any data by the decoders of recipes and plans."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints import hostile
from torchinit import CheckpointError, ConfigError, Plan, decode_recipe, open_checkpoint
from torchinit.checkpoints.readers.pickles import check_pickle

FORMS = ["zip", "legacy", "safetensors", "npz"]


@st.composite
def damaged(draw: st.DrawFn, form: str) -> bytes:
    """A sound file in which a few stretches of bytes are replaced, doubled or gone."""
    content = bytearray(hostile.sound(form))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, 800) | st.integers(0, len(content)) | st.integers(len(content) - 800, len(content)))
        length = draw(st.integers(0, 40))
        content[at : at + length] = draw(st.binary(max_size=40) | st.just(bytes(content[:at][-length:])))
    return bytes(content)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60)
@given(data=st.data())
def test_readers(form: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzzed-{form}"
    path.write_bytes(data.draw(damaged(form)))
    with suppress(CheckpointError):
        checkpoint = open_checkpoint(path)
        for key in checkpoint:
            assert tuple(checkpoint.read(key).shape) == checkpoint.info(key).shape


@settings(max_examples=150)
@given(st.lists(st.sampled_from([*b"]}()a.sutqh\x85\x86\x87K\x00\x01RQNX"]), max_size=80).map(bytes))
def test_the_look_at_pickles(operations: bytes) -> None:
    with suppress(CheckpointError):
        check_pickle("fuzzed", b")" * 1000 + operations)


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
