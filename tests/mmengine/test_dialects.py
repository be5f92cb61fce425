"""One dict, two readings: the table of the page about MMEngine, each row carried out as an init_cfg and as a recipe."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import torchinit
from torchinit import mmengine

PAGE = Path(__file__).parents[2] / "docs/guides/mmengine.md"
HEAD = "| entry | in an `init_cfg` it writes | in a recipe it writes |"


class Loss(nn.Module):
    """It keeps the weights of classes as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(3))


class Net(nn.Module):
    """The model that the page speaks of, all of its values 7."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.table = nn.Embedding(3, 2, padding_idx=0)
        self.rnn = nn.LSTM(2, 2)
        self.attention = nn.MultiheadAttention(2, 1)
        self.loss = Loss()
        for tensor in self.state_dict().values():
            tensor.fill_(7.0)
        self.wrapped = weight_norm(nn.Linear(2, 2))
        self.wrapped.weight = torch.full((2, 2), 7.0)
        nn.init.constant_(self.wrapped.bias, 7.0)

    def values(self) -> dict[str, torch.Tensor]:
        """Its tensors as their modules compute them, those of a table with a padding row apart."""
        state = {name: value for name, value in self.state_dict().items() if "parametrizations" not in name}
        table = state.pop("table.weight")
        state |= {"table.weight[0]": table[:1], "table.weight[1:]": table[1:], "wrapped.weight": self.wrapped.weight}
        return {name: value.detach() for name, value in state.items()}


def rows() -> list[tuple[str, str, str]]:
    """The rows of the table: entry, and what becomes of it in each dialect."""
    lines = PAGE.read_text("utf-8").splitlines()
    start = lines.index(HEAD) + 2
    found: list[tuple[str, str, str]] = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        entry, one, other = (cell.strip() for cell in line.strip("|").split("|"))
        found.append((re.findall(r"`([^`]+)`", entry)[0], one, other))
    return found


def outcome(carry_out: Callable[[Net], object]) -> set[str] | str:
    """What is written, or the name of the error."""
    model = Net()
    try:
        carry_out(model)
    except Exception as error:  # noqa: BLE001  # whatever it is, the page has to say so
        assert not changed(model)
        return type(error).__name__.removeprefix("InitCfg")
    return changed(model)


def changed(model: Net) -> set[str]:
    """What no longer is 7, but for a padding row that is 0."""
    found = {name for name, value in model.values().items() if not torch.allclose(value, torch.full_like(value, 7.0))}
    return found - {"table.weight[0]"} if not model.table.weight[0].any() else found


def expected(cell: str) -> set[str] | str:
    """What a cell says: names and globs of names, an error, or nothing."""
    if cell.startswith("nothing"):
        return set()
    texts = re.findall(r"`([^`]+)`", re.split("[;:] ", cell)[0])
    if texts[0].endswith("Error"):
        return str(texts[0])
    known = Net().values()
    found = {text: {name for name in known if name == text or fnmatchcase(name, text)} for text in texts}
    assert all(found.values())
    return set().union(*found.values())


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that the table speaks of."""
    monkeypatch.chdir(tmp_path)
    torch.save({name: value + 1 for name, value in Net().values().items() if name.startswith("conv")}, "conv.pth")


@pytest.mark.usefixtures("checkpoint")
@pytest.mark.parametrize(("text", "as_init_cfg", "as_recipe"), rows())
def test_each_row_of_the_table(text: str, as_init_cfg: str, as_recipe: str) -> None:
    entry: dict[str, Any] = ast.literal_eval(text)
    one = outcome(lambda model: mmengine.initialize(model, entry, seed=0))
    other = outcome(lambda model: torchinit.initialize(model, {"rules": [entry]}, seed=0))
    assert (one, other) == (expected(as_init_cfg), expected(as_recipe))
    assert one != other


def same() -> Iterator[dict[str, Any]]:
    """Entries that mean one thing."""
    words: list[dict[str, Any]] = [
        *({"label": "mine"}, {"optional": True}, {"fans": "true"}, {"bias": "keep"}, {"bias": 2.0}, {"bias_prob": 0.1}),
        *({"blocks": 3}, {"exclude": "*.bias"}, {"within": "conv"}, {"name": "conv.weight"}, {"regex": "conv.*"}),
        {"bias": {"type": "Normal", "std": 0.5}},
    ]
    for kind in ("Kaiming", "Xavier", "Caffe2Xavier"):
        yield from ({"type": kind, "layer": "Conv2d", **word} for word in words)
    yield {"type": "Orthogonal", "name": "conv.weight"}
    yield {"type": "TruncNormal", "std": 0.5, "a": -1, "layer": "Conv2d"}
    yield {"type": "Uniform", "a": -1, "param": ["bias_hh_l0"]}


@pytest.mark.parametrize("entry", list(same()), ids=str)
def test_entries_that_mean_the_same_have_the_same_values(entry: dict[str, Any]) -> None:
    one, other = Net(), Net()
    mmengine.initialize(one, entry, seed=0)
    torchinit.initialize(other, {"rules": [entry]}, seed=0)
    assert all(torch.equal(value, other.values()[name]) for name, value in one.values().items())
    assert changed(one)
