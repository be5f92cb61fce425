"""Leaves: what training code keeps beside the weights in a file is not made, and stops no load."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import io
import pathlib
import types
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from tests.checkpoints import hostile
from torchinit import CheckpointError, Name, Pretrained, Rule, initialize, open_checkpoint
from torchinit.checkpoints.formats.torch_save import load_file


class Colour(enum.Enum):
    """A class of a program's own."""

    RED = 1


LEAVES: dict[str, Any] = {
    "arguments": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("runs"), seed=numpy.int64(3)),
    "a scalar": numpy.float64(0.5),
    "an array": numpy.zeros(3),
    "a state of random numbers": numpy.random.RandomState(0).get_state(),
    "a generator": numpy.random.default_rng(0),
    "a dtype": numpy.dtype("float32"),
    "a time": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    "a table with defaults": collections.defaultdict(list, {"a": [1]}),
    "a queue": collections.deque([1, 2], 3),
    "a namespace": types.SimpleNamespace(a=1),
    "decimals": decimal.Decimal("0.1"),
    "bytes in memory": io.BytesIO(b"abc"),
    "a slice": slice(1, 2),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("case", LEAVES)
def test_what_training_keeps_beside_the_weights_is_not_made(case: str, legacy: bool, tmp_path: Path) -> None:
    held, path = {"w": torch.ones(2)}, tmp_path / "a.pth"
    content = {"model": held, "args": LEAVES[case], "more": [LEAVES[case]]}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    before = {*torch.serialization.get_safe_globals()}
    checkpoint = open_checkpoint(path)
    assert checkpoint.keys() == ("w",)
    assert checkpoint.read("w").tolist() == [1.0, 1.0]
    assert {*torch.serialization.get_safe_globals()} == before
    args = load_file(path)["args"]
    assert type(args) in (list, collections.OrderedDict, tuple) or repr(args).endswith(", not made>")


def test_nothing_of_a_leaf_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": {"w": torch.ones(1)}, "args": argparse.Namespace(lr=1), "best": numpy.float64(1)}, path)

    def alarm(*_: object) -> None:
        raise AssertionError("it was made")

    monkeypatch.setattr(argparse.Namespace, "__init__", alarm)
    monkeypatch.setattr(argparse.Namespace, "__setattr__", alarm)
    assert open_checkpoint(path).keys() == ("w",)


@pytest.mark.parametrize(
    ("content", "asked"),
    [
        ({"model": argparse.Namespace(w=torch.ones(1))}, "argparse.Namespace"),
        ({"w": numpy.ones(3)}, r"numpy\._core\.multiarray\._reconstruct"),
        (argparse.Namespace(w=torch.ones(1)), "argparse.Namespace"),
        ({"model": {"w": torch.ones(1)}, "colour": Colour.RED}, r"tests\.checkpoints\.formats\.test_leaves\.Colour"),
    ],
)
def test_where_a_leaf_is_what_is_asked_for_the_way_out_is_named(content: Any, asked: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=f"is refused: its pickle asks for {asked}, and only tensors") as caught:
        open_checkpoint(tmp_path / "a.pth")
    assert ("torch.serialization.safe_globals([" in str(caught.value)) == ("_reconstruct" not in asked)


def test_the_way_out_works(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(1)}, "colour": Colour.RED}, tmp_path / "a.pth")
    with torch.serialization.safe_globals([Colour]):
        assert open_checkpoint(tmp_path / "a.pth").keys() == ("w",)
    torch.save({"model": {"w": torch.ones(1)}, "args": argparse.Namespace(lr=1)}, tmp_path / "b.pth")
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert load_file(tmp_path / "b.pth")["args"].lr == 1


@pytest.mark.parametrize(
    "function", ["os system", "numpy load", "builtins getattr", "subprocess Popen", "argparse open"]
)
def test_a_function_beside_the_weights_is_refused_and_not_recommended(function: str, tmp_path: Path) -> None:
    state = (
        b"\x80\x02}(X\x01\x00\x00\x00wc"
        + function.replace(" ", "\n").encode()
        + b"\nX\x01\x00\x00\x00aX\x01\x00\x00\x00b\x86Ru."
    )
    (tmp_path / "a.pth").write_bytes(hostile.zipped({"data.pkl": state}))
    with pytest.raises(CheckpointError, match="is refused: its pickle asks for") as caught:
        open_checkpoint(tmp_path / "a.pth")
    assert "safe_globals" not in str(caught.value)


def test_odd_tensors_that_nobody_asks_for(tmp_path: Path) -> None:
    odd = {
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.zeros(3, device="meta"),
        "pos": torch.arange(3.0).expand(2, 3),
    }
    torch.save({"w": torch.ones(2), **odd}, tmp_path / "a.pth")
    for source in (str(tmp_path / "a.pth"), {"w": torch.ones(2), **odd}):
        net = nn.Module()
        net.w = nn.Parameter(torch.zeros(2))
        account = initialize(net, Rule(Name("**"), Pretrained(source))).loads[0]
        assert account.complete
        assert {*account.unexpected} == {*odd}
        net.pos = nn.Parameter(torch.zeros(2, 3))
        initialize(net, Rule(Name("**"), Pretrained(source)))
        assert net.pos.tolist() == [[0.0, 1.0, 2.0]] * 2
        net.sparse = nn.Parameter(torch.zeros(3, 3))
        with pytest.raises(
            CheckpointError, match=r"sparse is a torch.sparse_coo tensor; only plain ones can be loaded"
        ):
            initialize(net, Rule(Name("**"), Pretrained(source)))
